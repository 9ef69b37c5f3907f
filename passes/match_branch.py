"""Whether an addend is a low-rank branch."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from torch import fx

from .base_layers import base_layers, behind_passes, trained_layer
from .bottleneck import bottleneck, composed_bottleneck, has_several_weights
from .dataflow import Dataflow, Roots, Trains, shape_of
from .linear_operators import Role, factor_kind, names, operator_name
from .widths import weight_of

_WALKED = (Role.PASS, Role.SCALE, Role.SUM, Role.FACTOR, Role.POINTWISE)
_NOTHING: frozenset[fx.Node] = frozenset()


@dataclass(frozen=True)
class Branch:
    """A matched branch.

    Attributes:
        nodes: everything that leads only to the join.
        factors: the contractions on the way from the input to Δh, the longest way if there are several.
        kind: what they are, such as ``"linear→linear"``; a weight that is composed of several is marked so.
        parameters: what the branch is computed from beside its input, in the order in which it is read.
        rank: the smallest dimension between two factors. Of a composed weight, the smallest of its trained parts.
        layers: the layers that make h.
    """

    nodes: frozenset[fx.Node]
    factors: tuple[fx.Node, ...]
    kind: str
    parameters: Roots
    rank: int
    layers: tuple[fx.Node, ...]


class NotABranch(Exception):
    """Why an addend that reads trained weights is not a branch.

    Args:
        family: one of :data:`~skiplora_fx.site.FAMILIES`.
        reason: in words for the user.
        roots: the trained parameters in question.
    """

    def __init__(self, family: str, reason: str, roots: Roots) -> None:
        super().__init__(reason)
        self.family, self.reason, self.roots = family, reason, roots


def match_branch(
    flow: Dataflow, join: fx.Node, base: fx.Node, delta: fx.Node, barriers: Collection[fx.Node], trains: Trains
) -> Branch | None:
    """Match ``delta`` as a low-rank branch of ``join = base + delta``.

    In:
        The flow of a forward graph, the join and its two addends as they are read there, the joins of
        other sites (nothing is searched beyond those), and which parameters train.
    Out:
        A :class:`Branch`, or None if no trained weight is near.
    Terms:
        *factor*: an operator that contracts the activation with something static. A branch is everything
        that leads only to the join; it is low-rank if it holds two factors or more with less between them
        than the larger of its ends, or one factor whose weight is composed of others. Where it is a sum, each term is.

    Raises:
        NotABranch: it reads trained weights and has another form.
    """
    if not flow.is_activation(delta):
        return None
    found = _collect(flow, join, delta, barriers, trains)
    parameters = found.parameters()
    trained = trains(parameters)
    chain = found.longest_chain()
    if trains(found.parameters(Role.FACTOR, Role.SCALE)) and _is_branch(found, chain):
        _check_weights(flow, chain, trains)
        layers = base_layers(flow, base, found.inputs())
        _check_ways(found, delta, trained)
        rank = _rank(found, chain, delta, layers, trained)
        _check_linear(found, base, trains, trained)
        return Branch(frozenset(found.nodes), chain, _kind(flow, chain), parameters, rank, layers)
    _check_read_elsewhere(flow, join, delta, barriers, trains)
    return None


def check_base(flow: Dataflow, branch: Branch, trains: Trains) -> None:
    """Check that what a branch is added to is a frozen path.

    Raises:
        NotABranch: all layers that make h train themselves.
    """
    trained = trained_layer(flow, branch.layers, trains)
    if trained is not None:
        reason = f"what it is added to trains itself (at {trained.name}), so it adapts no frozen layer"
        raise NotABranch("trained base", reason, trains(branch.parameters))


@dataclass(frozen=True)
class _Collected:
    """What leads only to the join, walked as far as it is linear."""

    flow: Dataflow
    nodes: set[fx.Node]
    sources: set[fx.Node]

    def inputs(self) -> list[fx.Node]:
        return self.flow.sorted(node for node in self.sources if self.flow.is_activation(node))

    def activations(self) -> list[fx.Node]:
        return self.flow.sorted(node for node in self.nodes if self.flow.is_activation(node))

    def parameters(self, *roles: Role) -> Roots:
        """Return what the nodes of these roles read beside activations, those of any role if none is given."""
        return tuple(
            dict.fromkeys(
                root
                for node in self.activations()
                if not roles or self.flow.role(node) in roles
                for source in self.flow.static_reads(node)
                for root in self.flow.roots(source)
            )
        )

    def longest_chain(self) -> tuple[fx.Node, ...]:
        return max(self.chains().values(), key=len, default=())

    def chains(self) -> dict[fx.Node, tuple[fx.Node, ...]]:
        """Return for each activation the factors on the longest way to it."""
        chains: dict[fx.Node, tuple[fx.Node, ...]] = {}
        for node in self.activations():
            behind = [chains.get(source, ()) for source in self.flow.activations(node)]
            longest = max(behind, key=len, default=())
            chains[node] = (*longest, node) if _is_factor(self.flow, node) else longest
        return chains


def _collect(
    flow: Dataflow, join: fx.Node, delta: fx.Node, barriers: Collection[fx.Node], trains: Trains
) -> _Collected:
    nodes: set[fx.Node] = set()
    sources: set[fx.Node] = set()
    seen = {delta}
    heap = [(-flow.order[delta], delta)]
    while heap:
        _, node = heapq.heappop(heap)
        allowed = nodes | {join} if node is delta else nodes
        private = all(reader in allowed for reader in flow.readers(node))
        activation = flow.is_activation(node)
        if not private or (activation and (node in barriers or flow.role(node) not in _WALKED)):
            sources.add(node)
            continue
        nodes.add(node)
        for source in flow.reads(node):
            if source not in seen:
                seen.add(source)
                heapq.heappush(heap, (-flow.order[source], source))
    return _Collected(flow, nodes, sources)


def _is_branch(found: _Collected, chain: tuple[fx.Node, ...]) -> bool:
    return len(chain) > 1 or (len(chain) == 1 and is_composed(found.flow, chain[0]))


def _is_factor(flow: Dataflow, node: fx.Node) -> bool:
    return flow.role(node) is Role.FACTOR or _pools_features(flow, node)


def _pools_features(flow: Dataflow, node: fx.Node) -> bool:
    """Return whether a sum or a mean runs over a part of the features, which a reshape has just split."""
    if operator_name(node) not in ("sum", "mean"):
        return False
    (source,) = flow.activations(node)
    if operator_name(source) not in ("view", "reshape", "_unsafe_view", "unflatten"):
        return False
    return len(shape_of(source)) > len(shape_of(flow.reads(source)[0])) and len(shape_of(node)) > 1


def is_composed(flow: Dataflow, factor: fx.Node) -> bool:
    """Return whether a factor's weight is more than a parameter that is moved, cast or scaled by a number."""
    if has_several_weights(flow, factor):
        return True
    node = weight_of(flow, factor)
    while node is not None and node.op in ("call_function", "call_method"):
        reads = flow.reads(node)
        if len(reads) != 1 or operator_name(node) not in _RENAMING:
            return True
        (node,) = reads
    return False


_RENAMING = names(
    "to type float half bfloat16 double type_as contiguous clone _to_copy convert_element_type view reshape "
    "_unsafe_view permute transpose t mT getattr squeeze unsqueeze expand mul div select slice getitem alias"
)


def _check_weights(flow: Dataflow, chain: Iterable[fx.Node], trains: Trains) -> None:
    for factor in chain:
        weight = weight_of(flow, factor)
        if weight is not None and (trained := trains(flow.roots(weight))):
            adds_to = weight_space_sum(flow, weight, trains)
            if adds_to is not None:
                raise NotABranch("weight-space", weight_space_reason(adds_to, factor), trained)


def weight_space_reason(adds_to: fx.Node, factor: fx.Node) -> str:
    """Return why a branch that is added to a frozen weight is none."""
    return (
        f"the adapter is added to a frozen weight (at {adds_to.name}) before {factor.name} uses it, so there is no "
        "Δh to measure or to detach"
    )


def weight_space_sum(flow: Dataflow, weight: fx.Node, trains: Trains) -> fx.Node | None:
    """Return the node at which a trained and a frozen weight of one shape are added up, if ``weight`` is such a sum."""
    waiting, seen = [weight], {weight}
    while waiting:
        node = waiting.pop()
        reads = flow.reads(node)
        if len(reads) > 1 and _is_sum_of_weights(node):
            frozen = [n for n in reads if flow.roots(n) and not trains(flow.roots(n)) and shape_of(n) == shape_of(node)]
            if frozen and trains(flow.roots(node)):
                return node
        waiting += [source for source in reads if source not in seen and trains(flow.roots(source))]
        seen.update(reads)
    return None


def _is_sum_of_weights(node: fx.Node) -> bool:
    return operator_name(node) in _WEIGHT_SUMS


_WEIGHT_SUMS = names("add sub addmm baddbmm index_add index_put scatter_add scatter index_copy copy")


def _rank(
    found: _Collected, chain: tuple[fx.Node, ...], delta: fx.Node, layers: Collection[fx.Node], trained: Roots
) -> int:
    if len(chain) == 1:
        narrow = composed_bottleneck(found.flow, chain[0], trained)
    else:
        narrow = bottleneck(found.flow, chain, delta, layers)
    rank, wide = narrow
    if not narrow.is_low_rank:
        reason = f"its inner dimension {rank} is not below the larger of its outer ones, {wide}: not low-rank"
        raise NotABranch("not low-rank", reason, trained)
    return rank


def _check_ways(found: _Collected, delta: fx.Node, trained: Roots) -> None:
    """Raise if Δh is the sum of something low-rank and a whole layer: one whose bias trains, under a frozen adapter."""
    flow, chains = found.flow, found.chains()
    for last in base_layers(flow, delta, found.inputs()):
        if chains.get(last) == (last,) and not is_composed(flow, last):
            raise NotABranch("not low-rank", f"{last.name}, a whole layer, is a part of the sum: not low-rank", trained)


def _kind(flow: Dataflow, chain: tuple[fx.Node, ...]) -> str:
    kinds = "→".join(factor_kind(factor) for factor in chain)
    return f"composed {kinds}" if len(chain) == 1 else kinds


def _check_linear(found: _Collected, base: fx.Node, trains: Trains, trained: Roots) -> None:
    """Raise if something in the branch is not linear, unless the branch runs beside a frozen layer of the same input.

    The first is an adapter after Houlsby et al. 2019, a small network of its own; the second one after He et al. 2022
    ("parallel adapter"), whose place and use are those of LoRA.
    """
    flow = found.flow
    bent = [node for node in found.activations() if flow.role(node) is Role.POINTWISE]
    if bent and not _runs_beside(flow, base, found.inputs(), trains):
        name = operator_name(bent[0])
        reason = f"{name} makes the branch non-linear, and h is not a frozen layer of the branch's own input"
        raise NotABranch("non-linear", reason, trained)


def _runs_beside(flow: Dataflow, base: fx.Node, inputs: Collection[fx.Node], trains: Trains) -> bool:
    node = behind_passes(flow, base)
    if flow.role(node) is not Role.FACTOR or any(trains(flow.roots(read)) for read in flow.static_reads(node)):
        return False
    (read,) = flow.activations(node)
    return {behind_passes(flow, source) for source in inputs} == {behind_passes(flow, read)}


def _check_read_elsewhere(
    flow: Dataflow, join: fx.Node, delta: fx.Node, barriers: Collection[fx.Node], trains: Trains
) -> None:
    """Raise if ``delta`` would be a branch, were it not for somebody else who reads what lies inside it."""
    path = list(_backwards(flow, delta, barriers))
    factors = [node for node in path if _is_factor(flow, node)]
    roots = [root for node in factors for source in flow.static_reads(node) for root in flow.roots(source)]
    trained = trains(dict.fromkeys(roots))
    inside = path[: path.index(factors[-1]) + 1] if factors else []
    if len(factors) < 2 or not trained:
        return
    for node, reader in zip(inside, (join, *inside), strict=False):
        readers = flow.readers(node)
        if readers != (reader,):
            names = ", ".join(other.name for other in readers)
            raise NotABranch("shared", f"{node.name}, inside the branch, has several readers: {names}", trained)


def _backwards(flow: Dataflow, node: fx.Node, barriers: Collection[fx.Node]) -> Iterator[fx.Node]:
    """Yield the nodes from ``node`` backwards, as long as there is one way and it is linear."""
    while flow.is_activation(node) and node not in barriers and flow.reads(node):
        activations = flow.activations(node)
        if len(activations) != 1 or flow.role(node) not in (Role.PASS, Role.SCALE, Role.FACTOR):
            return
        yield node
        (node,) = activations
