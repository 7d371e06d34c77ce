"""RMSNorm in a GE graph: as one op, or as TorchAir writes it out; and what only looks like one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from npu_fused_graph.inspector.missed.wiring import CASTS, HALF, Miss, Value, Wiring

ROOTS = ("Rsqrt", "Sqrt", "Pow")
_SUMS = ("ReduceSum", "ReduceSumD")
_MEANS = ("ReduceMean", "ReduceMeanD", "ReduceMeanWithCast")

OPS = {
    "RmsNorm": "", "AddRmsNorm": "", "InplaceAddRmsNorm": "",
    "AddRmsNormQuant": "quantises", "AddRmsNormDynamicQuant": "quantises", "AddRmsNormDynamicMxQuant": "quantises",
    "RmsNormQuant": "quantises", "RmsNormDynamicMxQuant": "quantises", "LayerNorm": "centres", "LayerNormV3": "centres",
    "LayerNormV4": "centres", "AddLayerNorm": "centres",
}  # fmt: skip
"""Norms that are one op, and what they do instead of RMSNorm."""
ADDING = tuple(kind for kind in OPS if kind.startswith(("Add", "Inplace")))
"""Those that add two tensors first."""


@dataclass(frozen=True, slots=True)
class Norm:
    """source: what is normalised, past views; None where ``addends`` are added first. output: None if nobody reads it.

    numerics: as the package classes them. inner: ops that compute it. miss: why this norm never is fused.
    """

    anchor: int
    source: Value | None
    output: Value | None
    gamma: Value | None
    epsilon: Value | float | None
    numerics: str
    inner: frozenset[int] = frozenset()
    addends: tuple[Value, Value] | None = None
    total: Value | None = None
    adder: int | None = None
    miss: Miss | None = None


@dataclass(slots=True)
class Norms:
    """Of a graph. by_source: of a value that is normalised. by_adder: of an op that adds first. missed: of a value
    around which something looks like a norm."""

    by_source: dict[Value, Norm] = field(default_factory=dict)
    by_adder: dict[int, Norm] = field(default_factory=dict)
    missed: dict[Value, Miss] = field(default_factory=dict)


def norms_of(wiring: Wiring) -> Norms:
    found = Norms()
    for op in wiring.graph.of_type(*OPS):
        norm = _one_op(wiring, op)
        if norm is not None:
            _keep(found, norm)
    for root in wiring.graph.of_type(*ROOTS):
        read = _written(wiring, root)
        if isinstance(read, Norm):
            _keep(found, read)
        elif read is not None:
            found.missed.setdefault(read[0], read[1])
    return found


def _keep(found: Norms, norm: Norm) -> None:
    if norm.source is not None:
        found.by_source.setdefault(norm.source, norm)
    elif norm.adder is not None:
        found.by_adder.setdefault(norm.adder, norm)


# -- one op ------------------------------------------------------------------------------------------------------


def _one_op(wiring: Wiring, op: int) -> Norm | None:
    kind, inputs, node = wiring.type(op), wiring.inputs(op), wiring.node(op)
    adds = kind in ADDING
    needed = 2 if adds else 1
    if any(item is None for item in inputs[:needed]) or len(inputs) < needed:
        return None
    values = [item for item in inputs if item is not None]
    gamma = inputs[needed] if len(inputs) > needed else None
    epsilon = node.attrs.get("epsilon")
    miss = None
    if OPS[kind] == "quantises":
        miss = Miss("quantised_norm", op, f"{wiring.name(op)} quantises the norm")
    elif OPS[kind] == "centres":
        miss = Miss("layer_norm", op, f"the sum is normalised by {wiring.name(op)}")
    elif gamma is None:
        miss = Miss("norm_without_weight", op, "the norm has no weight")
    number = float(epsilon) if isinstance(epsilon, (int, float)) else None
    if adds:
        addends = wiring.past_views(values[0]), wiring.past_views(values[1])
        return Norm(op, None, (op, 0), gamma, number, "same_rounding", frozenset({op}), addends, (op, 2), op, miss)
    return Norm(op, wiring.past_views(values[0]), (op, 0), gamma, number, "one_ulp", frozenset({op}), miss=miss)


# -- written out -------------------------------------------------------------------------------------------------


def _written(wiring: Wiring, root: int) -> Norm | tuple[Value, Miss] | None:
    """What starts at a root; None where it is the root of something else."""
    biased, inverse = wiring.input(root, 0), _is_inverse(wiring, root)
    if biased is None or inverse is None:
        return None
    biased = wiring.past_views(biased)
    mean, epsilon = _mean_and_epsilon(wiring, biased)
    adder = None if mean is None else _adder(wiring, mean)
    square = None if adder is None else wiring.input(adder, 0)
    if mean is None or adder is None or square is None:
        return None
    square = wiring.past_views(square)
    powers = _squared(wiring, square[0])
    first = powers[0] if powers else wiring.input(square[0], 0)
    source = _source(wiring, first)
    if source is None:
        return None

    def near(text: str, reason: str = "no_rms_norm") -> tuple[Value, Miss]:
        return source, Miss(reason, root, f"{wiring.name(root)} is like a norm's, but {text}")

    if epsilon is None:
        return near("epsilon is not plainly added to the mean of the squares")
    if not powers or any(_source(wiring, x) != source for x in powers):
        return near(f"{wiring.name(square[0])} is not x ** 2 of one x")
    shape = wiring.shape(square)
    axes = wiring.numbers(wiring.input(adder, 1)) or _axes(wiring, adder)
    if axes is not None and not _is_last(axes, shape):
        return near(f"the mean runs over the dims {[int(x) for x in axes]}, not over the last")
    if not _averages(wiring, mean, adder, shape):
        return near(f"the squares are summed by {wiring.name(adder)}, not averaged over n")
    scaled = _scaled(wiring, root, source, shape)
    if scaled is None:
        return near("x is not scaled by it in float32, row by row")
    product, path = scaled
    for op in (square[0], adder, root, product):
        dtype = wiring.dtype((op, 0))
        if dtype in HALF:
            return source, Miss(
                "half_statistics", op, f"the norm computes its statistics in {dtype} ({wiring.name(op)})"
            )
    core = {biased[0], mean[0], adder, square[0], root, product, *path}
    wide = [x for x in (*powers, *wiring.inputs(product)) if x is not None and _source(wiring, x) == source]
    inner = core | {x[0] for x in wide if x[0] != source[0] and all(reader in core for reader in wiring.all_readers(x))}
    return _finished(wiring, root, source, product, epsilon, inner)


def _finished(
    wiring: Wiring, root: int, source: Value, product: int, epsilon: Value | float, inner: set[int]
) -> Norm | tuple[Value, Miss]:
    """On from x / rms(x) to the weight."""
    addends = _addends(wiring, source)
    dtype = wiring.dtype(addends[0] if addends else source)
    is_multiplied = False
    for reader in wiring.all_readers((product, 0)):
        kind = wiring.type(reader)
        narrow = wiring.dtype((reader, 0))
        if kind in CASTS and dtype != "float32" and (narrow == dtype or (dtype is None and narrow in HALF)):
            for times, gamma in _times_vector(wiring, (reader, 0)):
                if gamma is not None and wiring.dtype((times, 0)) in (dtype, narrow):
                    own = inner | {reader}
                    return _norm(wiring, root, source, (times, 0), gamma, epsilon, "same_rounding", own, addends)
                is_multiplied = True
    for times, gamma in _times_vector(wiring, (product, 0)):
        is_multiplied = True
        if gamma is None:
            continue
        outputs = [r for r in wiring.all_readers((times, 0)) if wiring.type(r) in CASTS]
        wanted = HALF if dtype is None else (dtype,)
        output = times if dtype == "float32" else next((r for r in outputs if wiring.dtype((r, 0)) in wanted), None)
        if output is not None:
            weight = wiring.widened(gamma) or wiring.past_views(gamma)
            numerics = "one_ulp" if wiring.dtype(weight) == dtype else "any"
            return _norm(wiring, root, source, (output, 0), weight, epsilon, numerics, inner | {times}, addends)
    if not is_multiplied:
        text = f"{wiring.name(product)} is multiplied by no weight"
        return source, Miss("norm_without_weight", product, text)
    text = f"{wiring.name(product)} is not multiplied by a weight of n elements and rounded to the sum's dtype"
    return source, Miss("no_rms_norm", product, text)


def _norm(
    wiring: Wiring, root: int, source: Value, output: Value, gamma: Value, epsilon: Value | float, numerics: str,
    inner: set[int], addends: tuple[Value, Value] | None,
) -> Norm:  # fmt: skip
    inner = inner - {output[0]}
    own = frozenset(inner | _shown(wiring, inner) - {output[0]})
    if addends is None:
        return Norm(root, source, output, gamma, epsilon, numerics, own)
    dtype = wiring.dtype(addends[0])
    total = next((r for r in wiring.readers(source) if wiring.type(r) in CASTS and wiring.dtype((r, 0)) == dtype), None)
    rounded = None if total is None else (total, 0)
    return Norm(root, None, output, gamma, epsilon, "any", own | {source[0]}, addends, rounded, source[0])


def _shown(wiring: Wiring, inner: set[int]) -> set[int]:
    """Views of what is computed inside."""
    found: set[int] = set()
    pending = list(inner)
    while pending:
        op = pending.pop()
        views = {r for r in wiring.readers((op, 0)) if wiring.shows(r) == (op, 0)} - found - inner
        found |= views
        pending += views
    return found


def _is_inverse(wiring: Wiring, root: int) -> bool | None:
    """Whether it is 1 / sqrt(x); None for another power."""
    if wiring.type(root) != "Pow":
        return wiring.type(root) == "Rsqrt"
    return {-0.5: True, 0.5: False}.get(wiring.number(wiring.input(root, 1)) or 0.0)


def _is_reciprocal(wiring: Wiring, op: int, value: Value) -> bool:
    kind, inputs = wiring.type(op), (*wiring.inputs(op), None, None)
    if kind == "Pow":
        return inputs[0] == value and wiring.number(inputs[1]) == -1
    if kind in ("RealDiv", "Div"):
        return inputs[1] == value and wiring.number(inputs[0]) == 1
    return kind in ("Reciprocal", "Inv")


def _is_times_one(wiring: Wiring, op: int) -> bool:
    if wiring.type(op) == "Muls":
        return wiring.node(op).attrs.get("value") == 1
    return wiring.type(op) == "Mul" and any(wiring.number(x) == 1 for x in wiring.inputs(op))


def _mean_and_epsilon(wiring: Wiring, biased: Value) -> tuple[Value | None, Value | float | None]:
    op = biased[0]
    kind = wiring.type(op)
    if kind == "Adds":
        number = wiring.node(op).attrs.get("value")
        return wiring.input(op, 0), float(number) if isinstance(number, (int, float)) else None
    if kind not in ("Add", "AddV2"):
        return biased, None
    a, b = wiring.input(op, 0), wiring.input(op, 1)
    if a is None or b is None:
        return None, None
    if _adder(wiring, wiring.past_views(a)) is None:
        a, b = b, a
    number = wiring.number(b)
    return wiring.past_views(a), b if number is None else number


def _adder(wiring: Wiring, mean: Value) -> int | None:
    """The op that adds squares up, behind a division or a product with 1 / n or not."""
    op = mean[0]
    if wiring.type(op) in ("RealDiv", "Div", "Mul", "Muls"):
        inputs = [wiring.past_views(x)[0] for x in wiring.inputs(op) if x is not None]
        op = next((x for x in inputs if wiring.type(x) in _SUMS), op)
    return op if wiring.type(op) in (*_SUMS, *_MEANS) else None


def _axes(wiring: Wiring, adder: int) -> tuple[float, ...] | None:
    found = wiring.node(adder).attrs.get("axes")
    return tuple(float(x) for x in found if isinstance(x, (int, float))) if isinstance(found, list) else None


def _is_last(axes: tuple[float, ...], shape: tuple[int, ...] | None) -> bool:
    if axes == (-1,):
        return True
    return len(axes) == 1 and shape is not None and axes[0] == len(shape) - 1


def _averages(wiring: Wiring, mean: Value, adder: int, shape: tuple[int, ...] | None) -> bool:
    op = mean[0]
    if op == adder:
        return wiring.type(op) in _MEANS
    size = shape[-1] if shape else None
    held = wiring.node(op).attrs.get("value") if wiring.type(op) == "Muls" else None
    numbers = [n for x in wiring.inputs(op) if (n := wiring.number(x)) is not None]
    number = float(held) if isinstance(held, (int, float)) else numbers[0] if numbers else None
    if number is None or size is None or size <= 0:
        return False
    return number == size if wiring.type(op) in ("RealDiv", "Div") else abs(number * size - 1) < 1e-6


def _squared(wiring: Wiring, op: int) -> list[Value]:
    """The operands of x ** 2 or x * x."""
    kind, inputs = wiring.type(op), [x for x in wiring.inputs(op) if x is not None]
    if kind == "Square":
        return inputs[:1]
    if kind == "Pow" and len(inputs) == 2 and wiring.number(inputs[1]) == 2:
        return inputs[:1]
    return inputs if kind == "Mul" and len(inputs) == 2 else []


def _source(wiring: Wiring, value: Value | None) -> Value | None:
    """x before it was converted to float32."""
    found = wiring.widened(value)
    if found is not None or value is None:
        return found
    value = wiring.past_views(value)
    return value if wiring.dtype(value) in HALF else None


def _scaled(wiring: Wiring, root: int, source: Value, full: tuple[int, ...] | None) -> tuple[int, set[int]] | None:
    """(x * rstd or x / root, ops from the root to it). full: shape of x there."""
    pending: list[tuple[Value, set[int], bool]] = [((root, 0), set(), bool(_is_inverse(wiring, root)))]
    for value, path, inverse in pending:
        rows = wiring.shape(value)
        is_row = full is None or rows is None or (len(rows) == len(full) and rows == (*full[:-1], 1))
        for reader in wiring.readers(value):
            kind = wiring.type(reader)
            if _is_reciprocal(wiring, reader, value):
                pending.append(((reader, 0), path | {reader}, not inverse))
            elif (
                _is_times_one(wiring, reader)
                or wiring.shows(reader) == value
                or (kind in CASTS and wiring.dtype((reader, 0)) == "float32")
            ):
                pending.append(((reader, 0), path | {reader}, inverse))
            elif kind in (("Mul",) if inverse else ("RealDiv", "Div")) and is_row:
                a, b = (*wiring.inputs(reader), None, None)[:2]
                other = b if a == value and inverse else a
                if other is not None and other != value and _source(wiring, other) == source:
                    return reader, path
        if len(pending) > 8:
            break
    return None


def _times_vector(wiring: Wiring, value: Value) -> Iterator[tuple[int, Value | None]]:
    """(product, vector) of x times a vector of x's last dim; the vector None where it is something else."""
    chain = {value}
    for reader in wiring.all_readers(value):
        if wiring.shows(reader) in chain:
            chain.add((reader, 0))
        elif wiring.type(reader) == "Mul":
            a, b = (*wiring.inputs(reader), None, None)[:2]
            other = b if a in chain else a
            if other is not None:
                shape, full = wiring.shape(wiring.widened(other) or other), wiring.shape(value)
                is_vector = shape is None or full is None or is_vector_of(shape, full[-1] if full else None)
                yield reader, other if is_vector else None
        elif wiring.type(reader) == "Muls":
            yield reader, None


def is_vector_of(shape: tuple[int, ...], size: int | None) -> bool:
    """(size) or (1, .., 1, size)."""
    return bool(shape) and shape[-1] == size and all(x == 1 for x in shape[:-1])


def _addends(wiring: Wiring, source: Value) -> tuple[Value, Value] | None:
    """The two 16-bit tensors of one dtype that ``source`` adds in float32."""
    op = source[0]
    if wiring.type(op) not in ("Add", "AddV2") or wiring.dtype(source) != "float32":
        return None
    a, b = (_source(wiring, x) for x in (*wiring.inputs(op), None, None)[:2])
    if a is None or b is None or wiring.dtype(a) != wiring.dtype(b) or wiring.dtype(a) not in HALF:
        return None
    return a, b


def leaks(wiring: Wiring, norm: Norm) -> tuple[int, int] | None:
    """(op inside the norm, op outside that reads it)."""
    own = set(norm.inner)
    for value in (norm.output, norm.total):
        if value is not None:
            own.add(value[0])
    visible = {norm.output, norm.total}
    for op in sorted(norm.inner):
        for value in ((op, index) for index in range(max(1, len(wiring.node(op).outputs)))):
            for reader in wiring.readers(value) if value not in visible else ():
                if reader not in own:
                    return op, reader
    return None
