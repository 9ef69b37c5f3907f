"""The ``skiplora`` backend: Inductor, with the passes hooked in."""

from __future__ import annotations

import logging
import os
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from . import gate, passes
from ._torch_compat import (
    CustomGraphPass,
    compile_with_inductor,
    get_hash_for_files,
    global_inductor_option,
    mode_options,
    static_fake,
    trace_structured,
    traced_module,
)
from .config import SkipLoraConfig
from .enclosing import outermost
from .live import has_states
from .live_site import Slot
from .nothing_found import NoLoRAWarning, nothing_found
from .passes import Pipeline
from .policy import make_policy, needs
from .registry import learn_home, name_of
from .runtime import GatedGraph
from .site import Findings

log = logging.getLogger(__name__)


def skiplora(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: dict[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """Compile a Dynamo graph with Inductor, its LoRA adapters gated.

    Not called by hand: ``model.compile(backend="skiplora", options={...})`` does, once for each graph.

    Args:
        gm: graph as Dynamo captured it; it is not changed.
        example_inputs: the inputs it was captured with.
        options: see :class:`~skiplora_fx.config.SkipLoraConfig`; keys it does not know go to Inductor.
        mode: as for Inductor.

    Raises:
        ConfigError: an option is unknown or out of range, or a threshold's glob matches no site.
        InternalError: the passes lost a gate.
    """
    config = SkipLoraConfig.from_options(options)
    inductor = {**mode_options(mode), **config.inductor}
    if not torch.is_grad_enabled():
        _learn_home_in_training(traced_module(gm))
        return compile_with_inductor(gm, example_inputs, inductor)

    counts = needs(make_policy(config.policy, config.policy_kwargs), "costs")
    pipeline = Pipeline(config.scope, config.disable_passes, held=config.decision == "previous", counts=counts)
    pipeline.on_pass = _watched(pipeline)
    findings = pipeline.rewrite_dynamo(gm)
    root = traced_module(gm)
    if pipeline.gated is None:
        if not findings.sites:
            _warn_if_nothing_to_gate(findings, root)
        return compile_with_inductor(gm, example_inputs, inductor)

    assert pipeline.searched is not None
    slots = _slots(pipeline.searched, findings)
    _check_globs(config, slots, example_inputs, root)
    device = torch.device("cpu") if pipeline.held else example_inputs[slots[0].position].device
    thresholds = static_fake(torch.zeros(len(slots), device=device), example_inputs)
    compiled = compile_with_inductor(
        pipeline.gated.gm, [*example_inputs, thresholds], _with_hooks(inductor, pipeline, config)
    )
    return GatedGraph(compiled, slots, config, root, lambda: pipeline.flops)


def _slots(gm: fx.GraphModule, findings: Findings) -> tuple[Slot, ...]:
    """Return where the runtime finds each site in a call's arguments."""
    positions = {node: position for position, node in enumerate(gm.graph.find_nodes(op="placeholder"))}
    return tuple(Slot.of(site, positions) for site in findings.sites)


def _check_globs(config: SkipLoraConfig, slots: Sequence[Slot], inputs: Sequence[Any], root: nn.Module | None) -> None:
    """Raise if a glob of the thresholds matches no site.

    Where other graphs may hold other sites, a glob is taken to be right if it matches a module in which
    something trains.
    """
    model = _enclosing_module(root) if root is not None else None
    if model is not None:
        learn_home(model)
    if not isinstance(config.threshold, Mapping):
        return
    names = [name_of(inputs[slot.position], slot) for slot in slots]
    if model is not None and (model is not root or not _holds_all_trained(model, inputs)):
        names += _names_of_what_trains(model)
    config.check_globs(names)


def _learn_home_in_training(root: nn.Module | None) -> None:
    """Remember the model whose forward is running without autograd.

    Checkpointing with ``use_reentrant=True`` begins so; when it repeats a layer with autograd, only the layer runs.
    """
    if root is not None and root.training:
        learn_home(_enclosing_module(root))


def _enclosing_module(module: nn.Module) -> nn.Module:
    """Return the outermost module that holds ``module`` and whose ``forward`` is running now, or ``module`` itself."""
    return outermost(lambda candidate: any(inner is module for inner in candidate.modules())) or module


def _names_of_what_trains(model: nn.Module) -> Iterator[str]:
    for name, module in model.named_modules():
        if any(parameter.requires_grad for parameter in module.parameters()):
            yield name


def _holds_all_trained(root: nn.Module, inputs: Sequence[Any]) -> bool:
    """Return whether no trained parameter of ``root`` is left for another graph."""
    given = {id(value) for value in inputs if isinstance(value, Tensor)}
    return all(id(parameter) in given for parameter in root.parameters() if parameter.requires_grad)


_warned: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def _warn_if_nothing_to_gate(findings: Findings, root: nn.Module | None) -> None:
    """Warn once for each model in which something trains and nothing is gated.

    A graph in which nothing trains says nothing: a graph break may have left the adapters to another one.
    """
    if not findings.rejections or (root is not None and (root in _warned or has_states(root))):
        return
    if root is not None:
        _warned.add(root)
    warnings.warn(nothing_found(findings), NoLoRAWarning, stacklevel=2)


def _with_hooks(inductor: dict[str, Any], pipeline: Pipeline, config: SkipLoraConfig) -> dict[str, Any]:
    """Return Inductor's options with the pipeline before whatever passes the user put in the same places."""
    # What the passes do depends on these options alone; thresholds and policies are none of the graph's.
    key = repr((config.scope, config.decision, config.disable_passes, pipeline.gated and pipeline.gated.gates))
    hooks = {
        "joint_custom_pre_pass": _Hook(pipeline.rewrite_joint, key),
        "post_grad_custom_pre_pass": _Hook(pipeline.rewrite_backward, key),
    }
    if pipeline.counts or _DEBUG_DIR in os.environ:
        inductor = {**inductor, "force_disable_caches": True}  # what comes from a cache runs no pass
    return {**inductor, **{name: _before(hook, inductor, name) for name, hook in hooks.items()}}


def _before(hook: _Hook, inductor: dict[str, Any], name: str) -> Any:
    theirs = inductor.get(name, global_inductor_option(name))
    if theirs is None:
        return hook
    return [hook, *(theirs if isinstance(theirs, (list, tuple)) else [theirs])]


class _Hook(CustomGraphPass):
    """A step of the pipeline in the form in which Inductor takes one.

    Args:
        rewrite: edits a graph in place.
        key: what the result depends on beside the graph and the source of passes and gate, for Inductor's caches.
    """

    def __init__(self, rewrite: Callable[[fx.Graph], None], key: str) -> None:
        self._rewrite = rewrite
        self._key = key

    def __call__(self, graph: fx.Graph) -> None:
        self._rewrite(graph)

    def uuid(self) -> Any:
        return get_hash_for_files(_SOURCES, extra=self._key)


_SOURCES = (gate.__file__, *sorted(str(path) for path in Path(passes.__file__).parent.glob("*.py")))


_DEBUG_DIR = "SKIPLORA_DEBUG_DIR"


def _watched(pipeline: Pipeline) -> Callable[[str, str, fx.Graph], None]:
    """Return what looks on between two passes; nobody pays for recording stages who has not asked for it."""
    if _DEBUG_DIR not in os.environ and "TORCH_TRACE" not in os.environ:
        return _trace
    from .graphdiff.watch import Watch

    return Watch(pipeline, os.environ.get(_DEBUG_DIR), _trace)


def _trace(name: str, kind: str, graph: fx.Graph) -> None:
    """Leave each graph where tlparse finds it; costs nothing unless TORCH_TRACE is set."""
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": f"skiplora_{kind}_after_{name}", "encoding": "string"},
        payload_fn=lambda: str(graph),
    )
