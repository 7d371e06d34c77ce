"""TestCase and run_tests, which tests of operators are written with."""

from __future__ import annotations

import os
import random
import unittest
from collections.abc import Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch

from torch_npu.testing.common_utils import set_npu_device


def run_tests() -> None:
    """unittest.main()."""
    unittest.main()


class TestCase(unittest.TestCase):
    """unittest's, with comparisons of tensors."""

    precision = 1e-5
    maxDiff = None
    npu_device: str

    @classmethod
    def setUpClass(cls) -> None:
        cls.npu_device = set_npu_device()

    def setUp(self) -> None:
        seed = int(os.environ.get("SEED", "666"))
        torch.manual_seed(seed)
        random.seed(seed)

    def assertEqual(self, first: Any, second: Any, msg: Any = None, prec: float | None = None, **options: Any) -> None:
        """Tensors and numbers: no further apart than ``prec``; anything else: equal."""
        prec = self.precision if prec is None else prec
        msg = msg or options.get("message")
        if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
            torch.testing.assert_close(
                first, second, rtol=0, atol=prec, equal_nan=True, check_dtype=bool(options.get("exact_dtype")), msg=msg
            )
        elif all(isinstance(x, (Number, torch.Tensor)) and not isinstance(x, bool) for x in (first, second)):
            self.assertLessEqual(abs(first - second), prec, msg)
        else:
            super().assertEqual(first, second, msg)

    def assertRtolEqual(
        self, x: Any, y: Any, prec: float = 1e-4, prec16: float = 1e-3, auto_trans_dtype: bool = False,
        message: Any = None,
    ) -> None:  # fmt: skip
        """|x - y| or |x - y| / max(|x|, |y|) is at most ``prec`` (16-bit: ``prec16``), but for that share of x."""
        if isinstance(x, Sequence) and isinstance(y, Sequence):
            for a, b in zip(x, y, strict=True):
                self.assertRtolEqual(a, b, prec, prec16, auto_trans_dtype, message)
            return
        if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and auto_trans_dtype:
            x = x.to(y.dtype)
        if isinstance(x, torch.Tensor) and x.dtype == torch.bfloat16 == getattr(y, "dtype", None):
            self.assertTrue(x.shape == y.shape and torch.allclose(x, y, rtol=prec16, atol=prec16), message)
            return
        a, b = (t.detach().cpu().numpy() if isinstance(t, torch.Tensor) else np.asarray(t) for t in (x, y))
        self.assertTupleEqual((a.shape, a.dtype), (b.shape, b.dtype), message or "shape or dtype")
        if a.dtype == np.bool_:
            self.assertTrue(bool((a == b).all()), message)
            return
        limit, smallest = (prec16, 6e-8) if a.dtype == np.float16 else (prec, 1e-9)
        nans = np.isnan(a)
        self.assertTrue(bool((nans == np.isnan(b)).all()), message)
        with np.errstate(invalid="ignore"):
            difference = np.where(nans | (a == b), 0, np.abs(b - a))
            far = difference > limit
            relatively = difference / (np.maximum(np.abs(a), np.abs(b)) + smallest) > limit
        self.assertFalse(
            relatively.any() and far.any() and min(relatively.sum(), far.sum()) > a.size * limit,
            message or f"{far.sum()} of {a.size} elements are further apart than {limit}",
        )
