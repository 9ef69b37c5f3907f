"""What would be gated, what not and why, and what each gate can save: without a training step."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor, fx, nn

from ._torch_compat import break_after, capture_graphs, compile_ahead, static_fake, unwrap_compiled
from .config import SkipLoraConfig
from .errors import UsageError, reason_of
from .passes import Pipeline, find_regions, liveness
from .passes.dataflow import value_of
from .passes.flops import Flops, flops
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
    """One graph that Dynamo captured and that has something to differentiate.

    Attributes:
        sites: those that are gated, in the order of the forward.
        rejections: what trains and is not gated.
        backward: FLOPs of the backward with every gate open.
        best_cases: FLOPs of the backward in some cases that a policy can reach, by name.
        uncounted: operators of the backward that no formula covers, and how often they occur.
    """

    sites: tuple[SiteExplained, ...]
    rejections: tuple[Rejection, ...]
    backward: int
    best_cases: dict[str, int]
    uncounted: dict[str, int]


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` found; ``str()`` gives tables.

    Attributes:
        graphs: the graphs with something to differentiate, in the order in which they were captured.
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
        parts = [_graph_text(number, graph, len(self.graphs)) for number, graph in enumerate(self.graphs)]
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
    recorder = _Recorder(config.scope)
    try:
        with torch.enable_grad(), torch.random.fork_rng():
            capture_graphs(unwrap_compiled(model), recorder, args, kwargs)
    except Exception as error:
        raise UsageError(
            f"explain: {type(model).__name__} does not run on these inputs: {reason_of(error)}. Call "
            "explain(model, *args, **kwargs) with what the model is called with in training, labels included."
        ) from error
    graphs = tuple(graph.explained() for graph in recorder.graphs if graph.findings is not None and graph.trains)
    return Explanation(graphs, len(recorder.graphs), dict(recorder.breaks), config.scope)


@dataclass
class _Recorded:
    """One graph while it is captured."""

    findings: Findings | None = None
    trains: bool = False
    counted: Flops = field(default_factory=lambda: Flops({}, {}))
    regions: list[tuple[frozenset[int], int]] = field(default_factory=list)

    def explained(self) -> GraphExplained:
        assert self.findings is not None
        sites = self.findings.sites
        number = len(sites)
        alone = [[other != site for other in range(number)] for site in range(number)]
        prefixes = [[other >= length for other in range(number)] for length in range(number + 1)]
        cases = _cases(number)
        every = self.counted.under([*alone, *prefixes, *cases.values()])
        without, truncated, left = every[:number], every[number : 2 * number + 1], every[2 * number + 1 :]
        total = self.counted.total
        explained = tuple(
            self._site(site, total - without[site.index], truncated[site.index] - truncated[site.index + 1])
            for site in sites
        )
        cases_left = dict(zip(cases, left, strict=True))
        return GraphExplained(explained, self.findings.rejections, total, cases_left, dict(self.counted.uncounted))

    def _site(self, site: Site, saves: int, adds: int) -> SiteExplained:
        value = value_of(site.delta)
        mine = [products for sites, products in self.regions if site.index in sites]
        shape, dtype = tuple(map(int, value.shape)), str(value.dtype).removeprefix("torch.")
        return SiteExplained(
            site.name, site.adapter, site.kind, site.rank, shape, dtype, saves, adds, len(mine), sum(mine)
        )


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
    """A backend that runs the passes on each graph, keeps what they say, and runs the forward as it is."""

    def __init__(self, scope: str) -> None:
        self._scope = scope
        self.graphs: list[_Recorded] = []
        self.breaks: Counter[str] = Counter()

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        run = self._record(gm, inputs)
        reason = break_after(gm)
        if reason is not None:
            self.breaks[reason.strip().splitlines()[0]] += 1
        return run

    def _record(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        recorded = _Recorded()
        pipeline = Pipeline(self._scope)
        recorded.findings = pipeline.rewrite_dynamo(gm)
        number = len(recorded.findings.sites)

        def partitioned(joint: fx.Graph, backward: Callable[[], fx.Graph]) -> None:
            pipeline.rewrite_joint(joint)
            graph = backward()
            recorded.trains, recorded.counted = True, flops(graph, number)
            if number:
                found = find_regions(graph, analysis := liveness(graph, number))
                recorded.regions = [
                    (analysis.conditions.support(region.condition), sum(map(_is_product, region.nodes)))
                    for region in found.regions
                ]

        if pipeline.gated is None:
            run = compile_ahead(gm, inputs, partitioned)
            self.graphs.append(recorded)
            return run
        thresholds = torch.zeros(number, device=_device(inputs))
        compiled = compile_ahead(pipeline.gated.gm, [*inputs, static_fake(thresholds, inputs)], partitioned)
        self.graphs.append(recorded)
        return lambda *args: list(compiled(*args, thresholds))[:-2]


def _device(inputs: Sequence[Any]) -> torch.device:
    return next(value.device for value in inputs if isinstance(value, Tensor) and value.requires_grad)


def _is_product(node: fx.Node) -> bool:
    packet: Any = getattr(node.target, "overloadpacket", None)
    return packet in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm)


def _graph_text(number: int, graph: GraphExplained, graphs: int) -> str:
    lines = [f"Graph {number}: {len(graph.sites)} gated, {_amount(graph.backward)}FLOPs backward"] if graphs > 1 else []
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
            site.name + (f" [{site.adapter}]" if site.adapter not in ("", "default") else ""),
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
