"""The pipeline without Inductor's code generation, and every graph it sees: what quick tests compile with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from aten import copied, poison
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor, fx, nn
from torch._dynamo.backends.common import aot_autograd
from torch._inductor.decomposition import select_decomp_table

from skiplora_fx._torch_compat import static_fake
from skiplora_fx.passes import Pipeline
from skiplora_fx.site import Findings


class Call(NamedTuple):
    """A Dynamo graph and the inputs it was captured with."""

    gm: fx.GraphModule
    inputs: list[Any]


def dynamo_call(model: nn.Module, *args: Any, **kwargs: Any) -> Call:
    """Return the one graph of a forward of ``model`` that has anything to differentiate."""
    calls: list[Call] = []

    def keep(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        if any(isinstance(value, Tensor) and value.requires_grad for value in inputs):
            calls.append(Call(gm, list(inputs)))
        return gm.forward

    torch.compile(model, backend=keep)(*args, **kwargs)
    (call,) = calls
    return call


def dynamo_graph(model: nn.Module, *args: Any, **kwargs: Any) -> fx.GraphModule:
    """Return the graph of :func:`dynamo_call`."""
    return dynamo_call(model, *args, **kwargs).gm


def text(graph: fx.Graph) -> str:
    """Return the operators of a graph as lines, for comparison with text in a test."""
    return "\n".join(_line(node) for node in graph.nodes if node.op not in ("placeholder", "get_attr"))


def _line(node: fx.Node) -> str:
    if node.op == "output":
        return f"return {node.args[0]}"
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    arguments = [repr(arg) for arg in node.args] + [f"{name}={value!r}" for name, value in node.kwargs.items()]
    return f"{node.name} = {target}({', '.join(arguments)})"


@dataclass
class CapturedGraph:
    """One Dynamo graph that was gated, and what became of it.

    Attributes:
        findings: what ``find_lora`` said.
        thresholds: float32 ``[n]``; a test sets them in place, as a rule through ``QuickBackend.set_mask``.
        stages: a copy of each graph that the pipeline showed, under ``(name of the pass, kind of graph)``.
        backward: the rewritten backward, with its branches.
        garbage: places in it that are read by nobody, or the test fails: they hold NaN.
        ratios: of the last forward.
        opens: of the last forward.
    """

    findings: Findings
    thresholds: Tensor
    stages: dict[tuple[str, str], fx.Graph]
    backward: fx.GraphModule | None = None
    garbage: int = 0
    ratios: Tensor = field(default_factory=lambda: torch.empty(0))
    opens: Tensor = field(default_factory=lambda: torch.empty(0))

    def set_mask(self, mask: Mapping[str, bool]) -> None:
        values = [0.0 if mask[self._name_in(mask, site.name)] else float("inf") for site in self.findings.sites]
        self.thresholds.copy_(torch.tensor(values))

    def decisions(self, names: Collection[str]) -> dict[str, bool]:
        """Return for each of ``names`` whether its gate was open in the last forward."""
        found = [self._name_in(names, site.name) for site in self.findings.sites]
        return dict(zip(found, self.opens.tolist(), strict=True))

    @staticmethod
    def _name_in(names: Collection[str], name: str) -> str:
        # After a graph break Dynamo compiles an inner module, whose sites are named from there.
        (whole,) = (candidate for candidate in names if candidate.endswith(name))
        return whole


class QuickBackend:
    """A backend that runs the whole pipeline and then the aten graphs as they are, conds included.

    Args:
        scope: ``"adapter"`` or ``"layer"``.
        disabled: passes to leave out.
        held: whether decisions are taken before the forward.
        merges: whether siblings are merged.
    """

    def __init__(
        self, scope: str = "adapter", disabled: Collection[str] = (), held: bool = False, merges: bool = False
    ) -> None:
        self._scope = scope
        self._disabled = disabled
        self._held = held
        self._merges = merges
        self._mask: Mapping[str, bool] | None = None
        self.passes: list[str] = []
        self.captured: list[CapturedGraph] = []

    @property
    def only(self) -> CapturedGraph:
        """The one gated graph."""
        (captured,) = self.captured
        return captured

    def set_mask(self, mask: Mapping[str, bool]) -> None:
        """Open and shut gates by the names of their sites, in graphs still to be compiled too."""
        self._mask = mask
        for captured in self.captured:
            captured.set_mask(mask)

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        stages: dict[tuple[str, str], fx.Graph] = {}

        def on_pass(name: str, kind: str, graph: fx.Graph) -> None:
            self.passes.append(name)
            stages[name, kind] = copied(graph)

        pipeline = Pipeline(self._scope, self._disabled, on_pass, self._held, merges=self._merges)
        findings = pipeline.rewrite_dynamo(gm)
        if pipeline.gated is None:
            return aot_autograd(fw_compiler=_run_as_it_is)(gm, inputs)
        captured = CapturedGraph(findings, torch.zeros(len(findings.sites)), stages)
        if self._mask is not None:
            captured.set_mask(self._mask)
        compiled = _compile(pipeline, captured, [*inputs, static_fake(captured.thresholds, inputs)])
        self.captured.append(captured)  # only now, as AOTAutograd may have Dynamo begin again

        def run(*args: Any) -> list[Any]:
            *outputs, captured.ratios, captured.opens = compiled(*args, captured.thresholds)
            return outputs

        return run


def _compile(pipeline: Pipeline, captured: CapturedGraph, inputs: Sequence[Any]) -> Callable[..., Any]:
    def partition(joint: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any) -> Any:
        pipeline.rewrite_joint(joint.graph)
        joint.recompile()
        return min_cut_rematerialization_partition(joint, joint_inputs, compiler="inductor", **kwargs)

    def compile_backward(backward: fx.GraphModule, backward_inputs: Sequence[Any]) -> Callable[..., Any]:
        pipeline.rewrite_backward(backward.graph)
        backward.recompile()
        captured.backward, captured.garbage = backward, poison(backward)
        return make_boxed_func(backward.forward)

    backend = aot_autograd(
        fw_compiler=_run_as_it_is,
        bw_compiler=compile_backward,
        partition_fn=partition,
        decompositions=select_decomp_table(),
    )
    return backend(pipeline.gated.gm, inputs)


def _run_as_it_is(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    return make_boxed_func(gm.forward)
