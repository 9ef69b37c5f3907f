"""Turn each region of the backward into a ``cond``, so that it is executed only when somebody needs it."""

from __future__ import annotations

import operator
from typing import cast

import sympy
import torch
from torch import fx

from .._torch_compat import FORCE_STRIDE_ORDER, stable_topological_sort
from ..gate import EVALUATE_CONDITIONS
from . import operators
from .branches import build_branches, carried_conditions
from .conditions import Condition, flatten
from .find_regions import Filler, Region, Regions
from .liveness import Liveness, is_gate
from .operators import COND
from .sizes import Sizes


def predicate_backward(graph: fx.Graph, liveness: Liveness, found: Regions) -> None:
    """Replace each region by a ``torch.ops.higher_order.cond``.

    In:
        A backward graph, functional and aten-level, with the analyses of ``liveness`` and ``find_regions``
        made on it; an owning module to hang the branches on.
    Out:
        The same graph, edited, without gates. One ``skiplora::evaluate_conditions`` brings the decisions to
        the host and evaluates every condition; each region is one ``cond`` on one of them. Its true branch
        is the region; its false branch gives, for each output, what its filler says: a copy of the addend
        that is left of a sum, real zeros where a zero is read, or memory that nobody will read.
    Terms:
        *branch*: a submodule of the graph's module, with the region's inputs as its placeholders. Branches
        agree in the strides of their outputs, and return no input, as ``cond`` demands.
    """
    _Rewrite(graph, liveness, found).run()


class _Rewrite:
    """The state of one call of ``predicate_backward``."""

    def __init__(self, graph: fx.Graph, liveness: Liveness, found: Regions) -> None:
        self._graph = graph
        self._liveness = liveness
        self._found = found
        self._evaluations: list[Condition] = []
        self._indices = {condition: self._add(condition) for condition in self._run_conditions()}
        self._blocks = {block: self._add(*block) for block in self._carried_blocks()}
        self._evaluated = self._evaluate()
        self._sizes = Sizes(graph)
        self._results: dict[fx.Node, fx.Node] = {}
        self._kept: dict[fx.Node, fx.Node] = {}
        self._inside = {node for region in found.regions for node in region.nodes}

    def run(self) -> None:
        for number, region in enumerate(self._found.regions):
            self._replace(number, region)
        for node, result in self._results.items():
            node.replace_all_uses_with(result)
        self._drop_open_gates()
        stable_topological_sort(self._graph)
        self._graph.eliminate_dead_code()
        self._graph.lint()

    def _run_conditions(self) -> dict[Condition, None]:
        return dict.fromkeys(region.condition for region in self._found.regions)

    def _carried_blocks(self) -> dict[tuple[Condition, ...], None]:
        return dict.fromkeys(block for region in self._found.regions if (block := carried_conditions(region)))

    def _add(self, *conditions: Condition) -> int:
        """Have ``conditions`` evaluated side by side; return the place of the first."""
        self._evaluations += conditions
        return len(self._evaluations) - len(conditions)

    def _evaluate(self) -> fx.Node:
        """Write the node that evaluates all conditions: bool, on the CPU."""
        opens = next(cast(fx.Node, node.args[1]) for node in self._graph.nodes if is_gate(node))
        table, roots = flatten(self._evaluations)
        with self._graph.inserting_after(opens):
            node = self._graph.call_function(EVALUATE_CONDITIONS, (opens, table, roots))
        with opens.meta["val"].fake_mode:
            node.meta["val"] = torch.empty(len(self._evaluations), dtype=torch.bool, device="cpu")
        return node

    def _replace(self, number: int, region: Region) -> None:
        branches = build_branches(region, self._found.open_gates, self._carried(region), self._symbol)
        names = [
            self._hang(f"skiplora_region_{number}_true", branches.true),
            self._hang(f"skiplora_region_{number}_false", branches.false),
        ]
        operands = tuple(self._with_strides(operand) for operand in branches.operands)
        with self._graph.inserting_before(region.nodes[-1]):
            predicate = self._graph.call_function(
                torch.ops.aten.select.int, (self._evaluated, 0, self._indices[region.condition])
            )
            predicate.meta["val"] = self._evaluated.meta["val"][0]
            true, false = (self._graph.get_attr(name) for name in names)
            cond = self._graph.call_function(COND, (predicate, true, false, operands))
            cond.meta["val"] = tuple(node.meta["val"] for node in region.outputs)
            for position, node in enumerate(region.outputs):
                result = self._graph.call_function(operator.getitem, (cond, position))
                result.meta = dict(node.meta)
                self._results[node] = result

    def _carried(self, region: Region) -> fx.Node | None:
        """Return a node that holds the region's carried conditions, or None if it carries nothing."""
        block = carried_conditions(region)
        if not block:
            return None
        start = self._blocks[block]
        with self._graph.inserting_after(self._evaluated):
            part = self._graph.call_function(
                torch.ops.aten.slice.Tensor, (self._evaluated, 0, start, start + len(block))
            )
        part.meta["val"] = self._evaluated.meta["val"][start : start + len(block)]
        return part

    def _with_strides(self, operand: fx.Node) -> fx.Node:
        """Return an operand with the strides that it was traced with: of a copy Inductor would choose others.

        A branch is compiled for those, and nothing else holds Inductor to them.
        """
        if operators.name_of(operand) != "aten.clone" or operand in self._inside:
            return operand
        if operand not in self._kept:
            with self._graph.inserting_after(operand):
                strides = self._sizes.of(operand.meta["val"].stride())
                kept = self._graph.call_function(FORCE_STRIDE_ORDER, (operand, strides))
            kept.meta = dict(operand.meta)
            self._kept[operand] = kept
        return self._kept[operand]

    def _symbol(self, symbol: sympy.Symbol) -> fx.Node:
        with self._graph.inserting_after(self._evaluated):
            return self._sizes.symbol(symbol)

    def _hang(self, name: str, branch: fx.GraphModule) -> str:
        owner = self._graph.owning_module
        assert owner is not None
        owner.add_submodule(name, branch)
        return name

    def _drop_open_gates(self) -> None:
        for gate in self._found.open_gates:
            gate.replace_all_uses_with(cast(fx.Node, gate.args[0]))


def describe(liveness: Liveness, found: Regions) -> str:
    """Return one line for each region: its condition, its nodes, and what stands in for its outputs."""
    lines = []
    for number, region in enumerate(found.regions):
        products = sum(operators.name_of(node) in operators.ZERO_IF_ANY for node in region.nodes)
        lines.append(
            f"region {number}: {len(region.nodes)} nodes ({products} products), {len(region.outputs)} outputs, "
            f"runs if {liveness.conditions.text(region.condition)}"
        )
        lines += [f"  {node.name}: {_filler_text(liveness, filler)}" for node, filler in region.outputs.items()]
    return "\n".join(lines)


def _filler_text(liveness: Liveness, filler: Filler) -> str:
    always = [addend.name for addend, condition in filler.carried if condition == liveness.conditions.true]
    if always:
        return f"else {always[0]}"
    rest = "zeros" if filler.zero else "uninitialised"
    carried = (f"{addend.name} if {liveness.conditions.text(c)}" for addend, c in filler.carried)
    return "else " + ", ".join([*carried, rest])
