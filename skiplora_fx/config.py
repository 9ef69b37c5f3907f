"""Every option of the backend, validated before anything is compiled."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ._torch_compat import is_inductor_option
from .errors import ConfigError
from .policy import make_policy, with_run
from .ranks import several
from .visible import visible

CHOICES: Mapping[str, tuple[str, ...]] = {
    "scope": ("adapter", "layer", "input"),
    "decision": ("current", "previous"),
    "skipped_grad": ("zero", "none"),
    "sync": ("mean", "none"),
}
"""The options that take one of a few words."""

OPTIONAL_PASSES = (
    "insert_gates",
    "fold_gates",
    "release_saved",
    "predicate_backward",
    "share_branches",
    "release_operands",
)
"""The passes that ``disable_passes`` may name."""


@dataclass(frozen=True)
class SkipLoraConfig:
    """The options of the ``skiplora`` backend.

    Attributes:
        threshold: τ, at least 0. A gate is open when ``M >= τ``: 0 keeps it open, ``inf`` keeps it shut.
            A float for all sites, or ``{glob over site names: float}`` of which the first match wins; a
            site that no glob matches is never skipped.
        scope: what a shut gate detaches: ``"adapter"`` Δh, ``"layer"`` the whole adapted layer h + Δh, ``"input"`` what
            the adapted layer reads: its adapter trains all the same, and no gradient goes down through the layer. That
            needs ``decision="previous"``.
        policy: who decides: a name of :data:`~skiplora_fx.policy.POLICIES`, or an object with a method ``decide``, see
            :class:`~skiplora_fx.policy.Policy`. ``"threshold"`` is the paper's rule. An object serves one model.
        policy_kwargs: options of a policy that is given by name.
        only: globs over site names. The policy sees and shuts only sites that one of them matches; the others are open.
            Empty for all sites.
        warmup_steps: steps for which every gate stays open, counted from the first. With B = 0 at
            initialisation every M is 0, so without a warm-up no adapter would ever begin to learn.
        probe_every: after the warm-up every gate is open for one step in this many, so that an adapter
            whose ratio lies below τ still moves now and then. 0 turns probing off.
        min_active: number of sites that are open in any step, whatever the policy says: those of largest mean M. 0
            lets a policy shut everything.
        decision: which M decides a backward. ``"current"`` is that of its own forward. ``"previous"`` is the last one
            known before the step: what is decided then holds for the whole step, all micro-batches alike, and no
            decision waits for a device.
        skipped_grad: what ``.grad`` of a skipped parameter holds at the optimizer's step. ``"zero"`` is the paper's:
            zeros, with which an optimizer's momentum and weight decay still move it. ``"none"``: None, if its gate
            was shut in every backward of the step, and the optimizer leaves it alone. Needs
            :func:`~skiplora_fx.attach`.
        sync: what several processes of a run do. ``"mean"``: at each optimizer's step they exchange what they saw, M is
            the mean over all of them, and all decide alike, before each step as with ``decision="previous"``. Needs
            :func:`~skiplora_fx.attach`, on every rank. ``"none"``: each decides for itself. Without a process group of
            :mod:`torch.distributed` both are the same.
        merge_siblings: whether adapters that read the same input (q, k and v; gate and up) are multiplied as one, in
            the forward and in the backward.
        outline_layers: whether layers that are alike are compiled once, as one function that each of them calls.
            It shortens the compile of a deep model.
        strict: whether a pass that fails stops the compile. If not, that graph is compiled without gates, or without
            leaving work out, and a :class:`~skiplora_fx.FallbackWarning` says why.
        disable_passes: passes to leave out, by name (see docs/passes.md), for finding a fault.
        inductor: every other key, handed to Inductor as it is.

    Raises:
        ConfigError: an option is unknown, of the wrong kind, or out of range.
    """

    threshold: float | Mapping[str, float] = 0.05
    scope: str = "adapter"
    policy: Any = "threshold"
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    warmup_steps: int = 100
    probe_every: int = 50
    min_active: int = 0
    decision: str = "current"
    skipped_grad: str = "zero"
    sync: str = "mean"
    merge_siblings: bool = False
    outline_layers: bool = False
    strict: bool = False
    disable_passes: tuple[str, ...] = ()
    inductor: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", _checked_thresholds(self.threshold))
        object.__setattr__(self, "disable_passes", _checked_passes(self.disable_passes))
        object.__setattr__(self, "only", _checked_globs("only", self.only))
        for name in CHOICES:
            _check_choice(name, getattr(self, name))
        _check_input_scope(self)
        for name in ("warmup_steps", "probe_every", "min_active"):
            _check_count(name, getattr(self, name))
        for name in ("merge_siblings", "outline_layers", "strict"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if not isinstance(self.policy_kwargs, Mapping):
            raise ConfigError(f"policy_kwargs must be a dict of options, got {self.policy_kwargs!r}")
        self.make_policy()  # what is wrong with it should show here
        for name in self.inductor:
            _check_inductor_key(name)

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | None) -> SkipLoraConfig:
        """Build the configuration from ``torch.compile(..., options=...)``; unknown keys go to Inductor."""
        own = {option.name for option in fields(cls)} - {"inductor"}
        given = dict(options or {})
        inductor = {name: given.pop(name) for name in list(given) if name not in own}
        return cls(**given, inductor=inductor)

    def in_processes(self) -> SkipLoraConfig:
        """Return the options as they hold in this process: what several decide together holds for a step."""
        return replace(self, decision="previous") if self.sync == "mean" and several() else self

    def make_policy(self) -> Any:
        """Return the policy: a new one where it is given by name, told of the warm-up if it goes by that."""
        return make_policy(self.policy, with_run(self.policy, self.policy_kwargs, begin=self.warmup_steps))

    def threshold_of(self, name: str) -> float:
        """Return τ of the site called ``name``."""
        if not isinstance(self.threshold, Mapping):
            return self.threshold
        return next((value for glob, value in self.threshold.items() if fnmatch.fnmatchcase(name, glob)), 0.0)

    def may_shut(self, name: str) -> bool:
        """Return whether ``only`` leaves the site called ``name`` to the policy."""
        return not self.only or any(fnmatch.fnmatchcase(name, glob) for glob in self.only)

    def check_globs(self, names: Iterable[str]) -> None:
        """Raise if a glob of ``threshold`` or ``only`` matches none of the site ``names``."""
        for glob in self.globs():
            match_sites(glob, names)

    def globs(self) -> tuple[str, ...]:
        """Return all globs over site names."""
        return (*(self.threshold if isinstance(self.threshold, Mapping) else ()), *self.only)


def scope_options(scope: str) -> dict[str, Any]:
    """Return the options of a scope, with the decision that it needs."""
    return {"scope": scope, "decision": "previous"} if scope == "input" else {"scope": scope}


def match_sites(glob: str, names: Iterable[str]) -> list[str]:
    """Return those of ``names`` that ``glob`` matches.

    Raises:
        ConfigError: it matches none; the message lists the sites there are.
    """
    names = list(names)
    matches = fnmatch.filter(names, glob)
    if not matches:
        shown = sorted(set(map(visible, names)))
        listing = "\n  ".join(shown[:20]) + (f"\n  … and {len(shown) - 20} more" if len(shown) > 20 else "")
        raise ConfigError(f"no site matches the glob {glob!r}. The sites are:\n  {listing or '(none)'}")
    return matches


def checked_threshold(value: object, where: str = "threshold") -> float:
    """Return ``value`` as a float that can be a threshold.

    Raises:
        ConfigError: it is not a number, is NaN, or is negative.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{where} must be a number >= 0, got {value!r} ({type(value).__name__})")
    if math.isnan(value) or value < 0:
        raise ConfigError(f"{where} must be a number >= 0 (0 never skips, inf always), got {value!r}")
    return float(value)


def _checked_thresholds(value: object) -> float | dict[str, float]:
    if not isinstance(value, Mapping):
        return checked_threshold(value)
    if not value:
        raise ConfigError("threshold is an empty dict: give a number, or {glob over site names: number}")
    for glob in value:
        if not isinstance(glob, str):
            raise ConfigError(f"threshold keys must be globs over site names, got {glob!r}")
    return {glob: checked_threshold(tau, f"threshold[{glob!r}]") for glob, tau in value.items()}


def _checked_globs(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f"{name} must be a list of globs over site names, got {value!r}")
    globs = tuple(value)
    for glob in globs:
        if not isinstance(glob, str):
            raise ConfigError(f"{name} must be a list of globs over site names, and holds {glob!r}")
    return globs


def _checked_passes(value: object) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f"disable_passes must be a list of pass names, got {value!r}")
    names = tuple(value)
    for name in names:
        if name not in OPTIONAL_PASSES:
            raise ConfigError(f"disable_passes: {name!r} is not one of {', '.join(OPTIONAL_PASSES)}")
    if "fold_gates" in names and "predicate_backward" not in names:
        raise ConfigError("disable_passes: predicate_backward needs fold_gates, so disable both or neither")
    return names


def _check_choice(name: str, value: object) -> None:
    allowed = CHOICES[name]
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _check_input_scope(config: SkipLoraConfig) -> None:
    if config.scope != "input":
        return
    if config.decision != "previous":
        raise ConfigError(
            "scope='input' needs decision='previous': whether a layer's input is detached has to be known before the "
            f"layer runs, and decision={config.decision!r} waits for the M that comes of it. Add decision='previous'."
        )
    if config.skipped_grad == "none":
        raise ConfigError(
            "skipped_grad='none' drops the gradients of what a shut gate keeps from training, and with scope='input' "
            "every adapter trains. Leave skipped_grad out, or choose another scope."
        )
    if config.merge_siblings:
        raise ConfigError(
            "merge_siblings=True makes one product of adapters that read the same input, and with scope='input' each "
            "reads it through a gate of its own. Leave merge_siblings out, or choose another scope."
        )


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{name} must be a whole number >= 0 (0 switches it off), got {value!r}")


def _check_inductor_key(name: str) -> None:
    if is_inductor_option(name):
        return
    own = [option.name for option in fields(SkipLoraConfig) if option.name != "inductor"]
    close = difflib.get_close_matches(name, own, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(
        f"unknown option {name!r}: neither an option of skiplora ({', '.join(own)}) nor of Inductor.{hint}"
    )
