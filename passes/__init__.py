"""The pipeline: which passes run, on which graph, in which order, and why there.

It knows nothing of thresholds, of statistics or of debugging. Who wants to look between two passes hands in
a callback.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx

from ..errors import InternalError
from ..gate import LET_GO
from ..site import Findings
from .border_gates import find_borders
from .copying import kept_whole
from .drop_rng_states import drop_rng_states
from .find_layers import find_layers
from .find_lora import find_lora
from .find_regions import Regions, find_regions
from .flops import Flops, flops
from .fold_gates import FoldedGates, check_consumed, fold_gates
from .insert_gates import GatedGraph, insert_gates
from .layer_steps import is_step
from .liveness import Liveness, is_gate, liveness
from .merge_siblings import merge_siblings
from .operators import COND
from .outline_layers import outline_layers
from .parameters import Lifted, Parameters
from .predicate_backward import describe, predicate_backward
from .release_operands import release_operands
from .release_saved import Released, check_released, release_saved, settle_released
from .share_branches import share_branches
from .siblings import Siblings, find_siblings
from .sizes import symbols_of
from .split_joins import split_joins

__all__ = [
    "PIPELINE",
    "FoldedGates",
    "GatedGraph",
    "Liveness",
    "Pipeline",
    "Regions",
    "Stage",
    "drop_rng_states",
    "find_layers",
    "find_lora",
    "find_regions",
    "fold_gates",
    "insert_gates",
    "liveness",
    "merge_siblings",
    "outline_layers",
    "predicate_backward",
    "release_operands",
    "release_saved",
    "share_branches",
    "split_joins",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage:
    """One place in the pipeline.

    Attributes:
        name: the pass, which is also its file and its function.
        graph: ``"dynamo"``, ``"joint"``, ``"forward"`` or ``"backward"``.
        reason: why it stands in this place.
    """

    name: str
    graph: str
    reason: str


PIPELINE: tuple[Stage, ...] = (
    Stage("split_joins", "dynamo", "the search looks for additions, and some are fused with the product before them"),
    Stage("find_lora", "dynamo", "an adapter's two linears and its addition are still whole here"),
    Stage("insert_gates", "dynamo", "autograd has not run yet, so it writes each gate's derivative itself"),
    Stage("merge_siblings", "dynamo", "autograd has not run yet, so it writes the merged backward itself"),
    Stage("fold_gates", "joint", "the derivative is written, and the partitioner has not yet chosen what to save"),
    Stage("drop_rng_states", "backward", "the partitioner wrote them, and liveness would always run what they call"),
    Stage(
        "release_saved", "forward", "the partitioner has settled what is saved, and Inductor has compiled no half yet"
    ),
    Stage("liveness", "backward", "the partitioner has settled what the backward recomputes, which may be skipped too"),
    Stage("find_regions", "backward", "needs the conditions of liveness, and a graph that nobody will edit in between"),
    Stage("predicate_backward", "backward", "before Inductor lowers: its fusions must not cross a region's border"),
    Stage("share_branches", "backward", "every region has its branches by now, and Inductor has compiled none"),
    Stage("release_operands", "backward", "last of all: who reads a value last has to be known for good"),
)
"""Every pass, in the order in which they run."""

OnPass = Callable[[str, str, fx.Graph], None]
"""Called after each pass with the pass's name, the graph's kind, and the graph. It must not edit the graph.

It is called before a pass too where what that gets comes from elsewhere: as ``joint`` with the joint graph, as
``backward`` with the backward behind ``drop_rng_states``, and as ``forward`` with a graph without gates that nothing
more is done to.
"""


def _ignore(name: str, kind: str, graph: fx.Graph) -> None:
    pass


OnFailure = Callable[[str, Exception], None]


def _raise(name: str, error: Exception) -> None:
    raise error


@dataclass
class Pipeline:
    """Runs the passes over the three graphs of one compile.

    Attributes:
        scope: ``"adapter"``, ``"layer"`` or ``"input"``, as in :func:`insert_gates`.
        disabled: names of the passes to leave out.
        on_pass: called after each pass.
        findings: what ``find_lora`` said.
        searched: the graph that was searched: the one given, or a copy with its fused joins split.
        gated: what ``insert_gates`` made.
        folded: what ``fold_gates`` left for the backward.
        counts: whether to count what the backward costs.
        merges: whether adapters that share an input are multiplied as one: ``merge_siblings`` runs only then.
        flops: what it costs, if it is counted and compiled.
        held: whether decisions are taken before the forward, as in :func:`insert_gates`.
        carried: positions of the graph's inputs that want a gradient and were computed outside. What of them can be
            gated is, if decisions are held: below there may be nothing left to train.
        released: what the forward gives back, if ``release_saved`` found something.
        on_failure: called with the name of a step and its error, where the graph is whole and right without it.
        inputs: for each gate the positions, among the graph's inputs, of parameters whose gradients show that the gate
            must have a twin: those of its sites that nothing else reads.
    """

    scope: str
    disabled: Collection[str] = ()
    on_pass: OnPass = _ignore
    held: bool = False
    carried: Collection[int] = ()
    counts: bool = False
    on_failure: OnFailure = _raise
    merges: bool = False
    findings: Findings = field(default=Findings((), ()), init=False)
    searched: fx.GraphModule | None = field(default=None, init=False)
    gated: GatedGraph | None = field(default=None, init=False)
    inputs: tuple[tuple[int, ...], ...] = field(default=(), init=False)
    folded: FoldedGates | None = field(default=None, init=False)
    released: Released | None = field(default=None, init=False)
    flops: Flops | None = field(default=None, init=False)

    def rewrite_dynamo(self, gm: fx.GraphModule, lifted: Mapping[str, Lifted] | None = None) -> Findings:
        """Search the graph; if there are sites, gate a copy of it, which is then :attr:`gated`.

        Args:
            gm: the forward; it is not changed.
            lifted: as in :func:`find_lora`.
        """
        gm = self.searched = split_joins(gm, Parameters(gm, lifted))
        self.on_pass("split_joins", "dynamo", gm.graph)
        findings = self.findings = find_lora(gm, lifted)
        log.debug("find_lora: %d sites\n%s", len(findings.sites), findings.describe())
        self.on_pass("find_lora", "dynamo", gm.graph)
        if findings.sites and "insert_gates" not in self.disabled:
            self.gated = insert_gates(gm, findings.sites, self.scope, self.held, self._borders(gm.graph))
            self.on_pass("insert_gates", "dynamo", self.gated.gm.graph)
            siblings = self._merge(gm, self.gated) if self.merges else ()
            self.inputs = _own_inputs(gm.graph, self.gated, siblings)
        return findings

    def _borders(self, graph: fx.Graph) -> tuple[fx.Node, ...]:
        if not self.held or self.scope == "input" or "predicate_backward" in self.disabled:
            return ()  # with the scope "input" every adapter below trains, whatever is shut
        return find_borders(graph, self.carried, {node for site in self.findings.sites for node in site.trained})

    def _merge(self, gm: fx.GraphModule, gated: GatedGraph) -> tuple[Siblings, ...]:
        siblings = find_siblings(gm, gated.sites)
        merge_siblings(gated, siblings)
        log.debug("merge_siblings: %s", [tuple(node.name for node in group.linears) for group in siblings])
        self.on_pass("merge_siblings", "dynamo", gated.gm.graph)
        return siblings

    def rewrite_joint(self, graph: fx.Graph) -> None:
        """Fold the gates of a joint graph; any other graph, one that ``apply`` has gated too, is left as it is."""
        if self.gated is None or "fold_gates" in self.disabled or not _has_skiplora_nodes(graph):
            return
        self.on_pass("joint", "joint", graph)
        borders = [(number,) for number in range(len(self.gated.sites), self.gated.decisions)]
        self.folded = fold_gates(graph, self.gated.gates, self.inputs, optional=borders)
        log.debug("fold_gates: %d gates, %d with a backward", len(self.folded.forward), len(self.folded.backward))
        self.on_pass("fold_gates", "joint", graph)

    @property
    def releases(self) -> bool:
        """Whether ``release_saved`` runs: decisions are known before the forward, and something is left out by them."""
        needed = ("insert_gates", "fold_gates", "release_saved", "predicate_backward")
        return self.held and not any(name in self.disabled for name in needed)

    def rewrite_partitioned(self, forward: fx.Graph, backward: fx.Graph, outputs: int) -> None:
        """Have the forward give back what the backward will not read.

        Args:
            forward, backward: as the partitioner cut them. Of the backward only states of the generator that nothing
                draws from are dropped.
            outputs: how many of the forward's outputs are the user's.
        """
        if self.gated is None or self.folded is None or not self.releases or not any(map(is_gate, backward.nodes)):
            return
        try:
            drop_rng_states(backward)
            with kept_whole(forward):
                self.released = release_saved(forward, backward, outputs, self.gated.decisions)
                self.on_pass("release_saved", "forward", forward)
        except Exception as error:
            self.released = None
            self.on_failure("release_saved", error)

    def settle_forward(self, graph: fx.Graph) -> None:
        """Put what gives memory back where it belongs after Inductor's passes; any other graph is left as it is.

        If that fails nothing is given back.
        """
        if self.released is None:
            return
        try:
            with kept_whole(graph):
                settle_released(graph, self.released)
        except Exception as error:
            self.released = None
            for call in graph.find_nodes(op="call_function", target=LET_GO):
                graph.erase_node(call)
            self.on_failure("release_saved", error)

    def rewrite_backward(self, graph: fx.Graph) -> None:
        """Predicate a backward graph; any other graph, one that ``apply`` has gated too, is left as it is.

        It may come long after the forward, when the user calls ``backward()``: what fails here leaves the graph as it
        was, whose gates are exact, only that nothing is left out, and goes to :attr:`on_failure`.
        """
        running = "check_consumed"
        try:
            for step in self._rewriting_backward(graph):
                running = step
        except Exception as error:
            if self.released is not None:
                raise InternalError(_GIVEN_BACK.format(running)) from error
            self.on_failure(running, error)
        else:
            if graph.find_nodes(op="call_function", target=COND):
                self._finish_backward(graph)

    def _rewriting_backward(self, graph: fx.Graph) -> Iterator[str]:
        """Predicate a backward, and give the name of each step before it is taken."""
        if self.folded is not None:
            check_consumed(graph, self.folded)
        if self.gated is None or not any(map(is_gate, graph.nodes)):
            self.on_pass("forward", "forward", graph)
            return
        yield "drop_rng_states"
        drop_rng_states(graph)
        self.on_pass("drop_rng_states", "backward", graph)
        self.on_pass("backward", "backward", graph)
        yield "liveness"
        given_back = self.released
        analysis = liveness(graph, self.gated.decisions, given_back.conditions if given_back else None)
        yield "find_regions"
        found = find_regions(graph, analysis)
        if self.counts:
            yield "flops"
            self.flops = flops(graph, analysis, found, len(self.gated.borders))
        if "predicate_backward" in self.disabled:
            return
        log.debug("predicate_backward: %d regions\n%s", len(found.regions), Described(analysis, found))
        if given_back is not None:
            yield "release_saved"
            check_released(graph, given_back, analysis, found)
        yield "predicate_backward"
        with kept_whole(graph):
            predicate_backward(graph, analysis, found)
            self.on_pass("predicate_backward", "backward", graph)

    def _finish_backward(self, graph: fx.Graph) -> None:
        """Run the passes over a predicated backward, which is right without them, and with a part of what they do."""
        for name, finish in (("share_branches", share_branches), ("release_operands", release_operands)):
            if name in self.disabled:
                continue
            try:
                finish(graph)
                self.on_pass(name, "backward", graph)
            except Exception as error:
                self.on_failure(name, error)

    def outline(self, graph: fx.Graph) -> None:
        """Have layers that are alike call one function, in a graph as Inductor's own passes left it.

        It is for a forward and a backward alike, and in no :data:`PIPELINE`: it is done only if asked for. A graph with
        sizes that are known only when it runs is left as it is, and so is a forward that gives memory back between
        layers.
        """
        try:
            self._outline(graph)
        except Exception as error:
            self.on_failure("outline_layers", error)

    def _outline(self, graph: fx.Graph) -> None:
        if symbols_of(filter(is_step, graph.nodes)) or graph.find_nodes(op="call_function", target=LET_GO):
            log.debug("outline_layers: the graph has symbolic sizes, or gives memory back")
            return
        found = find_layers(graph)
        log.debug("outline_layers: %s", [(len(layers.alike), len(layers.alike[0].steps)) for layers in found])
        with kept_whole(graph):
            outline_layers(graph, found)
        self.on_pass("outline_layers", "outlined", graph)


_GIVEN_BACK = (
    "{} failed on a backward whose forward has given back what skipped regions do not read, so it cannot run without "
    'that pass. Please report it; until it is mended, disable_passes=("release_saved",) keeps what the forward saved.'
)


@dataclass(frozen=True)
class Described:
    """Text of regions that is only made if a log is read."""

    liveness: Liveness
    found: Regions

    def __str__(self) -> str:
        return describe(self.liveness, self.found)


def _own_inputs(graph: fx.Graph, gated: GatedGraph, siblings: Sequence[Siblings]) -> tuple[tuple[int, ...], ...]:
    """Return for each gate which inputs are its sites' own, so that with a gradient of one there must be one of it.

    A border's own is itself. What is merged has a gradient where any of the siblings has one.
    """
    owned = [*(site.own for site in gated.sites), *((border,) for border in gated.borders)]
    positions = {node: position for position, node in enumerate(graph.find_nodes(op="placeholder"))}
    for node in frozenset[fx.Node]().union(*(group.parameters for group in siblings)):
        positions.pop(node, None)
    return tuple(
        tuple(positions[node] for index in gate for node in owned[index] if node in positions and reached)
        for gate, reached in zip(gated.gates, gated.reached, strict=True)
    )


def _has_skiplora_nodes(graph: fx.Graph) -> bool:
    return any(getattr(node.target, "namespace", None) == "skiplora" for node in graph.nodes)
