"""What would be gated, what not and why, and what each gate can save: without a training step."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn

from ._torch_compat import Parts, compile_ahead, static_fake, traced_module
from .best_cases import best_cases, share_left_out
from .capturing import capture, device_of_what_trains, module_of
from .config import SkipLoraConfig
from .costs import ModelCosts
from .explain_text import explanation_text
from .live_site import Slot
from .passes import Pipeline, drop_rng_states, find_regions, liveness
from .passes.dataflow import value_of
from .passes.flops import Flops, flops
from .passes.liveness import is_gate
from .policy import SiteHistory
from .policy.wrappers import CostsOfSome
from .registry import learn_names, name_of
from .site import Findings, Rejection, Site
from .wanted_inputs import carried_inputs, wanted_inputs


@dataclass(frozen=True)
class SiteExplained:
    """One site of a graph.

    Attributes:
        name: module path of the adapted layer.
        adapter: name of the adapter on that layer.
        kind: the branch's contractions, such as ``"linear→linear"``.
        rank: r.
        shape: of Δh.
        dtype: of Δh.
        saves: backward FLOPs that its gate alone saves, every other gate being open.
        adds: backward FLOPs that its gate saves when those of all sites before it in the forward are shut already:
            its part of a truncation.
        regions: in how many regions of the backward its decision plays a part.
        products: how many products those hold.
    """

    name: str
    adapter: str
    kind: str
    rank: int
    shape: tuple[int, ...]
    dtype: str
    saves: int
    adds: int
    regions: int
    products: int


@dataclass(frozen=True)
class GraphExplained:
    """One call of a graph that Dynamo captured and that has something to differentiate.

    After a graph break layers that are alike share a graph, which the forward then calls once for each.

    Attributes:
        number: of the graph, in the order in which they were captured.
        sites: those that are gated, in the order of the forward.
        rejections: what trains and is not gated.
        backward: FLOPs of the backward with every gate open.
        uncounted: operators of the backward that no formula covers, and how often they occur.
        wanted: inputs that are no parameters and whose gradient is kept for whoever reads it, as Python finds them.
            The backward goes down to them whatever is skipped.
    """

    number: int
    sites: tuple[SiteExplained, ...]
    rejections: tuple[Rejection, ...]
    backward: int
    uncounted: dict[str, int]
    wanted: tuple[str, ...] = ()


@dataclass(frozen=True)
class Break:
    """A place in the source where Dynamo cannot go on: it begins a new graph there, or leaves a function to Python.

    Attributes:
        reason: Dynamo's, in one line.
        place: ``file:line``; empty if Dynamo does not say.
    """

    reason: str
    place: str


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; ``str()`` gives tables.

    Attributes:
        graphs: the graphs with something to differentiate, in the order in which the forward calls them.
        captured: number of all graphs.
        breaks: where Dynamo breaks them, and why. Those inside what it leaves to Python are not looked for.
        outside: the parameters that train and that no such graph reads.
        scope: the scope of the gates.
        masks: share of all backward FLOPs that is left out under some sets of shut gates, by name, from 0 to 1.
        best_cases: share that each policy can leave out on average, by the policy's name, from 0 to 1.
    """

    graphs: tuple[GraphExplained, ...]
    captured: int
    breaks: tuple[Break, ...]
    outside: tuple[Rejection, ...]
    scope: str
    masks: dict[str, float]
    best_cases: dict[str, float]

    @property
    def backward(self) -> int:
        """FLOPs of all backwards with every gate open."""
        return sum(graph.backward for graph in self.graphs)

    def to_json(self) -> str:
        """Return everything as JSON: the fields of this class and of those it holds; FLOPs as integers."""
        return json.dumps(asdict(self) | {"backward": self.backward}, indent=2)

    def __str__(self) -> str:
        return explanation_text(self)


def explain(model: Any, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> Explanation:
    """Say what ``model.compile(backend="skiplora")`` would gate, what not and why, and what each gate can save.

    Runs one forward of the model as it is, in the mode it is in, under autograd and Dynamo; no backward, and nothing is
    compiled to machine code. A model on the meta device is not computed at all. Products, convolutions and
    attention are counted by the formulas of ``torch.utils.flop_counter``; the backward is that of the
    partitioned graph, what it recomputes included.

    Args:
        model: an ``nn.Module`` with its adapters, or a ``torch.export.ExportedProgram`` of one.
        args, kwargs: what it is called with. A keyword of its own that is called ``options`` has to be bound before,
            in a module around it.
        options: as in ``model.compile(backend="skiplora", options=...)``; ``scope`` and ``only`` matter here, and of
            a policy given by name its ``policy_kwargs``.

    Raises:
        UsageError: not a module, the model does not run on these inputs, or torch cannot compile it.
        ConfigError: an option is unknown or out of range.
    """
    config = SkipLoraConfig.from_options(options)
    model = module_of(model, "explain")
    learn_names(model)
    recorder = _Recorder(config, model)
    capture(model, recorder, args, kwargs, recorder.note_break, "explain(model, *args, **kwargs)")
    return recorder.explanation()


@dataclass
class _Recorded:
    """One graph while it is captured."""

    findings: Findings
    wanted: tuple[str, ...]
    trains: bool = False
    counted: Flops = field(default_factory=lambda: Flops("", "", (), {}))
    regions: list[tuple[frozenset[int], int]] = field(default_factory=list)

    def explained(self, number: int, names: Sequence[str], saves: Sequence[int], adds: Sequence[int]) -> GraphExplained:
        """Return what one call comes to: its sites' names, and what each saves alone, and after those before it."""
        rows = zip(self.findings.sites, names, saves, adds, strict=True)
        sites = tuple(self._site(site, name, alone, added) for site, name, alone, added in rows)
        uncounted = dict(self.counted.uncounted)
        return GraphExplained(number, sites, self.findings.rejections, self.counted.total, uncounted, self.wanted)

    def _site(self, site: Site, name: str, saves: int, adds: int) -> SiteExplained:
        value = value_of(site.delta)
        mine = [products for sites, products in self.regions if site.index in sites]
        shape, dtype = tuple(map(int, value.shape)), str(value.dtype).removeprefix("torch.")
        return SiteExplained(name, site.adapter, site.kind, site.rank, shape, dtype, saves, adds, len(mine), sum(mine))


@dataclass(frozen=True)
class _Call:
    """One call of a graph: the names of its sites, and where they stand among those of all calls."""

    number: int
    graph: _Recorded
    names: tuple[str, ...]
    places: range

    def explained(self, costs: ModelCosts) -> GraphExplained:
        mine = slice(self.places.start, self.places.stop)
        return self.graph.explained(self.number, self.names, costs.alone[mine], costs.added[mine])

    def histories(self) -> list[SiteHistory]:
        return [
            SiteHistory(name, site.adapter) for site, name in zip(self.graph.findings.sites, self.names, strict=True)
        ]


def _masks(sites: int) -> dict[str, list[bool]]:
    """Return sets of decisions, True where open, that show what truncation is worth."""
    half = sites // 2
    return {
        "every adapter skipped": [False] * sites,
        "the first half skipped": [site >= half for site in range(sites)],
        "the last half skipped": [site < half for site in range(sites)],
        "every other one skipped": [site % 2 == 1 for site in range(sites)],
    }


class _Recorder:
    """A backend that runs the passes on each graph, keeps what they say, and runs the forward as it is."""

    def __init__(self, config: SkipLoraConfig, model: nn.Module) -> None:
        self._config = config
        self._model = model
        self._paths = {module: path for path, module in model.named_modules()}
        self._graphs: list[_Recorded] = []
        self._calls: list[tuple[int, tuple[str, ...]]] = []
        self._breaks: list[Break] = []
        self._read: dict[int, bool] = {}

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        pipeline = Pipeline(self._config.scope, held=self._config.decision == "previous")
        pipeline.carried = carried_inputs(inputs)
        findings = self._named_from_outside(pipeline.rewrite_dynamo(gm), traced_module(gm))
        recorded = _Recorded(findings, wanted_inputs(gm, inputs))
        run = self._compile(pipeline, recorded, gm, inputs)
        number, slots = len(self._graphs), self._slots(pipeline, findings)
        self._graphs.append(recorded)  # only now, as AOTAutograd may have Dynamo begin again

        def call(*args: Any) -> Any:
            self._calls.append((number, tuple(name_of(args[slot.position], slot) for slot in slots)))
            for parameter in args:
                self._read[id(parameter)] = recorded.trains or self._read.get(id(parameter), False)
            return run(*args)

        return call

    def note_break(self, message: str, place: str) -> None:
        """Note a graph break by Dynamo's message, a page of which the first line names it and the second explains."""
        self._breaks.append(Break(_plain(message), place))

    def explanation(self) -> Explanation:
        """Return what was found; what policies can do is over the sites of all calls, in the order of the forward."""
        config = self._config
        calls = self._training_calls()
        sites = [site for call in calls for site in call.histories()]
        costs = ModelCosts(tuple((call.graph.counted, tuple(call.places)) for call in calls), len(sites))
        chosen = [place for place, site in enumerate(sites) if config.may_shut(site.name)]
        some = CostsOfSome(costs, chosen, len(sites))
        return Explanation(
            graphs=tuple(call.explained(costs) for call in calls),
            captured=len(self._graphs),
            breaks=tuple(self._breaks),
            outside=self._outside(),
            scope=config.scope,
            masks={name: share_left_out([mask], costs) for name, mask in _masks(len(sites)).items()},
            best_cases=best_cases([sites[place] for place in chosen], some, {config.policy: config.policy_kwargs}),
        )

    def _training_calls(self) -> list[_Call]:
        calls, begin = [], 0
        for number, names in self._calls:
            graph = self._graphs[number]
            if graph.trains:
                calls.append(_Call(number, graph, names, range(begin, begin + len(names))))
                begin += len(names)
        return calls

    def _outside(self) -> tuple[Rejection, ...]:
        trained = [
            (name, id(parameter)) for name, parameter in self._model.named_parameters() if parameter.requires_grad
        ]
        return tuple(
            Rejection(name, _NO_BACKWARD if key in self._read else _NOT_READ, "", "outside any graph")
            for name, key in trained
            if not self._read.get(key, False)
        )

    def _named_from_outside(self, findings: Findings, traced: nn.Module | None) -> Findings:
        """Name what is rejected by its path in the model, where Dynamo has compiled a part of that by itself."""
        path = self._paths.get(traced, "") if traced is not None else ""
        if not path:
            return findings
        return replace(
            findings, rejections=tuple(replace(miss, name=f"{path}.{miss.name}") for miss in findings.rejections)
        )

    @staticmethod
    def _slots(pipeline: Pipeline, findings: Findings) -> list[Slot]:
        assert pipeline.searched is not None
        inputs = pipeline.searched.graph.find_nodes(op="placeholder")
        carried = {node: position for position, node in enumerate(inputs)}
        return [Slot.of(site, carried) for site in findings.sites]

    @staticmethod
    def _compile(
        pipeline: Pipeline, recorded: _Recorded, gm: fx.GraphModule, inputs: Sequence[Any]
    ) -> Callable[..., Any]:
        sites = len(recorded.findings.sites)
        borders = len(pipeline.gated.borders) if pipeline.gated is not None else 0

        def partitioned(joint: fx.Graph, cut: Callable[[], Parts]) -> None:
            pipeline.rewrite_joint(joint)
            graph = cut().backward
            if pipeline.gated is None:
                _take_gates_away(graph)
            drop_rng_states(graph)
            analysis = liveness(graph, sites + borders)
            found = find_regions(graph, analysis)
            recorded.trains, recorded.counted = True, flops(graph, analysis, found, borders)
            recorded.regions = [
                (
                    analysis.conditions.support(region.condition).intersection(range(sites)),
                    sum(map(_is_product, region.nodes)),
                )
                for region in found.regions
            ]

        if pipeline.gated is None:
            return compile_ahead(gm, inputs, partitioned)
        device = torch.device("cpu") if pipeline.held else device_of_what_trains(inputs)
        thresholds = torch.zeros(sites + borders, device=device)
        compiled = compile_ahead(pipeline.gated.gm, [*inputs, static_fake(thresholds, inputs)], partitioned)
        return lambda *args: list(compiled(*args, thresholds))[:-2]


def _is_product(node: fx.Node) -> bool:
    packet: Any = getattr(node.target, "overloadpacket", None)
    return packet in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)


_NOT_READ = "no graph reads it: what reads it runs as plain Python (see the graph breaks), or nothing does"
_NO_BACKWARD = "the graph that reads it has no backward: it is read where no gradient is recorded"


def _take_gates_away(graph: fx.Graph) -> None:
    """Leave the gates open that a graph of ``apply`` brings along: its decisions are not those of a policy here."""
    for gate in filter(is_gate, graph.nodes):
        gate.replace_all_uses_with(gate.args[0])
    graph.eliminate_dead_code()


def _plain(message: str) -> str:
    """Return the name of a graph break and Dynamo's explanation of it, in one line and the same in each run."""
    name, *rest = message.splitlines()
    told = next((line.partition("Explanation:")[2].strip() for line in rest if "Explanation:" in line), "")
    return re.sub(r" at 0x[0-9a-f]+", "", f"{name.rstrip('.')}: {told}" if told else name)
