"""Copies of graphs: Dynamo, and whoever owns a graph that was given to us, reads the original again."""

from __future__ import annotations

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
        nodes: dict[fx.Node, fx.Node] = {}
        result = graph.graph_copy(original.graph, nodes)
        output = graph.output(result)
        output.meta = dict(original.graph.output_node().meta)
        for old, new in nodes.items():
            if old.op == "placeholder":
                set_placeholder_source(new, like=old)
        gm = fx.GraphModule(original, graph)
        gm.meta = dict(original.meta)
        return cls(gm, nodes)
