"""A snapshot of a model: every stage of every graph, without a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from .._torch_compat import Parts, compile_ahead, static_fake, traced_module
from ..capturing import capture, device_of_what_trains, module_of
from ..config import SkipLoraConfig
from ..errors import UsageError
from ..live_site import Slot
from ..passes import Pipeline
from ..passes.liveness import is_gate
from ..registry import learn_names, name_of
from ..site import Findings, Rejection, Site
from .record_nodes import portable
from .records import GraphRecord, RejectionRecord, SiteRecord, Snapshot, StageRecord
from .stages import StageRecorder, record_stage, with_sites


def take_snapshot(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], config: SkipLoraConfig) -> Snapshot:
    """Record what becomes of a model under ``backend="skiplora"``.

    One forward is run as :func:`~skiplora_fx.explain` does: no backward, and nothing is compiled to machine code.
    Nothing comes from a cache, and Dynamo's own are left as they are found.

    Args:
        model: an ``nn.Module``, a ``torch.fx.GraphModule`` or a ``torch.export.ExportedProgram``.
        args, kwargs: what it is called with in training.
        config: of it ``scope``, ``decision``, ``merge_siblings`` and ``disable_passes`` matter.

    Raises:
        UsageError: not a module, it does not run on these inputs, torch cannot compile it, or nothing in it is
            differentiated.
    """
    model = module_of(model, "diff")
    learn_names(model)
    recorder = _Recorder(config, model)
    capture(model, recorder, args, kwargs, lambda message, place: None, "diff(model, *args, kwargs={...})")
    graphs = recorder.graphs()
    if not graphs:
        raise UsageError(
            f"diff: no graph of {type(model).__name__} has a backward. Does anything in it train, and does its forward "
            "return what depends on that?"
        )
    return Snapshot(type(model).__name__, config.scope, versions(), graphs)


def versions() -> dict[str, str]:
    """Return the versions that a snapshot names."""
    from .. import __version__  # which imports this

    return {"torch": torch.__version__.partition("+")[0], "skiplora_fx": __version__}


@dataclass
class _Recorded:
    """One graph while it is captured."""

    findings: Findings
    recorder: StageRecorder
    calls: list[tuple[str, ...]]

    def record(self, number: int, path: str) -> GraphRecord:
        return record_graph(number, self.findings, self.recorder.stages, self.calls, path)


def record_graph(
    number: int,
    findings: Findings,
    stages: Sequence[StageRecord],
    calls: Sequence[tuple[str, ...]] = (),
    path: str = "",
    borders: Sequence[fx.Node] = (),
) -> GraphRecord:
    """Record one graph.

    Args:
        number: of the graph.
        findings: what the search said of it.
        stages: so far.
        calls: for each call the names of its sites, of which the first call's are theirs.
        path: of the module that was compiled in the model, for the names of what is not gated.
        borders: inputs that have a gate, as other graphs hand them on. They stand behind the sites.
    """
    names = calls[0] if calls else [site.name for site in findings.sites]
    sites = [_site(site, name) for site, name in zip(findings.sites, names, strict=True)]
    sites += [_border(number, border.name) for number, border in enumerate(borders, len(sites))]
    rejections = tuple(_rejection(miss, path) for miss in findings.rejections)
    return GraphRecord(number, tuple(sites), rejections, tuple(calls), with_sites(stages, findings.sites))


def _site(site: Site, name: str) -> SiteRecord:
    join, h, delta = (node.name for node in (site.join, site.h, site.delta))
    parameters = tuple(node.name for node in site.parameters)
    return SiteRecord(site.index, name, site.adapter, site.kind, site.rank, join, h, delta, parameters)


def _border(index: int, name: str) -> SiteRecord:
    return SiteRecord(index, f"(what is below {name})", "", "border", 0, name, "", "", ())


def _rejection(miss: Rejection, path: str) -> RejectionRecord:
    name = f"{path}.{miss.name}" if path else miss.name
    return RejectionRecord(name, miss.reason, miss.node, miss.family, portable(miss.source))


class _Recorder:
    """A backend that runs the passes on each graph, records the stages, and runs the forward as it is."""

    def __init__(self, config: SkipLoraConfig, model: nn.Module) -> None:
        self._config = config
        self._paths = {module: path for path, module in model.named_modules()}
        self._graphs: list[tuple[_Recorded, str]] = []

    def graphs(self) -> tuple[GraphRecord, ...]:
        """Return the graphs that have a backward."""
        trained = [(recorded, path) for recorded, path in self._graphs if len(recorded.recorder.stages) > 1]
        return tuple(recorded.record(number, path) for number, (recorded, path) in enumerate(trained))

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        stages = StageRecorder()
        config = self._config
        pipeline = Pipeline(config.scope, config.disable_passes, stages, config.decision == "previous")
        pipeline.merges = config.merge_siblings
        findings = pipeline.rewrite_dynamo(gm)
        root = traced_module(gm)
        recorded = _Recorded(findings, stages, [])
        slots = _slots(pipeline, findings)
        run = _compile(pipeline, stages, gm, inputs)
        # only now, as AOTAutograd may have Dynamo begin again
        self._graphs.append((recorded, self._paths.get(root, "") if root is not None else ""))

        def call(*args: Any) -> Any:
            recorded.calls.append(tuple(name_of(args[slot.position], slot) for slot in slots))
            return run(*args)

        return call


def _slots(pipeline: Pipeline, findings: Findings) -> list[Slot]:
    assert pipeline.searched is not None
    carried = {node: position for position, node in enumerate(pipeline.searched.graph.find_nodes(op="placeholder"))}
    return [Slot.of(site, carried) for site in findings.sites]


def _compile(
    pipeline: Pipeline, stages: StageRecorder, gm: fx.GraphModule, inputs: Sequence[Any]
) -> Callable[..., Any]:
    def gated(joint: fx.Graph, cut: Callable[[], Parts]) -> None:
        pipeline.rewrite_joint(joint)
        forward, backward = cut()
        stages("forward", "forward", forward)
        if any(map(is_gate, backward.nodes)):
            pipeline.rewrite_backward(backward)
        else:
            stages.stages.append(record_stage("backward", backward))

    def plain(joint: fx.Graph, cut: Callable[[], Parts]) -> None:
        stages.stages.append(record_stage("joint", joint))
        forward, backward = cut()
        stages.stages += [record_stage("forward", forward), replace(record_stage("joint", backward), name="backward")]

    if pipeline.gated is None:
        return compile_ahead(gm, inputs, plain)
    device = torch.device("cpu") if pipeline.held else device_of_what_trains(inputs)
    thresholds = torch.zeros(len(pipeline.gated.sites), device=device)
    compiled = compile_ahead(pipeline.gated.gm, [*inputs, static_fake(thresholds, inputs)], gated)
    return lambda *args: list(compiled(*args, thresholds))[:-2]
