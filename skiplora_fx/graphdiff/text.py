"""Nodes and stages as lines of text, and the unified diff of two stages."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from ..visible import visible
from .align import Alignment, Pair
from .records import NodeRecord, StageRecord, TensorRecord


def node_line(node: NodeRecord, names: Mapping[str, str] | None = None) -> str:
    """Return one line for a node: what it computes, of what type, in which module and region.

    Args:
        node: a node.
        names: other names for nodes.
    """
    notes = [*map(type_text, node.tensors), *filter(None, [node.module])]
    notes += [] if node.region is None else [f"region {node.region}"]
    line = call_text(node, names)
    return visible(f"{line}  # {' '.join(notes)}" if notes else line)


def call_text(node: NodeRecord, names: Mapping[str, str] | None = None) -> str:
    """Return what a node computes: the first part of its line, before :func:`visible`."""
    known = names or {}

    def name_of(name: str) -> str:
        return known.get(name, name)

    arguments = [_argument(argument, name_of) for argument in node.args]
    arguments += [f"{key}={_argument(value, name_of)}" for key, value in node.kwargs.items()]
    if node.op == "output":
        return f"return {', '.join(arguments)}"
    if node.op in ("placeholder", "get_attr"):
        return f"{name_of(node.name)} = {node.op}"
    return f"{name_of(node.name)} = {node.target}({', '.join(arguments)})"


def type_text(tensor: TensorRecord) -> str:
    """Return a tensor's type: ``float32[2, 3]``."""
    return f"{tensor.dtype}[{', '.join(map(str, tensor.shape))}]"


def _argument(argument: Any, name_of: Callable[[str], str]) -> str:
    if isinstance(argument, (list, tuple)):
        return f"[{', '.join(_argument(part, name_of) for part in argument)}]"
    if not isinstance(argument, Mapping):
        return json.dumps(argument, ensure_ascii=False) if isinstance(argument, str) else str(argument)
    ((kind, value),) = argument.items() if len(argument) == 1 else (("", argument),)
    if kind == "node":
        return name_of(str(value))
    if kind == "slice":
        return ":".join("" if part is None else _argument(part, name_of) for part in value)
    if kind == "dict" and isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_argument(part, name_of)}' for key, part in value.items())}}}"
    return str(value)


def pair_lines(pair: Pair, names: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the lines of one pair, each with its sign: a space, ``-``, ``+``, or ``~`` for what a region took in."""
    if pair.change == "same" or pair.fields == ("region",):
        yield " " if pair.change == "same" else "~", node_line(pair.node, names)
        return
    if pair.before is not None:
        yield "-", node_line(pair.before)
    if pair.after is not None:
        yield "+", node_line(pair.after, names)


def names_after(alignment: Alignment) -> dict[str, str]:
    """Return what nodes after are called in text: as before where they were there, so that numbers do not matter."""
    known = {there: here for here, there in alignment.after_of.items()}
    before = alignment.before.by_name
    new = (name for name in alignment.after.by_name if name not in known)
    return known | {name: f"{name}_new" if name in before else name for name in new}


def unified(alignment: Alignment, labels: tuple[str, str], shown: Collection[str] | None = None) -> str:
    """Return the unified diff of two stages; empty if they are the same.

    Args:
        alignment: of the two.
        labels: what they are called.
        shown: names of nodes, before and after, if not all are to be shown.
    """
    if not alignment.changed:
        return ""
    before = _lines(alignment.before, {}, shown)
    after = _lines(alignment.after, names_after(alignment), shown)
    lines = difflib.unified_diff(before, after, visible(labels[0]), visible(labels[1]), lineterm="")
    return "\n".join(lines)


def _lines(stage: StageRecord, names: Mapping[str, str], shown: Collection[str] | None) -> list[str]:
    return [node_line(node, names) for node in stage.nodes if shown is None or node.name in shown]
