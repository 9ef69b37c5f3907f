"""Steps are the optimizer's: what is counted, cleaned up and written down at each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ._torch_compat import unwrapped
from .errors import UsageError
from .gradients import drop_gradients, measure_gradients, measure_shards, total_norm
from .live_site import LiveSite
from .policy import needs
from .ranks import Ranks, is_first, is_sharded
from .registry import (
    clocks_of,
    flush,
    forget_attached,
    learn_names,
    leave_to_read,
    note_attached,
    trained_parameters,
)
from .saved_state import SOURCE, read_state, state_of
from .shared_step import SharedSteps
from .step_clock import StepClock
from .step_log import StepLog


@dataclass(eq=False)
class Attachment:
    """What :func:`attach` made; ``remove()`` undoes it.

    Attributes:
        clock: counts the steps.
        log: where each step is written, or None.
    """

    clock: StepClock
    log: StepLog | None
    _shared: SharedSteps
    _handles: list[Any] = field(default_factory=list)
    _measured: list[LiveSite] = field(default_factory=list)

    def remove(self) -> None:
        """Stop counting the optimizer's steps; backwards count again, from the number of steps there were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        forget_attached(self)
        for controller in list(self.clock.controllers()):
            controller.count_by(StepClock(self.clock.steps))
        flush()
        if self.log is not None:
            self.log.close()

    def note(self, **numbers: Any) -> None:
        """Write numbers of the last step into the log, such as ``loss=2.3``, or a tensor of one element (waits for it).

        Raises:
            UsageError: a name is one that the log uses itself, or a value is no number.
        """
        if self.log is not None:
            flush()
            self.log.note(max(self.clock.steps - 1, 0), numbers)

    def grad_norm(self) -> float:
        """Return the L2 norm of the gradients at the last step over all sites that were open in it, or, with
        ``scope="input"``, over all.

        NaN if it is not measured: it is where there is a log, or a policy that needs it.
        """
        flush()
        return total_norm(self._measured) if self._measured else math.nan

    def sites(self) -> list[LiveSite]:
        """Return the sites whose steps are counted, in the order of the forward."""
        return [site for controller in self.clock.controllers() for site in controller.sites()]

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs to decide as this one would have, of JSON's types."""
        flush()
        run = self.log.run if self.log is not None else None
        met = [controller.saved() for controller in self.clock.controllers()]
        return state_of(self.clock.steps, run, [*met, *self.clock.saved])

    def load_state_dict(self, state: Mapping[str, Any], *, source: str = SOURCE) -> None:
        """Go on from what :meth:`state_dict` returned. Sites that are still to be found are restored when they are.

        Args:
            state: what it returned.
            source: what that was read from, such as the name of a file, for errors.

        Raises:
            ConfigError: the state is not one, or was made under another policy; nothing has changed then.
        """
        steps, run, left = read_state(state, source)
        found = []
        for controller in self.clock.controllers():
            saved = next((saved for saved in left if any(saved.holds(site.id) for site in controller.sites())), None)
            if saved is not None:
                controller.check_policy(saved)
                found.append((controller, saved))
                left.remove(saved)
        self.clock.steps, self.clock.saved = steps, left
        if self.log is not None:
            self.log.resume(run)
        for controller, saved in found:
            controller.resume(saved)


def attach(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    log: str | Path | None = None,
    group: dist.ProcessGroup | None = None,
) -> Attachment:
    """Count the steps of ``optimizer`` as the model's training steps.

    Warm-up, probing and policies are counted in steps. Without this each backward is one, which differs as soon as
    gradients are accumulated; ``skipped_grad="none"`` and gradient norms need it.

    One optimizer counts a model's steps: what was attached to it before is removed. Where several train it, attach
    the one that steps last.

    In a run of several processes each of them attaches, and each of the optimizer's steps is one at which they tell
    each other what they saw (``sync="mean"``, see docs/distributed.md).

    Args:
        model: the model, before or after it is compiled.
        optimizer: an optimizer over its parameters; a wrapper with an ``.optimizer`` inside will do.
        log: a file to which a line of JSON is appended for each step, see :class:`~skiplora_fx.step_log.StepLog`. Of
            several processes the first writes.
        group: the processes that train this model together; None for all.

    Raises:
        UsageError: ``optimizer`` is none, or trains no parameter of ``model``.
        FileError: ``log`` cannot be written, or holds something else.
    """
    model, optimizer = unwrapped(model), _innermost(optimizer)
    trained = trained_parameters(model)
    _check_optimizer(optimizer, trained)
    path = log if is_first(group) else None
    written = StepLog(path) if path is not None else None  # before anything is changed: it may not be writable
    learn_names(model)
    clocks = clocks_of(model)
    steps = max((clock.steps for clock in clocks), default=0)
    saved = [saved for clock in clocks for saved in clock.saved]
    ranks = Ranks(group)
    clock = StepClock(steps, attached=True, timed=written is not None, saved=saved, ranks=ranks)
    attachment = Attachment(clock, written, SharedSteps(model, ranks, written is not None))
    note_attached(model, attachment)
    attachment._handles += [
        optimizer.register_step_pre_hook(partial(_before_step, attachment)),
        optimizer.register_step_post_hook(partial(_after_step, attachment)),
    ]
    return attachment


def _before_step(attachment: Attachment, optimizer: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Look at the gradients; return other arguments for a step that computes them in a closure."""
    closure = args[1] if len(args) > 1 else kwargs.get("closure")  # the first is the optimizer itself
    if closure is None:
        _look_at_gradients(attachment)
        return None

    def looked_at() -> Any:
        loss = closure()
        _look_at_gradients(attachment)
        return loss

    return ((args[0], looked_at), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": looked_at})


def _look_at_gradients(attachment: Attachment) -> None:
    controllers = list(attachment.clock.controllers())
    attachment._shared.share(controllers, attachment.clock.steps)
    dropping = [controller for controller in controllers if controller.config.skipped_grad == "none"]
    everywhere = attachment._shared.measured
    measuring = [controller for controller in controllers if everywhere or needs(controller.policy, "gradients")]
    if not dropping and not measuring:
        return
    flush()  # which gates were open
    drop_gradients([site for controller in dropping for site in controller.sites()])
    if measuring:
        sites = [site for controller in measuring for site in controller.sites()]
        attachment._measured = [site for site in sites if site.has_gradient]
        if any(is_sharded(parameter) for site in sites for parameter in site.parameters()):
            measure_shards(attachment._measured, attachment._shared)
        else:
            measure_gradients(attachment._measured)
    sites = attachment.sites()
    if attachment.log is not None:
        _leave_to_log(attachment.log, attachment.clock, sites)


def _after_step(attachment: Attachment, *_: Any) -> None:
    for site in attachment.sites():
        site.begin_step()
    attachment.clock.steps += 1


def _leave_to_log(log: StepLog, clock: StepClock, sites: Sequence[LiveSite]) -> None:
    """Have the step written as soon as its gradient norms are read."""
    rows = [
        (site.id, site.ratio, site.controller.threshold(site), bool(site.opens_in_step))
        for site in sites
        if site.backwards_in_step
    ]
    measured = [site for site in sites if site.has_gradient]
    step = clock.steps
    policy = next((type(site.controller.policy).__name__ for site in sites), None)

    def write() -> None:
        seconds, clock.backward_seconds = clock.backward_seconds, 0.0
        log.step(step, rows, policy=policy, grad_norm=total_norm(measured), backward_seconds=seconds)

    leave_to_read(write)


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"attach needs a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def _check_optimizer(optimizer: torch.optim.Optimizer, trained: Sequence[Tensor]) -> None:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if not any(id(parameter) in held for parameter in trained):
        raise UsageError("attach: the optimizer trains no parameter of this model; give the model's own optimizer")
