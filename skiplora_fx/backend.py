"""The ``skiplora`` backend: Inductor, with the passes hooked in."""

from __future__ import annotations

import logging
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from ._torch_compat import (
    compile_with_inductor,
    donate_nothing,
    is_ddp_piece,
    mode_options,
    static_fake,
    traced_module,
    unwrapped,
)
from .config import SkipLoraConfig
from .enclosing import outermost
from .errors import ConfigError, UsageError
from .failures import FORWARD_PASSES, Failures, warn_of_failure
from .inductor_hooks import with_hooks
from .live import has_states
from .live_site import Slot
from .nothing_found import NoLoRAWarning, cut_apart, nothing_found
from .passes import Pipeline
from .policy import needs
from .registry import learn_home, name_of
from .reproducer import kinds_of
from .runtime import GatedGraph, TrainingWithoutAutograd
from .site import Findings
from .surroundings import Surroundings
from .wanted_inputs import WANTED, InputGradientWarning, carried_inputs, wanted_inputs
from .watching import watched

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
        Exception: a pass failed, with ``strict=True``.
    """
    config = SkipLoraConfig.from_options(options).in_processes()
    inductor = {**mode_options(mode), **config.inductor}
    if not torch.is_grad_enabled():
        return _remembering_home(compile_with_inductor(gm, example_inputs, inductor), gm, example_inputs)
    # Inductor keeps its hooks, and they this: the inputs themselves would outlive the model.
    told = replace(config, inductor=inductor)
    report = partial(warn_of_failure, gm=gm, inputs=kinds_of(example_inputs), config=told)
    failures = Failures(config.strict, report)
    try:
        return _compile_gated(gm, example_inputs, config, inductor, failures)
    except (ConfigError, UsageError):
        raise
    except Exception:
        if not failures.fall_back():  # what fails in Inductor would do so again
            raise
    return compile_with_inductor(gm, example_inputs, inductor)


def _compile_gated(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    config: SkipLoraConfig,
    inductor: dict[str, Any],
    failures: Failures,
) -> Callable[..., Any]:
    counts = needs(config.make_policy(), "costs")
    held = config.decision == "previous"
    pipeline = Pipeline(config.scope, config.disable_passes, held=held, counts=counts, on_failure=failures.tolerate)
    pipeline.carried = carried_inputs(example_inputs)
    pipeline.merges = config.merge_siblings
    pipeline.on_pass = watched(pipeline)
    root = _compiled_module(gm)
    with failures.noted(FORWARD_PASSES):
        findings = pipeline.rewrite_dynamo(gm)
    _warn_of_what_is_left(findings, root, piece=is_ddp_piece(example_inputs))
    if pipeline.gated is None:
        return compile_with_inductor(gm, example_inputs, inductor)

    _warn_of_wanted(wanted_inputs(gm, example_inputs), root)
    assert pipeline.searched is not None
    slots = _slots(pipeline.searched, findings)
    _check_globs(config, slots, example_inputs, root)
    device = torch.device("cpu") if pipeline.held else example_inputs[slots[0].position].device
    thresholds = static_fake(torch.zeros(pipeline.gated.decisions, device=device), example_inputs)
    hooked = with_hooks(inductor, pipeline, config, failures)
    compiled = compile_with_inductor(pipeline.gated.gm, [*example_inputs, thresholds], hooked)
    donate_nothing()  # of a backward that Inductor will find in its cache the hooks see nothing, and torch asks later
    return GatedGraph(
        compiled, slots, config, root, lambda: pipeline.flops, _surroundings(pipeline, gm, example_inputs)
    )


def _compiled_module(gm: fx.GraphModule) -> nn.Module | None:
    module = traced_module(gm)
    return unwrapped(module) if module is not None else None


def _slots(gm: fx.GraphModule, findings: Findings) -> tuple[Slot, ...]:
    """Return where the runtime finds each site in a call's arguments."""
    positions = {node: position for position, node in enumerate(gm.graph.find_nodes(op="placeholder"))}
    return tuple(Slot.of(site, positions) for site in findings.sites)


def _surroundings(pipeline: Pipeline, gm: fx.GraphModule, inputs: Sequence[Any]) -> Surroundings:
    """Return where a graph's gradients go on into others, and whether all else that it trains is gated."""
    assert pipeline.searched is not None
    assert pipeline.gated is not None
    positions = {node: position for position, node in enumerate(pipeline.searched.graph.find_nodes(op="placeholder"))}
    borders = tuple(positions[border] for border in pipeline.gated.borders)
    gated = {positions[node] for site in pipeline.gated.sites for node in site.own if node in positions} | {*borders}
    wanting = {place for place, value in enumerate(inputs) if isinstance(value, Tensor) and value.requires_grad}
    own = any(parameter.requires_grad for parameter in gm.parameters())
    detaches = pipeline.held and pipeline.scope != "input"
    return Surroundings(borders, all_gated=detaches and wanting <= gated and not own)


def _check_globs(config: SkipLoraConfig, slots: Sequence[Slot], inputs: Sequence[Any], root: nn.Module | None) -> None:
    """Raise if a glob of the options matches no site.

    Where other graphs may hold other sites, a glob is taken to be right if it matches a module in which
    something trains.
    """
    model = _enclosing_module(root) if root is not None else None
    if model is not None:
        learn_home(model)
    if not config.globs():
        return
    names = [name_of(inputs[slot.position], slot) for slot in slots]
    if model is not None and (model is not root or not _holds_all_trained(model, inputs)):
        names += _names_of_what_trains(model)
    config.check_globs(names)


def _remembering_home(compiled: Callable[..., Any], gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    trained = (place for place, value in enumerate(inputs) if isinstance(value, nn.Parameter) and value.requires_grad)
    position, root = next(trained, None), _compiled_module(gm)
    if position is None or root is None or not root.training:
        return compiled
    return TrainingWithoutAutograd(compiled, position, root)


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


def _warn_of_what_is_left(findings: Findings, root: nn.Module | None, piece: bool) -> None:
    """Warn of what trains and is not gated: in a piece of a graph always, in a whole one if nothing else is.

    A graph in which nothing trains says nothing: a graph break may have left the adapters to another one.
    """
    if not findings.rejections:
        return
    if piece:
        _warn_once(root, cut_apart(findings), NoLoRAWarning)
    elif not findings.sites and (root is None or not has_states(root)):
        _warn_once(root, nothing_found(findings), NoLoRAWarning)


def _warn_of_wanted(names: Sequence[str], root: nn.Module | None) -> None:
    if names:
        first, *others = names
        likewise = f" Likewise {', '.join(others)}." if others else ""
        _warn_once(root, f"{first} {WANTED}{likewise}", InputGradientWarning)


_warned: weakref.WeakKeyDictionary[nn.Module, set[type[Warning]]] = weakref.WeakKeyDictionary()


def _warn_once(root: nn.Module | None, message: str, category: type[Warning]) -> None:
    """Warn, once of each kind for each model that is known."""
    said = _warned.setdefault(root, set()) if root is not None else set()
    if category not in said:
        warnings.warn(message, category, stacklevel=2)
    said.add(category)
