"""What would be gated, what not and why, and what each gate can save: without a training step."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, fx, nn

from ._torch_compat import break_after, capture_graphs, compile_ahead, static_fake, traced_module, unwrap_compiled
from .config import SkipLoraConfig
from .errors import UsageError, reason_of
from .live_site import Slot
from .passes import Pipeline, find_regions, liveness
from .passes.dataflow import value_of
from .passes.flops import Flops, flops
from .registry import learn_names, name_of
from .site import Findings, Rejection, Site


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
        best_cases: FLOPs of the backward in some cases that a policy can reach, by name.
        uncounted: operators of the backward that no formula covers, and how often they occur.
    """

    number: int
    sites: tuple[SiteExplained, ...]
    rejections: tuple[Rejection, ...]
    backward: int
    best_cases: dict[str, int]
    uncounted: dict[str, int]


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; ``str()`` gives tables.

    Attributes:
        graphs: the graphs with something to differentiate, in the order in which the forward calls them.
        captured: number of all graphs.
        breaks: the reasons for which Dynamo began a new graph, and how often.
        scope: the scope of the gates.
    """

    graphs: tuple[GraphExplained, ...]
    captured: int
    breaks: dict[str, int]
    scope: str

    @property
    def backward(self) -> int:
        """FLOPs of all backwards with every gate open."""
        return sum(graph.backward for graph in self.graphs)

    def best_cases(self) -> dict[str, float]:
        """Return for each case the share of all backward FLOPs that is left out, from 0 to 1."""
        saved: Counter[str] = Counter()
        for graph in self.graphs:
            saved.update({name: graph.backward - left for name, left in graph.best_cases.items()})
        return {name: amount / self.backward if self.backward else 0.0 for name, amount in saved.items()}

    def to_json(self) -> str:
        """Return everything as JSON: the fields of this class and of those it holds; FLOPs as integers."""
        fields = asdict(self) | {"backward": self.backward, "share_left_out": self.best_cases()}
        return json.dumps(fields, indent=2)

    def __str__(self) -> str:
        parts = [_graph_text(graph, len(self.graphs)) for graph in self.graphs]
        return "\n\n".join([*parts, _totals_text(self)])


def explain(model: nn.Module, *args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> Explanation:
    """Say what ``model.compile(backend="skiplora")`` would gate, what not and why, and what each gate can save.

    Runs one forward of the model as it is, in the mode it is in, under autograd and Dynamo; no backward, and nothing is
    compiled to machine code. A model on the meta device is not computed at all. Products, convolutions and
    attention are counted by the formulas of ``torch.utils.flop_counter``; the backward is that of the
    partitioned graph, what it recomputes included.

    Args:
        model: with its adapters, not wrapped by ``torch.compile``.
        args, kwargs: what it is called with.
        options: as in ``model.compile(backend="skiplora", options=...)``; only ``scope`` matters here.

    Raises:
        UsageError: not a module, or the model does not run on these inputs.
        ConfigError: an option is unknown or out of range.
    """
    config = SkipLoraConfig.from_options(options)
    if not isinstance(model, nn.Module):
        raise UsageError(f"explain needs a model, a torch.nn.Module, got {type(model).__name__}")
    model = unwrap_compiled(model)
    learn_names(model)
    recorder = _Recorder(config.scope, model)
    try:
        with torch.enable_grad(), torch.random.fork_rng():
            capture_graphs(model, recorder, args, kwargs)
    except Exception as error:
        raise UsageError(
            f"explain: {type(model).__name__} does not run on these inputs: {reason_of(error)}. Call "
            "explain(model, *args, **kwargs) with what the model is called with in training, labels included."
        ) from error
    return Explanation(_graphs(recorder), len(recorder.graphs), dict(recorder.breaks), config.scope)


def _graphs(recorder: _Recorder) -> tuple[GraphExplained, ...]:
    """Explain each call; the cases are over the sites of all of them, in the order of the forward."""
    calls = [(number, names) for number, names in recorder.calls if recorder.graphs[number].trains]
    cases = _cases(sum(len(names) for _, names in calls))
    explained, begin = [], 0
    for number, names in calls:
        end = begin + len(names)
        masks = {case: opens[begin:end] for case, opens in cases.items()}
        explained.append(recorder.graphs[number].explained(number, names, masks))
        begin = end
    return tuple(explained)


@dataclass
class _Recorded:
    """One graph while it is captured."""

    findings: Findings
    trains: bool = False
    counted: Flops = field(default_factory=lambda: Flops("", "", (), {}))
    regions: list[tuple[frozenset[int], int]] = field(default_factory=list)

    def explained(self, number: int, names: Sequence[str], cases: dict[str, list[bool]]) -> GraphExplained:
        """Return what one call comes to: its sites' names, and decisions, True where open, in each of some cases."""
        sites = self.findings.sites
        many = len(sites)
        alone = [[other != site for other in range(many)] for site in range(many)]
        prefixes = [[other >= length for other in range(many)] for length in range(many + 1)]
        every = self.counted.under([*alone, *prefixes, *cases.values()])
        without, truncated, left = every[:many], every[many : 2 * many + 1], every[2 * many + 1 :]
        total = self.counted.total
        explained = tuple(
            self._site(site, name, total - without[site.index], truncated[site.index] - truncated[site.index + 1])
            for site, name in zip(sites, names, strict=True)
        )
        cases_left = dict(zip(cases, left, strict=True))
        return GraphExplained(
            number, explained, self.findings.rejections, total, cases_left, dict(self.counted.uncounted)
        )

    def _site(self, site: Site, name: str, saves: int, adds: int) -> SiteExplained:
        value = value_of(site.delta)
        mine = [products for sites, products in self.regions if site.index in sites]
        shape, dtype = tuple(map(int, value.shape)), str(value.dtype).removeprefix("torch.")
        return SiteExplained(name, site.adapter, site.kind, site.rank, shape, dtype, saves, adds, len(mine), sum(mine))


def _cases(sites: int) -> dict[str, list[bool]]:
    """Return decisions that a policy can reach, True where open.

    A threshold may shut any set; the best it can do is all of them. The halves show what truncation is worth.
    """
    half = sites // 2
    return {
        "every adapter skipped": [False] * sites,
        "the first half skipped": [site >= half for site in range(sites)],
        "the last half skipped": [site < half for site in range(sites)],
        "every other one skipped": [site % 2 == 1 for site in range(sites)],
    }


class _Recorder:
    """A backend that runs the passes on each graph, keeps what they say, and runs the forward as it is.

    Attributes:
        graphs: those captured so far.
        calls: which of them the forward called, in order, and the names of the sites in each call.
        breaks: why Dynamo ended a graph, and how often.
    """

    def __init__(self, scope: str, model: nn.Module) -> None:
        self._scope = scope
        self._paths = {module: path for path, module in model.named_modules()}
        self.graphs: list[_Recorded] = []
        self.calls: list[tuple[int, tuple[str, ...]]] = []
        self.breaks: Counter[str] = Counter()

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        pipeline = Pipeline(self._scope)
        findings = self._named_from_outside(pipeline.rewrite_dynamo(gm), traced_module(gm))
        recorded = _Recorded(findings)
        run = self._compile(pipeline, recorded, gm, inputs)
        number, slots = len(self.graphs), self._slots(pipeline, findings)
        self.graphs.append(recorded)  # only now, as AOTAutograd may have Dynamo begin again
        reason = break_after(gm)
        if reason is not None:
            self.breaks[reason.strip().splitlines()[0]] += 1

        def call(*args: Any) -> Any:
            self.calls.append((number, tuple(name_of(args[slot.position], slot) for slot in slots)))
            return run(*args)

        return call

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

        def partitioned(joint: fx.Graph, backward: Callable[[], fx.Graph]) -> None:
            pipeline.rewrite_joint(joint)
            graph = backward()
            analysis = liveness(graph, sites)
            recorded.trains, recorded.counted = True, flops(graph, analysis)
            if sites:
                found = find_regions(graph, analysis)
                recorded.regions = [
                    (analysis.conditions.support(region.condition), sum(map(_is_product, region.nodes)))
                    for region in found.regions
                ]

        if pipeline.gated is None:
            return compile_ahead(gm, inputs, partitioned)
        thresholds = torch.zeros(sites, device=_device(inputs))
        compiled = compile_ahead(pipeline.gated.gm, [*inputs, static_fake(thresholds, inputs)], partitioned)
        return lambda *args: list(compiled(*args, thresholds))[:-2]


def _device(inputs: Sequence[Any]) -> torch.device:
    return next(value.device for value in inputs if isinstance(value, Tensor) and value.requires_grad)


def _is_product(node: fx.Node) -> bool:
    packet: Any = getattr(node.target, "overloadpacket", None)
    return packet in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)


def _graph_text(graph: GraphExplained, graphs: int) -> str:
    head = f"Graph {graph.number}: {len(graph.sites)} gated, {_amount(graph.backward)}FLOPs backward"
    lines = [head] if graphs > 1 else []
    if graph.sites:
        lines.append(tabulate(_site_rows(graph), headers=_HEADERS, colalign=_ALIGNMENT))
    if graph.rejections:
        lines += ["", f"Trained, but not gated: {len(graph.rejections)}"]
        rows = [(miss.name, miss.family, miss.reason, miss.source or miss.node) for miss in graph.rejections]
        lines.append(tabulate(rows, headers=["parameter", "family", "reason", "at"], maxcolwidths=[44, None, 60, 44]))
    return "\n".join(lines)


_HEADERS = ["site", "kind", "r", "Δh", "dtype", "alone", "truncation", "regions", "products"]
_ALIGNMENT = ("left", "left", "right", "left", "left", "right", "right", "right", "right")


def _site_rows(graph: GraphExplained) -> list[list[str]]:
    return [
        [
            (site.name or "(the model)") + (f" [{site.adapter}]" if site.adapter not in ("", "default") else ""),
            site.kind,
            str(site.rank),
            "×".join(map(str, site.shape)),
            site.dtype,
            _share(site.saves, graph.backward),
            _share(site.adds, graph.backward),
            str(site.regions),
            str(site.products),
        ]
        for site in graph.sites
    ]


def _totals_text(found: Explanation) -> str:
    gated = sum(len(graph.sites) for graph in found.graphs)
    rejected = sum(len(graph.rejections) for graph in found.graphs)
    breaks = sum(found.breaks.values())
    lines = [
        f"{_counted(found.captured, 'graph')}, {_counted(breaks, 'graph break')}, {_counted(gated, 'adapter')} gated "
        f"(scope {found.scope!r}), {_counted(rejected, 'trained parameter')} not gated.",
        f"Backward: {_amount(found.backward)}FLOPs with every gate open. Left out at best:",
    ]
    lines += [f"  {share:6.1%}  {name}" for name, share in found.best_cases().items()]
    uncounted: Counter[str] = Counter()
    for graph in found.graphs:
        uncounted.update(graph.uncounted)
    if uncounted:
        listed = ", ".join(f"{name} ({times})" for name, times in uncounted.most_common())
        lines.append(f"Not counted, beside what touches each element once: {listed}.")
    lines += [f"Graph break, {times}x: {reason}" for reason, times in found.breaks.items()]
    if not gated:
        lines.append("Nothing is gated. Does an adapter train? See the reasons above, and docs/explain.md.")
    return "\n".join(lines)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.3g}%" if whole else "-"


def _amount(number: float) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.3g} {prefix}"
        number /= 1000
    return f"{number:.3g} P"
