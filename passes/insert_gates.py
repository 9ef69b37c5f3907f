"""Write the norm ratio, the decision and the gate into a graph, for each adapter found."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple

import torch
from torch import fx

from .._torch_compat import set_placeholder_source
from ..errors import InternalError
from ..gate import DECIDE, GATE, HOLD
from ..site import Site
from .border_gates import write_border_gates
from .copying import GraphCopy
from .dataflow import value_of
from .input_gates import write_input_gates
from .memory import sharing_memory, writes


@dataclass(frozen=True)
class GatedGraph:
    """A graph with gates.

    Attributes:
        gm: takes one more input, at the end (only ``**kwargs`` come later): the thresholds, float32 ``[n + k]``.
            Returns two more outputs, at the end: the ratios, float32 ``[n]``, and the decisions, bool ``[n + k]``, True
            where open.
        thresholds: that input.
        sites: the sites, ``n`` of them; ``Site.index`` is the position in those vectors.
        gates: for each gate in the graph the indices of its sites; of a border its position in the vectors.
        reached: for each gate whether a gradient that reaches what its sites train must have come through it or goes on
            into it. With the scope ``"input"`` it may end before: what the layer reads may want none.
        trained: the nodes of ``gm`` that hold what any site trains, each once.
        copies: where the nodes of the original went, for each ``Site.body``.
        borders: the inputs of the original, ``k`` of them, whose gradients go on into other graphs.
    """

    gm: fx.GraphModule
    thresholds: fx.Node
    sites: tuple[Site, ...]
    gates: tuple[tuple[int, ...], ...]
    reached: tuple[bool, ...]
    trained: tuple[fx.Node, ...] = ()
    copies: Mapping[tuple[str, ...], GraphCopy] = field(default_factory=dict)
    borders: tuple[fx.Node, ...] = ()

    @property
    def decisions(self) -> int:
        """How many decisions there are: of the sites, and of the borders behind them."""
        return len(self.sites) + len(self.borders)


def insert_gates(
    gm: fx.GraphModule, sites: Sequence[Site], scope: str, held: bool = False, borders: Sequence[fx.Node] = ()
) -> GatedGraph:
    """Gate each site of a copy of the graph.

    In:
        The graph that ``find_lora`` searched, and the sites it found there. The graph is not changed:
        Dynamo reads its own placeholders back after the backend has run. Of its inputs the *borders*, see
        :func:`~skiplora_fx.passes.border_gates.find_borders`.
    Out:
        A :class:`GatedGraph`. Bodies of checkpoints that hold sites are copied, one copy for each call.
    Terms:
        *ratio*: ``M = ||Δh||₂ / ||h||₂`` (the skip criterion of SkipLoRA) over the whole batch, in float32,
        from detached values; infinite where h is all zero, NaN where a norm is not finite. *decision*: ``~(M < τ)``.
        *scope*: ``"adapter"`` gates Δh; ``"layer"`` gates h + Δh: where Δh is added in place to a part of a tensor,
        that part; ``"input"`` gates what the adapted layer reads, see
        :func:`~skiplora_fx.passes.input_gates.write_input_gates`. Where adapters
        are chained on a layer, the layer scope gates each Δh by its own decision, and the layer while any of them is
        open. Who reads, by whatever name, what an addition in place has written, reads it behind the gate. *held*:
        decisions are taken before the forward. Then each threshold is 0, for open, or infinite, ratios are measured but
        decide nothing, and the thresholds are on the CPU, and so are the decisions.

    Raises:
        InternalError: a checkpoint body does not return a tuple, or the scope is ``"input"``, or there are borders, and
            decisions are not held: whether an input is detached cannot wait for what comes of it.
    """
    if (scope == "input" or borders) and not held:
        raise InternalError("the scope 'input', and borders, need decisions that are taken before the forward")
    copy = GraphCopy.of(gm)
    thresholds = _add_input(copy.gm.graph, "skiplora_thresholds")
    writer = _Writer(scope, held)
    norms = writer.write(copy, tuple(sites), thresholds, depth=0)
    indices = range(len(sites), len(sites) + len(borders))
    write_border_gates(copy, borders, _write_held_decisions(copy.gm.graph, indices, thresholds))
    gates = [*writer.gates, *((index,) for index in indices)]
    reached = [*writer.reached, *(True for _ in borders)]
    _add_outputs(copy.gm.graph, norms, thresholds, held)
    copy.gm.graph.lint()
    copy.gm.recompile()
    trained = dict.fromkeys(copy.nodes[node] for site in sites for node in site.trained)
    return GatedGraph(
        copy.gm, thresholds, tuple(sites), tuple(gates), tuple(reached), tuple(trained), writer.copies, tuple(borders)
    )


class _Norms(NamedTuple):
    """Nodes that hold ``||Δh||₂`` and ``||h||₂``: float32, 0-d for one site, ``[n]`` for all."""

    delta: fx.Node
    h: fx.Node


class _Writer:
    """Writes gates into one graph and its bodies, and remembers which."""

    def __init__(self, scope: str, held: bool) -> None:
        self._scope = scope
        self._held = held
        self.gates: list[tuple[int, ...]] = []
        self.reached: list[bool] = []
        self.copies: dict[tuple[str, ...], GraphCopy] = {}

    def write(self, copy: GraphCopy, sites: tuple[Site, ...], thresholds: fx.Node, depth: int) -> list[_Norms]:
        """Gate ``sites``; return their norms in the same order."""
        self.copies[sites[0].body[:depth]] = copy
        norms: list[_Norms] = []
        known: dict[fx.Node, fx.Node] = {}
        opens: dict[int, fx.Node] = {}
        if self._scope == "input":
            self._write_input_gates(copy, [site for site in sites if len(site.body) == depth], thresholds)
        for call, group in groupby(sites, key=lambda site: site.body[depth] if len(site.body) > depth else None):
            if call is not None:
                norms += self._write_body(copy, call, tuple(group), thresholds, depth)
                continue
            for site in group:
                norms.append(_write_norms(copy, site, known))
                if self._scope != "input":
                    opens[site.index] = self._write_decision(copy, site, norms[-1], thresholds)
                    self._write_gates(copy, site, opens)
        return norms

    def _write_input_gates(self, copy: GraphCopy, sites: Sequence[Site], thresholds: fx.Node) -> None:
        opens = _write_held_decisions(copy.gm.graph, [site.index for site in sites], thresholds)
        for gate in write_input_gates(copy, sites, opens):
            self._note_gate(gate.sites, gate.wants_gradient)

    def _note_gate(self, indices: tuple[int, ...], reached: bool = True) -> None:
        self.gates.append(indices)
        self.reached.append(reached)

    def _write_decision(self, copy: GraphCopy, site: Site, norms: _Norms, thresholds: fx.Node) -> fx.Node:
        graph = copy.gm.graph
        with graph.inserting_before(copy.nodes[site.join]):
            if self._held:
                return _write_held_decision(graph, site.index, thresholds)
            threshold = _call(graph, operator.getitem, thresholds, site.index)
            return _call(graph, torch.logical_not, _call(graph, torch.lt, _write_ratio(graph, norms), threshold))

    def _write_gates(self, copy: GraphCopy, site: Site, opens: dict[int, fx.Node]) -> None:
        join = copy.nodes[site.join]
        graph = copy.gm.graph
        chained = site.chain > 0 or not site.last
        if self._scope == "adapter" or chained:
            self._write_adapter_gate(graph, join, _operand(copy, site, site.delta), site, opens[site.index])
        if self._scope == "layer" and site.last:
            indices = tuple(range(site.index - site.chain, site.index + 1))
            behind = self._write_layer_gate(graph, join, indices, [opens[index] for index in indices])
            if not behind and not chained and (delta := _operand(copy, site, site.delta)) not in writes(join):
                # The gradient of the rest, which comes through the join, is zeros for Δh: with a gate it is none.
                self._write_adapter_gate(graph, join, delta, site, opens[site.index])

    def _write_adapter_gate(self, graph: fx.Graph, join: fx.Node, delta: fx.Node, site: Site, open: fx.Node) -> None:
        written = writes(join)
        with graph.inserting_before(join):
            gate = _call(graph, GATE, delta, open, [site.index])
        join.replace_input_with(delta, gate)
        if delta in written:
            _hand_on(delta, join, join)
        self._note_gate((site.index,))

    def _write_layer_gate(self, graph: fx.Graph, join: fx.Node, indices: tuple[int, ...], opens: list[fx.Node]) -> bool:
        """Gate what ``join`` returns; return whether all that reads it reads the gate itself."""
        with graph.inserting_after(join):
            gate = graph.call_function(GATE, (join, opens[0], list(indices)))
        with graph.inserting_before(gate):
            for other in opens[1:]:
                gate.update_arg(1, _call(graph, torch.logical_or, gate.args[1], other))
        self._note_gate(indices)
        behind = all(_hand_on(written, join, gate) for written in writes(join))
        if behind:
            join.replace_all_uses_with(gate, delete_user_cb=lambda user: user is not gate)
        return behind

    def _write_body(
        self, copy: GraphCopy, call_name: str, sites: tuple[Site, ...], thresholds: fx.Node, depth: int
    ) -> list[_Norms]:
        graph = copy.gm.graph
        call = next(new for old, new in copy.nodes.items() if old.name == call_name)
        reference = call.args[0]
        assert isinstance(reference, fx.Node)
        original = copy.gm.get_submodule(str(reference.target))
        assert isinstance(original, fx.GraphModule)
        body = GraphCopy.of(original)
        inner = self.write(body, sites, _add_input(body.gm.graph, "skiplora_thresholds"), depth + 1)
        position = _add_stacked_outputs(body.gm.graph, inner, call_name)
        body.gm.recompile()
        name = f"{reference.target}_skiplora_{call_name}"
        copy.gm.add_submodule(name, body.gm)
        with graph.inserting_before(call):
            call.update_arg(0, graph.get_attr(name))
        call.args = (*call.args, thresholds)
        graph.erase_node(reference)
        with graph.inserting_before(call.next):
            stacked = [_call(graph, operator.getitem, call, position + part) for part in range(len(_Norms._fields))]
            return [
                _Norms(*(_call(graph, operator.getitem, vector, index) for vector in stacked))
                for index in range(len(inner))
            ]


def _hand_on(written: fx.Node, join: fx.Node, value: fx.Node) -> bool:
    """Have all that read what ``join`` wrote into ``written`` read ``value``; return whether they do so by that name.

    If somebody reads it as a view, or as part of a larger tensor, ``value`` is written into that memory instead.
    """
    graph = join.graph
    aliases = sharing_memory(written) - {written, join, value}
    if any(alias < join and any(join < user for user in alias.users) for alias in aliases):
        with graph.inserting_after(value):
            _call(graph, torch.ops.aten.copy_.default, written if value is join else join, value)
        return False
    written.replace_all_uses_with(value, delete_user_cb=lambda user: value < user)
    return True


def _operand(copy: GraphCopy, site: Site, operand: fx.Node) -> fx.Node:
    """Return what an operand of the join is called in the copy: a gate before it may have taken its name."""
    return copy.nodes[site.join].all_input_nodes[site.join.all_input_nodes.index(operand)]


def _write_norms(copy: GraphCopy, site: Site, known: dict[fx.Node, fx.Node]) -> _Norms:
    join, delta = copy.nodes[site.join], _operand(copy, site, site.delta)
    graph = copy.gm.graph
    with graph.inserting_before(join):
        # That of a chain is the layer's, which the additions before may have overwritten.
        if site.chain == 0:
            known[site.h] = _write_norm(graph, _operand(copy, site, site.h))
        return _Norms(_write_norm(graph, delta), known[site.h])


def _write_ratio(graph: fx.Graph, norms: _Norms) -> fx.Node:
    quotient = _call(graph, torch.div, norms.delta, norms.h)
    ratio = _call(graph, torch.where, _call(graph, torch.eq, norms.h, 0), math.inf, quotient)
    # Where h is infinite the quotient would be 0 and shut the gate, where Δh is, nobody would be told.
    finite = _call(graph, torch.isfinite, _call(graph, torch.add, norms.delta, norms.h))
    return _call(graph, torch.where, finite, ratio, math.nan)


def _write_norm(graph: fx.Graph, node: fx.Node) -> fx.Node:
    # Operators and no methods: AOTAutograd caches no graph with a method of a value that Dynamo does not know.
    detached = _call(graph, torch.ops.aten.detach.default, node)
    dtype = value_of(node).dtype
    # vector_norm refuses to narrow its input, and a module may be converted after it was gated.
    if dtype is torch.float64:
        return _to_float32(graph, _call(graph, torch.linalg.vector_norm, detached))
    if dtype is torch.float32:
        return _call(graph, torch.linalg.vector_norm, _to_float32(graph, detached))
    return _call(graph, torch.linalg.vector_norm, detached, dtype=torch.float32)


def _to_float32(graph: fx.Graph, node: fx.Node) -> fx.Node:
    return _call(graph, torch.ops.aten.to.dtype, node, torch.float32)


def _write_held_decisions(graph: fx.Graph, indices: Iterable[int], thresholds: fx.Node) -> dict[int, fx.Node]:
    """Write decisions in front of all that a graph computes; return them by index."""
    with graph.inserting_before(graph.find_nodes(op="placeholder")[-1].next):
        return {index: _write_held_decision(graph, index, thresholds) for index in indices}


def _write_held_decision(graph: fx.Graph, index: int, thresholds: fx.Node) -> fx.Node:
    return _call(graph, torch.eq, _call(graph, operator.getitem, thresholds, index), 0)


def _add_input(graph: fx.Graph, name: str) -> fx.Node:
    inputs = graph.find_nodes(op="placeholder")
    # Python wants a default after one, and nothing after **kwargs.
    default = None if any(node.args for node in inputs) else inspect.Parameter.empty
    if inputs and str(inputs[-1].target).startswith("**"):
        place = graph.inserting_before(inputs[-1])
    else:
        place = graph.inserting_after(inputs[-1]) if inputs else graph.inserting_before(next(iter(graph.nodes)))
    with place:
        node = graph.placeholder(name, default_value=default)
    set_placeholder_source(node, like=None)
    return node


def _add_outputs(graph: fx.Graph, norms: list[_Norms], thresholds: fx.Node, held: bool) -> None:
    output = graph.output_node()
    with graph.inserting_before(output):
        # Once more for all sites at once: a gate's own scalars are gone as soon as it is folded.
        ratios = _write_ratio(graph, _write_stacked(graph, norms))
        decisions = _call(graph, HOLD, thresholds) if held else _call(graph, DECIDE, ratios, thresholds)
    results = output.args[0]
    assert isinstance(results, (tuple, list))
    output.args = ((*results, ratios, decisions),)


def _add_stacked_outputs(graph: fx.Graph, norms: list[_Norms], call_name: str) -> int:
    """Return ``norms`` as two more outputs of a checkpoint's body, ``[n]`` each; give the first one's position."""
    output = graph.output_node()
    results = output.args[0]
    if not isinstance(results, (tuple, list)):
        raise InternalError(f"the body of {call_name} returns {results!r}, expected a tuple")
    with graph.inserting_before(output):
        output.args = ((*results, *_write_stacked(graph, norms)),)
    return len(results)


def _write_stacked(graph: fx.Graph, norms: list[_Norms]) -> _Norms:
    return _Norms(*(_call(graph, torch.stack, list(nodes)) for nodes in zip(*norms, strict=True)))


def _call(graph: fx.Graph, target: object, *args: object, **kwargs: object) -> fx.Node:
    return graph.call_function(target, args, kwargs)
