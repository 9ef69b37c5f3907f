"""Nodes as rows of a table in which each text and each row is held once: most of a model's layers are alike."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from ..visible import visible
from .records import NodeRecord
from .text import call_text, type_text

FIELDS = (
    "name",
    "op",
    "target",
    "call",
    "types",
    "strides",
    "device",
    "module",
    "module class",
    "source",
    "origin",
    "site",
    "condition",
    "region",
    "FLOPs",
)
"""The columns of :meth:`Records.of`; the first eleven are places among the texts, the others numbers or None."""

Row = tuple[int | None, ...]
_T = TypeVar("_T", bound=Hashable)


class Table(Generic[_T]):
    """Values in the order in which they came, each once."""

    def __init__(self) -> None:
        self._places: dict[_T, int] = {}

    def place(self, value: _T) -> int:
        """Return where ``value`` is, which is put at the end if it is new."""
        return self._places.setdefault(value, len(self._places))

    @property
    def values(self) -> list[_T]:
        """All of them."""
        return list(self._places)


class Records:
    """What is known of nodes.

    Attributes:
        texts: what the rows refer to, as it may be shown.
        rows: one for each record.
    """

    def __init__(self) -> None:
        self.texts: Table[str] = Table()
        self.rows: Table[Row] = Table()

    def text(self, text: str) -> int:
        """Return the place of a text."""
        return self.texts.place(visible(text))

    def of(self, node: NodeRecord) -> int:
        """Return the place of a node's row."""
        texts = (
            node.name,
            node.op,
            node.target,
            call_text(node),
            types(node),
            " ".join(f"[{', '.join(map(str, tensor.stride))}]" for tensor in node.tensors),
            " ".join(dict.fromkeys(tensor.device for tensor in node.tensors)),
            node.module,
            node.module_type,
            node.source,
            ", ".join(node.origin),
        )
        numbers = (node.site, node.condition, node.region, node.flops)
        return self.rows.place((*map(self.text, texts), *numbers))


def types(node: NodeRecord) -> str:
    """Return the types of a node's results."""
    return " ".join(map(type_text, node.tensors))
