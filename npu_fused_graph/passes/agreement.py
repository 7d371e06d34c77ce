"""Compares what the ranks decided before any of them runs: a fused op here and an all-reduce there would hang."""

from __future__ import annotations

from collections.abc import Sequence

from torch.utils._mode_utils import no_dispatch

from npu_fused_graph import comm
from npu_fused_graph.errors import CommunicationError
from npu_fused_graph.passes.verdicts import FusionSite


def compare(sites: Sequence[FusionSite]) -> None:
    """Every rank of every group the sites name must have decided the same.

    All of these ranks call it for the same graph, in the same order. Raises CommunicationError with the first
    difference, or naming the ranks that did not come within ``NFG_TIMEOUT``.
    """
    by_group: dict[str, list[FusionSite]] = {}
    for site in sites:
        by_group.setdefault(site.group, []).append(site)
    for group, of_group in by_group.items():
        try:
            found = comm.communicator(group)
        except CommunicationError:
            continue  # nobody can fuse over a group that does not exist
        with no_dispatch():  # torch.compile calls passes under a mode in which tensors have no data
            found.agree([decision(site) for site in of_group])


def decision(site: FusionSite) -> str:
    """What the other ranks must have decided, too. In front of the " = ": where, which may differ."""
    what = "left as it is"
    if site.is_fused:
        made_of = site.facts.get("target", "")
        what = f"fused into {site.op}{f' as {made_of}' if ' + ' in made_of else ''} {site.facts['shape']}"
    return f"{site.layer or site.node} = {what}"
