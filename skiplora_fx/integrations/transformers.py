"""A callback for ``transformers.Trainer`` (and what derives from it, such as TRL's ``SFTTrainer``)."""

from __future__ import annotations

import inspect
import math
import statistics
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from .._torch_compat import is_compiled_wrapper
from ..attach import Attachment, attach
from ..config import SkipLoraConfig
from ..errors import UsageError
from ..live import sites
from ..live_site import SiteState


class SkipLoraCallback(TrainerCallback):
    """Compiles the model with ``backend="skiplora"``, counts optimizer steps, and logs what is skipped.

    ``Trainer(model=peft_model, ..., callbacks=[SkipLoraCallback(threshold=0.05)])`` is all there is to write.
    The model is compiled in place when training begins, so it stays a ``PeftModel`` and saves as one.

    To the logs of each logging step it adds, as numbers: ``skiplora/skipped``, the share of adapters that were
    skipped in the last backward; ``skiplora/skip_rate``, the mean share of backwards after the warm-up in which
    an adapter was; ``skiplora/adapters``, how many are gated; and ``skiplora/ratio_min``, ``_p50`` and ``_max``,
    the smallest, median and largest ratio.

    Args:
        dynamic: as for ``torch.compile``.
        options: the backend's options, see :class:`~skiplora_fx.SkipLoraConfig`; other keys go to Inductor.

    Raises:
        ConfigError: an option is unknown or out of range.
    """

    def __init__(self, *, dynamic: bool | None = None, **options: Any) -> None:
        SkipLoraConfig.from_options(options)  # what is wrong should show here, not at the first step
        self._options = options
        self._dynamic = dynamic
        self._attachment: Attachment | None = None

    def on_init_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse a model that would be saved empty, before any work is done."""
        _check_model(kwargs["model"], args)
        self._go_first()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compile the model in place and attach to the optimizer."""
        model = kwargs["model"]
        self._go_first()
        _check_model(model, args)
        model.compile(backend="skiplora", dynamic=self._dynamic, options=self._options)
        self._detach()
        self._attachment = attach(model, kwargs["optimizer"])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add the numbers to the logs of a training step."""
        logs, model = kwargs.get("logs"), kwargs.get("model")
        if logs is not None and model is not None and "loss" in logs:
            logs.update(scalars(sites(model)))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop counting the optimizer's steps."""
        self._detach()

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


def _calling_handler(callback: TrainerCallback) -> CallbackHandler | None:
    """Return the handler that is calling ``callback`` now."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, CallbackHandler) and callback in owner.callbacks:
            return owner
        frame = frame.f_back
    return None


def _check_model(model: nn.Module, args: TrainingArguments) -> None:
    if is_compiled_wrapper(model):
        raise UsageError(
            "SkipLoraCallback got the wrapper that torch.compile(model) returns. A Trainer saves an empty adapter "
            "from it, without an error. Hand the PEFT model itself to the Trainer: the callback compiles it in place."
        )
    if args.torch_compile:
        raise UsageError(
            "TrainingArguments has torch_compile on, so the model would be compiled twice. Leave torch_compile, "
            "torch_compile_backend and torch_compile_mode out: the callback compiles the model."
        )
