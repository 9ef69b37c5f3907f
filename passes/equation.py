"""The equation of an einsum, read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import fx

from .dataflow import shape_of


@dataclass(frozen=True)
class Equation:
    """What ``einsum("...i,ri->...r", x, a)`` says.

    Attributes:
        terms: the operands in their order, and at the end the call itself, each with its letters, the dots left out.
        sizes: how long the dimension of each letter is.
        leading: the sizes of what the dots stand for in the result.
    """

    terms: tuple[tuple[fx.Node, str], ...]
    sizes: dict[str, Any]
    leading: tuple[Any, ...]

    @classmethod
    def of(cls, call: fx.Node) -> Equation:
        """Read the equation of a call of einsum."""
        given = call.args[1] if isinstance(call.args[1], (tuple, list)) else call.args[1:]
        operands = [operand for operand in given if isinstance(operand, fx.Node)]
        written = str(call.args[0]).replace(" ", "").replace("...", "")
        inputs, arrow, result = written.partition("->")
        result = result if arrow else _implied(inputs)
        terms = tuple(zip([*operands, call], [*inputs.split(","), result], strict=True))
        sizes: dict[str, Any] = {}
        for node, letters in terms:
            sizes.update(zip(reversed(letters), reversed(shape_of(node)), strict=False))
        return cls(terms, sizes, shape_of(call)[: len(shape_of(call)) - len(result)])

    def letters(self, *nodes: fx.Node) -> set[str]:
        """Return the letters of operands, or of the result."""
        return {letter for node, letters in self.terms if node in nodes for letter in letters}

    def size(self, letters: set[str]) -> Any:
        """Return the product of the sizes of ``letters``."""
        return math.prod(self.sizes[letter] for letter in letters)


def _implied(inputs: str) -> str:
    """Return the result that an equation without an arrow has: the letters that occur once, in their order."""
    return "".join(sorted(letter for letter in set(inputs) - {","} if inputs.count(letter) == 1))
