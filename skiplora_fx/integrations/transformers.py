"""A callback for ``transformers.Trainer`` (and what derives from it, such as TRL's ``SFTTrainer``)."""

from __future__ import annotations

import inspect
import json
import math
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler, ExportableState

from .._torch_compat import is_compiled_wrapper
from ..attach import Attachment, attach
from ..config import SkipLoraConfig
from ..errors import ConfigError, UsageError
from ..live import sites
from ..live_site import SiteState
from ..policy import with_run
from ..step_log import StepLog
from .checkpointing import remove_needless_hook
from .layers import layers_of

UNLESS_SAID: Mapping[str, Any] = {
    "policy": "schedule",
    "decision": "previous",
    "skipped_grad": "none",
    "probe_every": 0,
}
"""Options of a run that does not say what decides. What else saves as much was not shown to lose fewer points."""

SAYS = ("policy", "threshold", "scope")
"""The options any of which says what decides."""

WARM_UP = 0.1
"""Share of such a run's steps in which all gates are open, unless ``warmup_steps`` says how many."""


class SkipLoraCallback(TrainerCallback, ExportableState):
    """Compiles the model with ``backend="skiplora"``, counts optimizer steps, and logs what is skipped.

    ``Trainer(model=peft_model, ..., callbacks=[SkipLoraCallback()])`` is all there is to write.
    The model is compiled in place when training begins, so it stays a ``PeftModel`` and saves as one.

    To the logs of each logging step it adds, as numbers: ``skiplora/skipped``, the share of adapters that were
    skipped in the last backward; ``skiplora/skip_rate``, the mean share of backwards after the warm-up in which
    an adapter was; ``skiplora/adapters``, how many are gated; ``skiplora/ratio_min``, ``_p50`` and ``_max``, the
    smallest, median and largest ratio; and, where it is measured, ``skiplora/grad_norm``, the norm of the last step's
    gradients, after clipping, over the adapters that were open.

    With none of the options ``policy``, ``threshold`` and ``scope`` the policy is ``"schedule"``, with the options of
    :data:`UNLESS_SAID` and a warm-up of a tenth of the steps: of what saves as much nothing was shown to lose fewer
    points on MRPC, nor was it shown to be better than a freeze of the right depth (docs/policies.md). The paper's rule
    is ``threshold=...``.

    A policy given by name whose schedule goes by the length of the run, and has not been told, is told the Trainer's.
    What a policy has to remember is saved with each checkpoint, in ``trainer_state.json``, and a run that is resumed
    from one decides as the other would have.

    Args:
        dynamic: as for ``torch.compile``.
        by_layer: whether each of the model's layers, see :func:`.layers.layers_of`, is compiled by itself, and what is
            around them not at all. Layers that are alike share what is compiled. With ``decision="previous"`` what lies
            below the lowest open gate is left out all the same.
        log: a file to which every step is written, see :class:`~skiplora_fx.step_log.StepLog`; with it gradient norms
            are measured. Of several processes the first writes.
        options: the backend's options, see :class:`~skiplora_fx.SkipLoraConfig`; other keys go to Inductor.

    Raises:
        ConfigError: an option is unknown or out of range.
        FileError: ``log`` cannot be written, or holds something else.
        UsageError: when a Trainer is made with it, ``by_layer`` and the model has no list of layers in which something
            trains.
    """

    def __init__(
        self, *, dynamic: bool | None = None, by_layer: bool = False, log: str | Path | None = None, **options: Any
    ) -> None:
        # What is wrong should show here, not at the first step. The Trainer's steps are not known yet.
        SkipLoraConfig.from_options(_of_the_run(options, sys.maxsize))
        self.options = options
        self._dynamic = dynamic
        self._by_layer = by_layer
        self._log = StepLog(log).path if log is not None else None
        self._attachment: Attachment | None = None

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: how to make this callback again, and what the sites and the policy know."""
        own = {"dynamic": self._dynamic, "by_layer": self._by_layer, "log": str(self._log) if self._log else None}
        options = {**own, **self.options}
        saved = self._attachment.state_dict() if self._attachment is not None else None
        return {"args": options if _is_json(options) else {}, "attributes": {"saved": saved}}

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse a model that would be saved empty, or has no layers to compile, before any work is done."""
        _check(self, kwargs["model"], args)
        if self._by_layer:
            layers_of(kwargs["model"])
        self._go_first()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compile the model in place and attach to the optimizer.

        Of a model with activation checkpointing, see :func:`.checkpointing.remove_needless_hook`.
        """
        model = kwargs["model"]
        self._go_first()
        _check(self, model, args)
        remove_needless_hook(model, args)
        options = _of_the_run(self.options, state.max_steps)
        SkipLoraConfig.from_options(options)
        for part in layers_of(model) if self._by_layer else [model]:
            part.compile(backend="skiplora", dynamic=self._dynamic, options=options)
        self._detach()
        self._attachment = attach(model, kwargs["optimizer"], log=self._log if state.is_world_process_zero else None)
        saved = self._saved_in(state)
        if saved is not None:
            self._attachment.load_state_dict(saved, source=_source(state))

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the numbers to the logs of a training step."""
        logs, model = kwargs.get("logs"), kwargs.get("model")
        if logs is None or model is None or "loss" not in logs:
            return
        logs.update(scalars(sites(model)))
        if self._attachment is not None:
            self._attachment.note(loss=logs["loss"])
            norm = self._attachment.grad_norm()
            if math.isfinite(norm):
                logs["skiplora/grad_norm"] = norm

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop counting the optimizer's steps."""
        self._detach()

    def _saved_in(self, state: TrainerState) -> Mapping[str, Any] | None:
        """Return what the checkpoint that a run is resumed from says; None at the start of a run.

        Raises:
            ConfigError: it holds something else in the place.
        """
        found: Any = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        first = found[0] if isinstance(found, list) and found else found
        if not first:
            return None
        try:
            return first["attributes"]["saved"]
        except (TypeError, LookupError):
            raise ConfigError(
                f"{_source(state)}: {type(self).__name__} in its stateful_callbacks is not what state() of this "
                f"version returns: {first!r:.200}"
            ) from None

    def _go_first(self) -> None:
        """Move to the front of the trainer's callbacks.

        ``Trainer`` puts the callbacks that it is given behind its own, so TensorBoard would have written the
        logs before the numbers are in them. An event does not say which handler it comes from; only the
        frame that called does. Nothing moves under a handler that cannot be found.
        """
        handler = _calling_handler(self)
        if handler is not None:
            # In place and keeping the others' order: the handler is in the middle of this list.
            handler.callbacks.sort(key=lambda callback: callback is not self)

    def _detach(self) -> None:
        if self._attachment is not None:
            self._attachment.remove()
            self._attachment = None


def _of_the_run(options: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Return the backend's options for a run of so many steps: who decides, and what a policy goes by."""
    if options.keys().isdisjoint(SAYS):
        options = {**UNLESS_SAID, "warmup_steps": min(math.ceil(WARM_UP * steps), steps - 1), **options}
    given = options.get("policy_kwargs", {})
    if "policy" not in options or not isinstance(given, Mapping):
        return dict(options)
    return {**options, "policy_kwargs": with_run(options["policy"], given, steps=steps)}


def _source(state: TrainerState) -> str:
    return f"trainer_state.json of the checkpoint at step {state.global_step}"


def scalars(states: list[SiteState]) -> dict[str, float]:
    """Return the numbers that are logged for ``states``; none if there are none."""
    ratios = sorted(state.ratio for state in states if math.isfinite(state.ratio))
    if not states or not ratios:
        return {}
    return {
        "skiplora/skipped": statistics.fmean(state.skipped for state in states),
        "skiplora/skip_rate": statistics.fmean(state.skip_rate for state in states),
        "skiplora/adapters": float(len(states)),
        "skiplora/ratio_min": ratios[0],
        "skiplora/ratio_p50": statistics.median(ratios),
        "skiplora/ratio_max": ratios[-1],
    }


def _is_json(options: Mapping[str, Any]) -> bool:
    try:
        json.dumps(options)
    except TypeError:
        return False
    return True


def _not_json(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items() if not _is_json({name: value}))


def _calling_handler(callback: TrainerCallback) -> CallbackHandler | None:
    """Return the handler that is calling ``callback`` now."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, CallbackHandler) and callback in owner.callbacks:
            return owner
        frame = frame.f_back
    return None


def _check(callback: SkipLoraCallback, model: nn.Module, args: TrainingArguments) -> None:
    if is_compiled_wrapper(model):
        raise UsageError(
            "SkipLoraCallback got the wrapper that torch.compile(model) returns. A Trainer saves an empty adapter "
            "from it, without an error. Hand the PEFT model itself to the Trainer: the callback compiles it in place."
        )
    if args.restore_callback_states_from_checkpoint and not _is_json(callback.options):
        raise UsageError(
            "restore_callback_states_from_checkpoint makes callbacks anew from what JSON can hold, and "
            f"{_not_json(callback.options)} cannot be. Leave it off: this callback restores its state without it."
        )
    if args.torch_compile:
        raise UsageError(
            "TrainingArguments has torch_compile on, so the model would be compiled twice. Leave torch_compile, "
            "torch_compile_backend and torch_compile_mode out: the callback compiles the model."
        )
