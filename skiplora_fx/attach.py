"""Steps are the optimizer's: what is counted, cleaned up and written down at each."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._torch_compat import foreach_norm, unwrap_compiled
from .controller import Controller
from .errors import ConfigError, UsageError
from .host_copy import HostCopy
from .live_site import LiveSite, StepClock
from .policy import needs
from .registry import (
    counted_by,
    flush,
    learn_names,
    leave_to_read,
    owners_in,
    set_clock,
    sites_of,
    trained_parameters,
)
from .step_log import StepLog

_FORMAT = 1


@dataclass
class Attachment:
    """What :func:`attach` made; ``remove()`` undoes it.

    Attributes:
        clock: counts the steps.
        log: where each step is written, or None.
    """

    clock: StepClock
    log: StepLog | None
    _parameters: list[weakref.ref[Tensor]]
    _owners: weakref.WeakSet[Any]
    _handles: list[Any] = field(default_factory=list)
    _measured: list[LiveSite] = field(default_factory=list)

    def remove(self) -> None:
        """Stop counting the optimizer's steps; backwards count again, from the number of steps there were."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for parameter, owners in counted_by(self.clock):
            # One clock each: graphs that hold a part of the sites would otherwise count one backward several times.
            set_clock(parameter, StepClock(self.clock.steps), owners)
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
        """Return the L2 norm of the gradients at the last step over all sites that were open in it.

        NaN if it is not measured: it is where there is a log, or a policy that needs it.
        """
        flush()
        return _total_norm(self._measured) if self._measured else math.nan

    def sites(self) -> list[LiveSite]:
        """Return the sites whose steps are counted, in the order of the forward."""
        parameters = (parameter for known in self._parameters if (parameter := known()) is not None)
        controllers = _controllers(sites_of(parameters, list(self._owners)))
        return [site for controller in controllers for site in controller.sites() if site.clock is self.clock]

    def state_dict(self) -> dict[str, Any]:
        """Return all that a resumed run needs to decide as this one would have, of JSON's types."""
        flush()
        found = self.sites()
        policies = [controller.state_dict() for controller in _controllers(found)]
        return {
            "format": _FORMAT,
            "steps": self.clock.steps,
            "policy": policies[0] if policies else None,
            "sites": {site.id: site.state_dict() for site in found},
            "run": self.log.run if self.log is not None else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned. Sites that are still to be found are restored when they are.

        Raises:
            ConfigError: the state is not one, or was made under another policy.
        """
        if state.get("format") != _FORMAT or not {"steps", "policy", "sites"} <= state.keys():
            found = ", ".join(map(str, state)) or "nothing"
            raise ConfigError(f"this is not what Attachment.state_dict() of this version returns: it holds {found}")
        self.clock.steps = int(state["steps"])
        if self.log is not None:
            self.log.resume(state.get("run"))
        self.clock.saved = state if state["policy"] is not None else {}
        for site in self.sites():
            site.controller.restore(site)


def attach(model: nn.Module, optimizer: torch.optim.Optimizer, *, log: str | Path | None = None) -> Attachment:
    """Count the steps of ``optimizer`` as the model's training steps.

    Warm-up, probing and policies are counted in steps. Without this each backward is one, which differs as soon as
    gradients are accumulated; ``skipped_grad="none"`` and gradient norms need it.

    Args:
        model: the model, before or after it is compiled.
        optimizer: an optimizer over its parameters; a wrapper with an ``.optimizer`` inside will do.
        log: a file to which a line of JSON is appended for each step, see :class:`~skiplora_fx.step_log.StepLog`.

    Raises:
        UsageError: ``optimizer`` is none, or trains no parameter of ``model``.
        FileError: ``log`` cannot be written, or holds something else.
    """
    model, optimizer = unwrap_compiled(model), _innermost(optimizer)
    trained = trained_parameters(model)
    _check_optimizer(optimizer, trained)
    written = StepLog(log) if log is not None else None  # before anything is changed: it may not be writable
    learn_names(model)
    owners = owners_in(model)
    steps = max((site.clock.steps for site in sites_of(trained, owners)), default=0)
    clock = StepClock(steps, attached=True, timed=log is not None)
    for parameter in trained:
        set_clock(parameter, clock, owners)
    attachment = Attachment(clock, written, list(map(weakref.ref, trained)), weakref.WeakSet(owners))
    attachment._handles += [
        optimizer.register_step_pre_hook(lambda *_: _before_step(attachment)),
        optimizer.register_step_post_hook(lambda *_: _after_step(attachment)),
    ]
    return attachment


def _before_step(attachment: Attachment) -> None:
    sites = attachment.sites()
    dropping = [site for site in sites if site.controller.config.skipped_grad == "none"]
    measuring = attachment.log is not None or any(needs(site.controller.policy, "gradients") for site in sites[:1])
    if not dropping and not measuring:
        return
    flush()  # which gates were open
    _drop_gradients(dropping)
    if measuring:
        attachment._measured = [site for site in sites if site.opens_in_step]
        _measure_gradients(attachment._measured)
    if attachment.log is not None:
        _leave_to_log(attachment.log, attachment.clock, sites)
    for site in sites:
        site.backwards_in_step = site.opens_in_step = 0


def _after_step(attachment: Attachment) -> None:
    attachment.clock.steps += 1


def _drop_gradients(sites: Sequence[LiveSite]) -> None:
    """Set the gradients of what was shut in every backward of the step to None."""
    kept = {id(parameter) for site in sites if site.opens_in_step for parameter in site.parameters()}
    for site in sites:
        for parameter in site.parameters() if site.backwards_in_step else ():
            if id(parameter) not in kept:
                parameter.grad = None


def _measure_gradients(sites: Sequence[LiveSite]) -> None:
    """Begin to copy each site's gradient norm to the host."""
    found = [(site, [p.grad for p in site.parameters() if p.grad is not None]) for site in sites]
    gradients = [gradient for _, gradients in found for gradient in gradients]
    if not gradients:
        return
    norms = HostCopy(torch.stack([norm.float() for norm in foreach_norm(gradients)]))

    def read() -> None:
        values = iter(norms.tolist())
        for site, gradients in found:
            site.gradient_norm = math.hypot(*(next(values) for _ in gradients))

    leave_to_read(read)


def _leave_to_log(log: StepLog, clock: StepClock, sites: Sequence[LiveSite]) -> None:
    """Have the step written as soon as its gradient norms are read."""
    rows = [
        (site.id, site.ratio, site.controller.threshold(site), bool(site.opens_in_step))
        for site in sites
        if site.backwards_in_step
    ]
    open_sites = [site for site in sites if site.opens_in_step]
    step = clock.steps
    policy = next((type(site.controller.policy).__name__ for site in sites), None)

    def write() -> None:
        seconds, clock.backward_seconds = clock.backward_seconds, 0.0
        log.step(step, rows, policy=policy, grad_norm=_total_norm(open_sites), backward_seconds=seconds)

    leave_to_read(write)


def _total_norm(sites: Iterable[LiveSite]) -> float:
    return math.hypot(*(site.gradient_norm for site in sites))


def _controllers(sites: Iterable[LiveSite]) -> list[Controller]:
    return list(dict.fromkeys(site.controller for site in sites))


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
