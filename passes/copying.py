"""Copies of graphs: Dynamo, and whoever owns a graph that was given to us, reads the original again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from .._torch_compat import set_placeholder_source


@dataclass(frozen=True)
class GraphCopy:
    """A copy of a graph module, and where each of the original's nodes went."""

    gm: fx.GraphModule
    nodes: dict[fx.Node, fx.Node]

    @classmethod
    def of(cls, original: fx.GraphModule) -> GraphCopy:
        """Copy the graph and its output; parameters, buffers and submodules are shared."""
        graph = fx.Graph()
        nodes = _copy_into(graph, original.graph)
        gm = fx.GraphModule(original, graph)
        gm.meta = dict(original.meta)
        return cls(gm, nodes)


@contextlib.contextmanager
def kept_whole(graph: fx.Graph) -> Iterator[None]:
    """Put a graph back as it was, its owner's submodules as well, if what is done to it inside fails.

    Its nodes are new ones then, in the old order, with the old metadata.
    """
    kept = fx.Graph()
    _copy_into(kept, graph)
    owner = graph.owning_module
    modules = dict(owner.named_children()) if owner is not None else {}
    try:
        yield
    except Exception:
        for node in graph.nodes:
            node.args, node.kwargs = (), {}
        for node in list(graph.nodes):
            graph.erase_node(node)
        _copy_into(graph, kept)
        if owner is not None:
            for name in [name for name, _ in owner.named_children() if name not in modules]:
                owner.delete_submodule(name)
        raise


def _copy_into(empty: fx.Graph, graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Copy a graph with its output; return where each other node went."""
    nodes: dict[fx.Node, fx.Node] = {}
    output = empty.output(empty.graph_copy(graph, nodes))
    output.meta = dict(graph.output_node().meta)
    for old, new in nodes.items():
        if old.op == "placeholder":
            set_placeholder_source(new, like=old)
    return nodes
