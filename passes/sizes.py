"""Sizes of tensors where some of them are only known when the graph runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sympy
import torch
from torch import SymInt, Tensor, fx

from .._torch_compat import PythonReferenceAnalysis, sympy_interp
from ..errors import InternalError


def symbols_of(nodes: Iterable[fx.Node]) -> list[sympy.Symbol]:
    """Return the symbols in the shapes and strides of the nodes' tensors, in a fixed order."""
    symbols: set[sympy.Symbol] = set()
    for node in nodes:
        value = node.meta.get("val")
        numbers = (*value.shape, *value.stride()) if isinstance(value, Tensor) else ()
        symbols.update(*(number.node.expr.free_symbols for number in numbers if isinstance(number, SymInt)))
    return sorted(symbols, key=str)


class Sizes:
    """Gives the nodes that hold symbolic sizes in a graph, from the shapes of its placeholders."""

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._known: dict[sympy.Expr, fx.Node | tuple[fx.Node, int]] = {}
        for node in graph.find_nodes(op="placeholder"):
            self._learn(node)

    def symbol(self, symbol: sympy.Symbol) -> fx.Node:
        """Return the node that holds ``symbol``."""
        node = self._node(symbol)
        assert isinstance(node, fx.Node)
        return node

    def of(self, sizes: Sequence[int | SymInt]) -> list[int | fx.Node]:
        """Return ``sizes``, each symbolic one as a node."""
        return [size if isinstance(size, int) else self._node(size.node.expr) for size in sizes]

    def _learn(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        if isinstance(value, SymInt):
            self._known.setdefault(value.node.expr, node)
        elif isinstance(value, Tensor):
            for dim, size in enumerate(value.shape):
                if isinstance(size, SymInt):
                    self._known.setdefault(size.node.expr, (node, dim))

    def _node(self, expression: sympy.Expr) -> int | fx.Node:
        if expression.is_Integer:
            return int(expression)
        known = self._known.get(expression)
        if known is None:
            return self._computed(expression)
        if isinstance(known, tuple):
            known = self._known[expression] = self._graph.call_function(torch.ops.aten.sym_size.int, known)
            known.meta["val"] = known.args[0].meta["val"].shape[known.args[1]]
        return known

    def _computed(self, expression: sympy.Expr) -> fx.Node:
        missing = [symbol for symbol in expression.free_symbols if symbol not in self._known]
        if missing:
            raise InternalError(f"a tensor has a size of {expression}, but no input of the graph gives {missing}")
        nodes = {symbol: self.symbol(symbol) for symbol in expression.free_symbols}
        tracer = fx.proxy.GraphAppendingTracer(self._graph)
        proxies: dict[Any, Any] = {symbol: fx.Proxy(node, tracer) for symbol, node in nodes.items()}
        result: fx.Proxy = sympy_interp(PythonReferenceAnalysis, proxies, expression)
        values: dict[Any, Any] = {symbol: node.meta["val"] for symbol, node in nodes.items()}
        result.node.meta["val"] = sympy_interp(PythonReferenceAnalysis, values, expression)
        return result.node
