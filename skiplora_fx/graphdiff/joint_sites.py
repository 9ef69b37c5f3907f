"""One numbering of the sites of two runs: a record's ``site`` is a place in its own graph's list."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from .records import SiteRecord, StageRecord


def joint_sites(
    before: Sequence[SiteRecord], after: Sequence[SiteRecord]
) -> tuple[tuple[SiteRecord, ...], dict[int, int]]:
    """Return the sites of both, those of ``after`` first and as they are, and the numbers in it of those of ``before``.

    Sites are the same if name and adapter are; those of a layer that is called several times in the order of its calls.
    """
    known: dict[tuple[str, str], list[int]] = defaultdict(list)
    for site in after:
        known[site.name, site.adapter].append(site.index)
    joint, numbers = list(after), {}
    for site in before:
        same = known[site.name, site.adapter]
        numbers[site.index] = same.pop(0) if same else len(joint)
        if numbers[site.index] == len(joint):
            joint.append(replace(site, index=len(joint)))
    return tuple(joint), numbers


def renumbered(stage: StageRecord, numbers: Mapping[int, int]) -> StageRecord:
    """Return a stage in which sites have other numbers, in nodes and in conditions."""
    nodes = tuple(node if node.site is None else replace(node, site=numbers[node.site]) for node in stage.nodes)
    conditions = stage.conditions
    if conditions is not None:
        rows = tuple((numbers[site], low, high) for site, low, high in conditions.rows)
        conditions = replace(conditions, rows=rows)
    return replace(stage, nodes=nodes, conditions=conditions)
