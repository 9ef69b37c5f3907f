"""What a gated graph calls when it runs by itself: the gate as a conditional detach, thresholds and statistics."""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import gate as _gate_operators  # noqa: F401 (registers torch.ops.skiplora)
from ._torch_compat import has_side_effect, is_view_tensor, runs_in_ddp, tree_leaves
from .config import SkipLoraConfig
from .errors import UsageError
from .live_site import Slot
from .passes.attach_runtime import RuntimeCalls
from .passes.flops import Flops
from .registry import controller_of
from .runtime import Binding, Forward, bind, count


class GateRuntime(nn.Module):
    """The state of one gated graph: its sites, found through the parameters that each call carries.

    It has no parameters and adds nothing to a ``state_dict``. Its ``training`` flag is that of the graph's module:
    in eval mode every gate is open and nothing is counted.

    Args:
        slots: the sites.
        config: the options they are gated by.
        flops: what the backward costs, if the policy asks.

    Attributes:
        slots: the sites.
        config: the options they are gated by.
        held: whether decisions are taken before the forward.
        truncates: whether a truncation may stop a gradient in this call.
        counts: whether the backward of the forward that is running is one to be counted.
    """

    seen: Tensor

    def __init__(self, slots: Sequence[Slot], config: SkipLoraConfig, flops: Flops | None = None) -> None:
        super().__init__()
        self.slots = tuple(slots)
        self.held = config.decision == "previous"
        self.config = config
        self._flops = flops
        self._controller = controller_of(None, config)
        self._binding: Binding | None = None
        self._forward: Forward | None = None
        self.truncates = True
        self.counts = False
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64), persistent=False)
        self._register()

    def _register(self) -> None:
        self.handle = next(_handles)
        _runtimes[self.handle] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> GateRuntime:
        # Two graphs, two policies: one that is an object keeps what it knows of one model.
        return GateRuntime(self.slots, copy.deepcopy(self.config, memo), self._flops)

    def __reduce__(self) -> Any:
        return GateRuntime, (self.slots, self.config, self._flops)

    def bind(self, trained: Sequence[Tensor]) -> Binding:
        """Return the sites that train ``trained``."""
        if self._binding is None or not self._binding.is_current(trained):
            self._binding = bind(trained, self.slots, self._controller, lambda: self._flops, owner=self)
        return self._binding

    @property
    def binding(self) -> Binding:
        """The sites of the last call."""
        assert self._binding is not None
        return self._binding

    def gated_parameters(self) -> list[Tensor]:
        """Return the parameters that identify the sites of the last call."""
        return self._binding.keys() if self._binding is not None else []

    def begin(self, trained: Sequence[Tensor], inputs: Sequence[Any]) -> Tensor:
        """Start a forward; return the thresholds."""
        if self.training and torch.is_grad_enabled() and runs_in_ddp():
            raise UsageError(
                "a graph of apply that runs eagerly gives what it skips no gradient, and DistributedDataParallel waits "
                "for one of each parameter. Compile the graph, which gives zeros: graph.compile()."
            )
        binding = self.bind(trained)
        self._forward = binding.forward() if self.training and torch.is_grad_enabled() else None
        self.truncates = not any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in tree_leaves(inputs))
        return binding.vector(binding.values(self.training))

    def begin_decided(self, trained: Sequence[Tensor]) -> Tensor:
        """Start a forward whose gates ask for no decision later; return the thresholds, on the CPU."""
        binding = self.bind(trained)
        recompute = self.training and binding.is_recomputed()
        self.counts = self.training and torch.is_grad_enabled() and not recompute
        return binding.vector(binding.first_values() if recompute else binding.values(self.training))

    def end_decided(self, ratios: Tensor, opens: Tensor, result: Any) -> None:
        """End such a forward: the first backward through ``result`` counts as a step."""
        if self.counts:
            self.binding.count_backward_of(tree_leaves(result), ratios, opens)

    def current(self) -> Forward | None:
        """Return the forward that is running, if it may have a backward that counts."""
        return self._forward

    def end(self, ratios: Tensor, opens: Tensor) -> None:
        """End a forward."""
        if self._forward is not None:
            self._forward.finish(ratios, opens)
            self._forward = None


_handles = itertools.count()
_runtimes: weakref.WeakValueDictionary[int, GateRuntime] = weakref.WeakValueDictionary()


def _stop_unless_open(x: Tensor, running: Forward | None, sites: Sequence[int]) -> None:
    """Have ``x``'s gradient go no further if no gate of ``sites`` is open, which is known when the backward arrives.

    There is then no gradient at all, as behind ``x.detach()``, so that autograd runs none of what lies below and leaves
    ``.grad`` as it is. ``x`` itself stays what it is, so that it may be written into, by whatever name.
    """
    made_by, position = x.grad_fn, x.output_nr
    if running is None or made_by is None:
        return

    def stop(gradients: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if running.is_open(sites):
            return None  # as they are
        return tuple(None if place == position else gradient for place, gradient in enumerate(gradients))

    made_by.register_prehook(stop)


def skiplora_thresholds(runtime: GateRuntime, trained: Sequence[Tensor], inputs: Sequence[Any]) -> Tensor:
    """Start a forward; return its thresholds, float32 ``[n]``, on the device of what it trains.

    On the CPU if decisions are taken before the forward.
    """
    if torch.compiler.is_compiling():
        sites, held = len(runtime.slots), runtime.held
        return torch.ops.skiplora.thresholds_of(list(trained), runtime.handle, sites, held, runtime.training)
    return runtime.begin(trained, inputs)


def skiplora_decided_thresholds(runtime: GateRuntime, trained: Sequence[Tensor], inputs: Sequence[Any]) -> Tensor:
    """Start a forward of the scope ``"input"``; return its thresholds, float32 ``[n]``, on the CPU."""
    if torch.compiler.is_compiling():
        return skiplora_thresholds(runtime, trained, inputs)
    return runtime.begin_decided(trained)


def skiplora_input_gate(runtime: GateRuntime, x: Tensor, open: Tensor, sites: Sequence[int], written: bool) -> Tensor:
    """Return ``x`` if ``open``, else ``x.detach()``: products whose gradient nobody wants are then not run.

    Under torch.compile a shut gate gives zeros in the backward.

    Args:
        runtime: of the graph.
        x: what a layer reads.
        open: the decision, 0-d bool on the CPU.
        sites: whose gate this is.
        written: whether anybody writes into what this returns.
    """
    if torch.compiler.is_compiling():
        return torch.ops.skiplora.gate(x, open, sites)
    return x if bool(open) else x.detach()


def skiplora_gate(runtime: GateRuntime, x: Tensor, open: Tensor, sites: Sequence[int], written: bool) -> Tensor:
    """Return ``x``; its gradient passes if any of ``sites`` is open, and there is none if not.

    Under torch.compile the decision is taken in the graph, from ``open``, and a shut gate gives zeros.

    Args:
        runtime: of the graph.
        x: what is gated.
        open: the decision, 0-d bool.
        sites: whose gate this is.
        written: whether anybody writes into what this returns.
    """
    if torch.compiler.is_compiling():
        return torch.ops.skiplora.gate(x, open, sites)
    if written and is_view_tensor(x):
        x = x.clone()  # a write into a view takes what made the view out of the way of the gradient
    _stop_unless_open(x, runtime.current(), sites)
    return x


@has_side_effect
def skiplora_truncate(runtime: GateRuntime, x: Tensor, sites: Sequence[int]) -> None:
    """Have the gradient of ``x`` pass only if any of ``sites`` is open, or an input of the graph wants one.

    Under torch.compile it always does: there a decision cannot keep work from being run.
    """
    if not torch.compiler.is_compiling() and runtime.truncates:
        _stop_unless_open(x, runtime.current(), sites)


@has_side_effect
def skiplora_record(runtime: GateRuntime, ratios: Tensor, opens: Tensor) -> None:
    """End a forward: keep its ratios, float32 ``[n]``, and decisions, bool ``[n]``."""
    if not torch.compiler.is_compiling():
        runtime.end(ratios, opens)
    elif runtime.training and torch.is_grad_enabled():
        torch.ops.skiplora.record(runtime.seen, ratios, opens, runtime.handle)


@has_side_effect
def skiplora_record_decided(runtime: GateRuntime, ratios: Tensor, opens: Tensor, result: Any) -> None:
    """End a forward of the scope ``"input"``, whose ``result`` has the backward that counts."""
    if torch.compiler.is_compiling():
        skiplora_record(runtime, ratios, opens)
    else:
        runtime.end_decided(ratios, opens, result)


CALLS = RuntimeCalls(skiplora_thresholds, skiplora_gate, skiplora_truncate, skiplora_record)
INPUT_CALLS = RuntimeCalls(
    skiplora_decided_thresholds, skiplora_input_gate, skiplora_truncate, skiplora_record_decided, shows_result=True
)
"""Those of the scope ``"input"``: what is decided before the forward needs no hook in the backward."""

torch.library.define(
    "skiplora::thresholds_of", "(Tensor[] trained, int runtime, int sites, bool held, bool training) -> Tensor"
)


@torch.library.impl("skiplora::thresholds_of", "CompositeExplicitAutograd")
def thresholds_of(trained: Sequence[Tensor], runtime: int, sites: int, held: bool, training: bool) -> Tensor:
    """Return the thresholds of a graph that was compiled after it was gated; see :class:`GateRuntime`."""
    binding = _runtimes[runtime].bind(trained)
    return binding.vector(binding.values(training)).clone()


@torch.library.register_fake("skiplora::thresholds_of")
def _(trained: Sequence[Tensor], runtime: int, sites: int, held: bool, training: bool) -> Tensor:
    return torch.empty(sites, dtype=torch.float32, device="cpu" if held else trained[0].device)


@torch.library.custom_op("skiplora::record", mutates_args=("seen",))
def record(seen: Tensor, ratios: Tensor, opens: Tensor, runtime: int) -> None:
    """Count a forward of a graph that was compiled after it was gated as a step.

    That it writes to ``seen``, the number of them, keeps a compiler from leaving it out.
    """
    seen.add_(1)
    binding = _runtimes[runtime].binding
    count(binding.forward().finish(ratios.clone(), opens.clone()))


@record.register_fake
def _(seen: Tensor, ratios: Tensor, opens: Tensor, runtime: int) -> None:
    return None
