"""Hashes of what nodes compute, of who uses them, and of what conditions mean; none looks at names."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from .records import Diagram, NodeRecord, StageRecord, without_number


def literals(argument: Any) -> str:
    """Return an argument as text in which every node is the same."""
    return json.dumps(_blank(argument), sort_keys=True)


def _blank(argument: Any) -> Any:
    if isinstance(argument, (list, tuple)):
        return [_blank(part) for part in argument]
    if isinstance(argument, Mapping):
        if len(argument) == 1 and isinstance(argument.get("node"), str):
            return {"node": ""}
        return {key: _blank(part) for key, part in argument.items()}
    return argument


def upstream_prints(stage: StageRecord, identities: Mapping[str, str]) -> dict[str, str]:
    """Return for each node a hash of all that it is computed from (Merkle's: of itself and its inputs' hashes).

    Args:
        stage: a graph.
        identities: for each input that the other graph has as well what it is called in both.
    """
    prints: dict[str, str] = {}
    for node in stage.nodes:
        if node.op in ("placeholder", "get_attr"):
            known = identities.get(node.name)
            own = ("own", id(stage), node.name) if known is None else ("shared", known)
            prints[node.name] = _digest(*own)
        else:
            prints[node.name] = _digest(*kind_of(node), *(prints[name] for name in node.inputs))
    return prints


def downstream_prints(stage: StageRecord) -> dict[str, str]:
    """Return for each node a hash of itself and of all that is computed from it, and where it goes in there."""
    readers: dict[str, list[str]] = defaultdict(list)
    prints: dict[str, str] = {}
    for node in reversed(stage.nodes):
        # Outputs come and go: a graph's last node says nothing of what it returns.
        own = prints[node.name] = (
            _digest("output") if node.op == "output" else _digest(*kind_of(node), *sorted(readers[node.name]))
        )
        for place, name in enumerate(node.inputs):
            readers[name].append(own if node.op == "output" else f"{own} {place}")
    return prints


def condition_prints(conditions: Diagram) -> list[str]:
    """Return a hash for each condition: equal for equal functions, as reduced ordered diagrams are canonical."""
    prints = ["never", "always"]
    for site, low, high in conditions.rows:
        prints.append(_digest(site, prints[low], prints[high]))
    return [prints[root] for root in conditions.roots]


def kind_of(node: NodeRecord) -> tuple[Any, ...]:
    """Return what a node is, whatever it reads and is called."""
    target = without_number(node.target) if node.op == "placeholder" else node.target
    return (node.op, target, literals(node.args), literals(node.kwargs), node.tensors)


def _digest(*parts: Any) -> str:
    return blake2b(repr(parts).encode(), digest_size=12).hexdigest()
