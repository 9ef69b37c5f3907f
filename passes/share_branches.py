"""Let regions that are alike share their branches, so that each is compiled once."""

from __future__ import annotations

from collections.abc import Hashable
from typing import cast

from torch import fx

from .alike import structure
from .operators import COND


def share_branches(graph: fx.Graph) -> None:
    """Have every ``cond`` whose branch does what an earlier one does take that branch.

    In:
        A backward as ``predicate_backward`` left it: the branches read nothing but what they are given.
    Out:
        The same graph; of branches that are alike the first is left. Inductor lowers a submodule once, however many
        nodes name it, and writes it as one function. Layers of one kind have regions of one kind, so that the
        number of branches does not grow with the number of layers.
    Terms:
        *alike*: the same operators on the same arguments in the same order, on tensors of the same dtype, device,
        sizes and strides, which begin at a multiple of 16 bytes or do not.
    """
    owner = graph.owning_module
    assert owner is not None
    first: dict[Hashable, str] = {}
    dropped: dict[str, None] = {}
    for cond in graph.find_nodes(op="call_function", target=COND):
        for branch in cast(tuple[fx.Node, fx.Node], cond.args[1:3]):
            name = str(branch.target)
            kept = first.setdefault(structure(cast(fx.GraphModule, owner.get_submodule(name)).graph, {}), name)
            if kept != name:
                branch.target = kept
                dropped[name] = None
    for name in dropped:
        owner.delete_submodule(name)
