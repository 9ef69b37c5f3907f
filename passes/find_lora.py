"""Find the LoRA adapters of a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from .._torch_compat import SET_GRAD_ENABLED
from ..site import Findings, Rejection, Site
from .dataflow import Dataflow, Roots, is_floating, is_view, shape_of
from .layer_inputs import layer_inputs
from .linear_operators import Role, is_in_place, names, operands, operator_name
from .match_branch import Branch, NotABranch, check_base, match_branch
from .near_misses import near_miss
from .parameters import Lifted, Parameters, label
from .widths import weight_of

_CHECKPOINT = torch.ops.higher_order.tag_activation_checkpoint
_MOVES = names("to type float half bfloat16 double type_as contiguous clone _to_copy convert_element_type")


def find_lora(gm: fx.GraphModule, lifted: Mapping[str, Lifted] | None = None) -> Findings:
    """Find every place where a low-rank branch joins another path by an addition.

    In:
        A forward graph with a fake value on each node: as Dynamo hands it to a backend, from ``torch.export``,
        ``make_fx`` or ``symbolic_trace``. Bodies of ``tag_activation_checkpoint`` are searched too. The graph
        is not changed.
    Out:
        :class:`~skiplora_fx.site.Findings`: the sites in the order in which the forward runs them, and a
        :class:`~skiplora_fx.site.Rejection` for every parameter that trains and belongs to none of them.
    Terms:
        *join*: ``h + Δh``. *branch*: what computes Δh and leads nowhere else; see
        :func:`~skiplora_fx.passes.match_branch.match_branch`. The base ``h`` may be computed by anything but by
        layers all of which train themselves.

    What decides is structure and which parameters train; a name is only a label.

    Args:
        gm: the graph.
        lifted: for the names of placeholders that hold parameters without showing it, what they hold.
    """
    search = _Search(gm, lifted)
    search.visit(_Frame(gm, (), search.parameters.seeds(gm.graph)))
    return search.findings()


class _Frame:
    """One graph of the search: the root, or the body of a checkpoint."""

    def __init__(self, gm: fx.GraphModule, body: tuple[str, ...], seeds: Mapping[fx.Node, Roots | None]) -> None:
        self.gm, self.body, self.seeds = gm, body, seeds
        self.flow = Dataflow(gm.graph, seeds)

    def body_of(self, call: fx.Node) -> _Frame:
        """Return the frame of a checkpoint's body."""
        reference, *passed = call.args
        assert isinstance(reference, fx.Node)
        gm = self.gm.get_submodule(str(reference.target))
        assert isinstance(gm, fx.GraphModule)
        given = (self._roots(arg) for arg in passed)
        inputs: dict[fx.Node, Roots | None] = dict(zip(gm.graph.find_nodes(op="placeholder"), given, strict=False))
        return _Frame(gm, (*self.body, call.name), inputs)

    def _roots(self, node: object) -> Roots | None:
        return None if isinstance(node, fx.Node) and self.flow.is_activation(node) else self._static_roots(node)

    def _static_roots(self, node: object) -> Roots:
        return self.flow.roots(node) if isinstance(node, fx.Node) else ()

    def holding(self, root: fx.Node) -> list[fx.Node]:
        """Return the placeholders and ``get_attr`` of this graph that are one parameter."""
        return [node for node, roots in self.seeds.items() if roots == (root,)]


@dataclass(frozen=True)
class _Found:
    """A site in the making."""

    frame: _Frame
    join: fx.Node
    base: fx.Node
    h: fx.Node
    delta: fx.Node
    branch: Branch
    chain: int
    last: bool = True


class _Replaced(NotABranch):
    """The base is multiplied by what the branch trains, so that it is no h."""


class _Search:
    """Collects sites and near misses over a graph and its bodies; lives for one call of ``find_lora``."""

    def __init__(self, gm: fx.GraphModule, lifted: Mapping[str, Lifted] | None) -> None:
        self.parameters = Parameters(gm, lifted)
        self._frames: list[_Frame] = []
        self._found: list[_Found] = []
        self._by_join: dict[tuple[tuple[str, ...], fx.Node], int] = {}
        self._closed: set[tuple[tuple[str, ...], fx.Node]] = set()
        self._misses: dict[fx.Node, Rejection] = {}

    def visit(self, frame: _Frame) -> None:
        self._frames.append(frame)
        grad_enabled = True
        for node in frame.gm.graph.nodes:
            if node.op == "call_function" and node.target is SET_GRAD_ENABLED:
                grad_enabled = bool(node.args[0])
            elif node.op == "call_function" and node.target is _CHECKPOINT:
                self.visit(frame.body_of(node))
            elif _is_join(node):
                self._visit_join(frame, node, grad_enabled)

    def _visit_join(self, frame: _Frame, join: fx.Node, grad_enabled: bool) -> None:
        flow = frame.flow
        barriers = {node for body, node in self._closed if body == frame.body}
        matched: list[tuple[Any, Any, Branch]] = []
        for delta, base in (operands(join)[::-1], operands(join)):
            h, addend = flow.resolve(join, base), flow.resolve(join, delta)
            if not flow.is_activation(h):
                continue  # a bias
            try:
                branch = match_branch(flow, join, h, addend, barriers, self.parameters.trained)
            except NotABranch as miss:
                self._note_miss(miss, join, addend)
                continue
            if branch is None:
                continue
            try:
                self._check_join(frame, join, h, addend, branch, grad_enabled)
            except _Replaced as miss:
                self._note_miss(miss, join, addend)  # DoRA: their sum is added to h once more
                return
            except NotABranch as miss:
                self._close(frame, join, addend, miss)
                return
            matched.append((base, delta, branch))
        if len(matched) == 1:
            self._add_if_frozen(frame, join, *matched[0])
        # Two branches that are added up are one, and join what their sum is added to.

    def _add_if_frozen(self, frame: _Frame, join: fx.Node, base: fx.Node, delta: fx.Node, branch: Branch) -> None:
        try:
            check_base(frame.flow, branch, self.parameters.trained)
        except NotABranch as miss:
            self._close(frame, join, delta, miss)
        else:
            self._add(frame, join, base, delta, branch)

    def _close(self, frame: _Frame, join: fx.Node, delta: fx.Node, miss: NotABranch) -> None:
        self._note_miss(miss, join, delta)
        self._closed.add((frame.body, join))

    def _check_join(
        self, frame: _Frame, join: fx.Node, h: fx.Node, delta: fx.Node, branch: Branch, grad_enabled: bool
    ) -> None:
        trained = self.parameters.trained(branch.parameters)
        if not grad_enabled:
            raise NotABranch("no join", "the branch runs under no_grad, so it has no backward", trained)
        if shape_of(h) != shape_of(delta):
            reason = f"h {shape_of(h)} and Δh {shape_of(delta)} differ in shape"
            raise NotABranch("no join", reason, trained)
        if is_in_place(join) and _is_read_beside(frame.flow, h, join):
            reason = "the branch is added in place to a tensor that others read as well"
            raise NotABranch("no join", reason, trained)
        if _shares(frame.flow, h, set(trained)):
            reason = f"the same parameters multiply what it is added to (at {h.name})"
            raise _Replaced("multiplicative", reason, trained)
        taken_back = _taken_back(frame.flow, join, h, branch)
        if taken_back is not None:
            reason = f"what it is added to is taken away again (at {taken_back.name}): it replaces h and adds no Δh"
            raise NotABranch("multiplicative", reason, trained)

    def _add(self, frame: _Frame, join: fx.Node, base: fx.Node, delta: fx.Node, branch: Branch) -> None:
        previous = self._by_join.get((frame.body, _behind_moves(frame.flow, frame.flow.resolve(join, base))))
        chain, h = 0, base
        if previous is not None:
            before = self._found[previous]
            chain, h = before.chain + 1, before.h
            self._found[previous] = replace(before, last=False)
        self._by_join[frame.body, join] = len(self._found)
        self._closed.add((frame.body, join))
        self._found.append(_Found(frame, join, base, h, delta, branch, chain))

    def _note_miss(self, miss: NotABranch, join: fx.Node, delta: fx.Node) -> None:
        name, _ = label(self.parameters.of(miss.roots), join)
        for root in miss.roots:
            self._misses.setdefault(root, _rejection(name, miss.reason, delta, miss.family))

    def findings(self) -> Findings:
        uses = Counter(root for found in self._found for root in set(found.branch.parameters))
        sites = self._told_apart([self._site(index, found, uses) for index, found in enumerate(self._found)])
        claimed = {parameter for site in sites for parameter in site.parameters}
        trained = [parameter for parameter in self.parameters if parameter.trained and parameter.node not in claimed]
        return Findings(sites, tuple(dict.fromkeys(self._reject(p.node, p.path) for p in trained)))

    def _site(self, index: int, found: _Found, uses: Mapping[fx.Node, int]) -> Site:
        parameters = found.branch.parameters
        trained = self.parameters.trained(parameters)
        own = tuple(root for root in parameters if self._is_read_in(root, found.branch.nodes))
        named_by = [root for root in trained if uses[root] == 1] or list(trained)
        calls = self._nodes_of_all_calls(found.branch)
        frozen = [root for root in parameters if root not in named_by and self._is_read_in(root, calls)]
        name, adapter = label(self.parameters.of([*named_by, *frozen]), found.join)
        key = min(trained, key=lambda root: uses[root])
        (owner,) = self.parameters.of([key])
        parts = len(name.split(".")) if name else 0
        flow = found.frame.flow
        inputs = layer_inputs(flow, flow.resolve(found.join, found.base), found.branch.nodes, found.branch.layers)
        return Site(
            index=index,
            name=name,
            adapter=adapter,
            join=found.join,
            h=found.h,
            delta=found.delta,
            chain=found.chain,
            last=found.last,
            parameters=parameters,
            trained=trained,
            own=own,
            key=key,
            key_depth=len(owner.path.split(".")) - parts if owner.named else 0,
            rank=found.branch.rank,
            kind=found.branch.kind,
            factors=found.branch.factors,
            reads=inputs.branch,
            layer_reads=inputs.layers,
            body=found.frame.body,
        )

    def _told_apart(self, sites: list[Site]) -> tuple[Site, ...]:
        """Call adapters that one module holds side by side, with no name of their own, after what they train."""
        keys: dict[tuple[str, str], set[fx.Node]] = {}
        for site in sites:
            keys.setdefault((site.name, site.adapter), set()).add(site.key)
        return tuple(
            replace(site, adapter=self._own_name(site)) if len(keys[site.name, site.adapter]) > 1 else site
            for site in sites
        )

    def _own_name(self, site: Site) -> str:
        (owner,) = self.parameters.of([site.key])
        path = owner.path.split(".")
        return ".".join(path[len(path) - site.key_depth :]).removesuffix(".weight")

    def _is_read_in(self, root: fx.Node, nodes: Set[fx.Node]) -> bool:
        """Return whether a parameter is read by some of ``nodes`` and by nothing else."""
        readers = {
            reader
            for frame in self._frames
            for node in frame.holding(root)
            for reader in frame.flow.readers(node)
            if reader.target is not _CHECKPOINT
        }
        return bool(readers) and readers <= nodes

    def _nodes_of_all_calls(self, branch: Branch) -> frozenset[fx.Node]:
        """Return the nodes of all branches of the same parameters: a layer may be called several times."""
        alike = (found.branch for found in self._found if found.branch.parameters == branch.parameters)
        return frozenset().union(*(other.nodes for other in alike))

    def _reject(self, root: fx.Node, path: str) -> Rejection:
        known = self._misses.get(root)
        if known is not None:
            return known
        for frame in self._frames:
            for node in frame.holding(root):
                miss = near_miss(frame.flow, node, (_CHECKPOINT,), self.parameters.trained)
                if miss is not None:
                    return _rejection(path, miss.reason, miss.node, miss.family)
        return _rejection(path, "trains, but nothing in this graph reads it", root, "no join")


def _rejection(name: str, reason: str, node: fx.Node, family: str) -> Rejection:
    return Rejection(name, reason, node.name, family, source_line(node))


def source_line(node: fx.Node) -> str:
    """Return the line of the model's source that a node was traced from, as ``file:line, code``, or nothing."""
    lines = (node.meta.get("stack_trace") or "").strip().splitlines()
    places = [position for position, line in enumerate(lines) if line.strip().startswith("File ")]
    if not places:
        return ""
    place = lines[places[-1]].strip().removeprefix("File ").replace('"', "").replace(", line ", ":")
    code = lines[places[-1] + 1].strip() if places[-1] + 1 < len(lines) else ""
    return f"{place.split(', in ')[0]}, {code}" if code else place


def _is_join(node: fx.Node) -> bool:
    if node.op not in ("call_function", "call_method") or operator_name(node) != "add":
        return False
    addends = operands(node)
    return (
        len(addends) == 2
        and node.kwargs.get("alpha", 1) == 1
        and all(map(is_floating, addends))
        and addends[0] is not addends[1]
    )


def _is_read_beside(flow: Dataflow, base: fx.Node, join: fx.Node) -> bool:
    """Return whether anybody but ``join`` reads what it writes into, through views as well."""
    node, reader = base, join
    while True:
        if set(flow.readers(node)) - {reader}:
            return True
        reads = flow.reads(node)
        if not is_view(node) or len(reads) != 1:
            return False
        node, reader = reads[0], node


def _taken_back(flow: Dataflow, join: fx.Node, h: fx.Node, branch: Branch) -> fx.Node | None:
    """Return where h, or a term that the same parameters make of it, is subtracted from the sum."""
    for reader in flow.readers(join):
        if operator_name(reader) == "sub" and flow.reads(reader)[-1] is h:
            return reader
    node = h
    while flow.is_activation(node) and flow.role(node) is Role.SUM and flow.readers(node) in ((join,), ()):
        before = flow.activations(node)
        if operator_name(node) == "sub" and len(before) == 2 and _shares(flow, before[1], set(branch.parameters)):
            return node
        node = before[0]
    return None


def _shares(flow: Dataflow, node: fx.Node, roots: set[fx.Node]) -> bool:
    """Return whether ``node`` is a product with any of ``roots``; a bias among them is only added to it."""
    while flow.is_activation(node) and (role := flow.role(node)) in (Role.PASS, Role.SCALE, Role.FACTOR):
        factors = [weight_of(flow, node)] if role is Role.FACTOR else flow.static_reads(node)
        if any(roots.intersection(flow.roots(read)) for read in factors if read is not None):
            return True
        (node,) = flow.activations(node)[:1]
    return False


def _behind_moves(flow: Dataflow, node: fx.Node) -> fx.Node:
    while node.op in ("call_function", "call_method") and operator_name(node) in _MOVES:
        (node,) = flow.reads(node)
    return node
