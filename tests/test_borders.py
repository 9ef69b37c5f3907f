"""What lies between graphs, and below them: gradients are exact whatever it is."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from lora_modules import WIDE, Linear, batch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

import skiplora_fx
from skiplora_fx.costs import ModelCosts
from skiplora_fx.passes.flops import Flops
from skiplora_fx.surroundings import Surroundings


class Layer(nn.Module):
    """An adapted linear called ``linear``, and what is done with it."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.linear = Linear()
        self._forward = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self._forward(self.linear, *inputs)


class Normed(nn.Module):
    """A layer in which a norm trains, which no gate can shut."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(WIDE), Linear()

    def forward(self, x: Tensor) -> Tensor:
        return residual(self.linear, self.norm(x))


class Stack(nn.Module):
    """Three layers, each a graph, a linear that trains and is no adapter, and a forward of all of them."""

    def __init__(self, forward: Callable[..., Tensor], layer: Callable[..., Any]) -> None:
        super().__init__()
        self.trained = nn.Linear(WIDE, WIDE)
        self.layers = nn.ModuleList(Layer(layer) for _ in range(3))
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def residual(linear: Linear, x: Tensor) -> Tensor:
    return x + linear(x).sin()


def beside(linear: Linear, x: Tensor) -> tuple[Tensor, Tensor]:
    return linear(x).sin(), x


def in_place(linear: Linear, x: Tensor) -> Tensor:
    return linear(x.mul_(2.0)).sin()


def of_two(linear: Linear, x: Tensor, y: Tensor | None = None) -> Tensor:
    return linear(x).sin() if y is None else linear(x).sin() * y.cos()


def in_a_row(model: Stack, x: Tensor) -> Tensor:
    for layer in model.layers:
        x = layer(x)
    return x


def over_a_leaf(model: Stack, x: Tensor) -> Tensor:
    """As with the hook that transformers sets with activation checkpointing."""
    return in_a_row(model, x.detach().requires_grad_())


def over_what_trains(model: Stack, x: Tensor) -> Tensor:
    return in_a_row(model, model.trained(x))


def beside_what_trains(model: Stack, x: Tensor) -> Tensor:
    lower, middle, upper = model.layers
    return upper(middle(lower(x)) + model.trained(x))


def with_code_between(model: Stack, x: Tensor) -> Tensor:
    lower, middle, upper = model.layers
    x = lower(x).view(3, 2, -1).transpose(0, 1).reshape(3, -1)
    return upper((middle(x.exp()) * 0.5 + x).clamp(-2, 2))


def passing_on(model: Stack, x: Tensor) -> Tensor:
    for layer in model.layers:
        y, x = layer(x)
        x = x + y
    return x


def crossing(model: Stack, x: Tensor) -> Tensor:
    lower, middle, upper = model.layers
    return upper(lower(x), middle(x))


def one_twice(model: Stack, x: Tensor) -> Tensor:
    lower, middle, upper = model.layers
    return upper(middle(middle(lower(x))))


def checkpointed(model: Stack, x: Tensor, reentrant: bool = False) -> Tensor:
    lower, middle, upper = model.layers
    return upper(checkpoint(middle, lower(x), use_reentrant=reentrant))


def with_more_behind_it(layer: Layer) -> Callable[[Tensor], Tensor]:
    """Return what a checkpoint repeats for the sake of the code behind the layer, before the layer's own backward."""
    return lambda x: layer(x).sin()


def one_twice_checkpointed(model: Stack, x: Tensor) -> Tensor:
    lower, middle, upper = model.layers
    x = lower(x)
    for _ in range(2):
        x = checkpoint(with_more_behind_it(middle), x, use_reentrant=False)
    return upper(x)


def one_over_two_checkpointed(model: Stack, x: Tensor) -> Tensor:
    one, other, upper = model.layers
    return sum(checkpoint(with_more_behind_it(upper), below(x), use_reentrant=False) for below in (one, other))


def only_its_size(linear: Linear, x: Tensor, y: Tensor | None = None) -> Tensor:
    return linear(x).sin() if y is None else linear(x).sin().type_as(y)


def aliased(model: Stack, x: Tensor) -> Tensor:
    lower, middle, upper = model.layers
    x = lower(x) * 1.0
    return upper(middle(x, x.view(-1)))


def in_place_by_another_name(linear: Linear, x: Tensor, y: Tensor | None = None) -> Tensor:
    if y is not None:
        y.mul_(2.0)
    return linear(x).sin()


CASES: dict[str, tuple[Callable[[Stack, Tensor], Tensor], Callable[..., Any]]] = {
    "layers in a row": (in_a_row, residual),
    "over a leaf": (over_a_leaf, residual),
    "over something that trains": (over_what_trains, residual),
    "beside something that trains": (beside_what_trains, residual),
    "with code between": (with_code_between, residual),
    "with an input that is passed on": (passing_on, beside),
    "with an input that is written into": (over_what_trains, in_place),
    "with two inputs": (crossing, of_two),
    "one used twice": (one_twice, residual),
    "with an input of which only the size is read": (crossing, only_its_size),
    "with an input that is written into by another name": (aliased, in_place_by_another_name),
    "checkpointed": (checkpointed, residual),
    "one used twice, checkpointed": (one_twice_checkpointed, residual),
    "one over two, checkpointed": (one_over_two_checkpointed, residual),
}


SHUT_ABOVE_THE_LOWEST = {
    "layers in a row": 1,
    "beside something that trains": 1,
    "with an input that is passed on": 1,
    "with code between": 1,
    "with two inputs": 1,
    "one used twice": 1,
    "with an input of which only the size is read": 1,
    "checkpointed": 2,
    "one used twice, checkpointed": 2,
    "one over two, checkpointed": 2,
}
"""How many borders are shut in a step while the lowest layer is, those of repeated forwards among them; else none."""


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss = model(x).square().mean()
    if loss.requires_grad:
        loss.backward()
    return {
        name: torch.zeros_like(part) if part.grad is None else part.grad.clone()
        for name, part in model.named_parameters()
        if part.requires_grad
    }


def compiled(eager: Stack, dynamic: bool | None = None) -> Stack:
    """Return a copy whose layers are compiled one by one, every gate open."""
    gated = copy.deepcopy(eager)
    for layer in gated.layers:
        options = {"scope": "layer", "decision": "previous", "threshold": 0.0, "warmup_steps": 0, "probe_every": 0}
        layer.compile(backend="skiplora", dynamic=dynamic, options={**options, "strict": True})
    gradients(gated, batch())
    return gated


def open_only(gated: Stack, opens: Sequence[bool]) -> None:
    for place, open in enumerate(opens):
        skiplora_fx.set_threshold(gated, 0.0 if open else math.inf, f"layers.{place}.linear")


def check_every_mask(eager: Stack, gated: Stack, x: Tensor) -> None:
    """Compare the gradients with those of eager ``.detach()``, whatever is open."""
    for opens in itertools.product([True, False], repeat=3):
        open_only(gated, opens)
        found = gradients(gated, x)
        detached = [layer.linear for layer, open in zip(eager.layers, opens, strict=True) if not open]
        handles = [linear.register_forward_hook(lambda *called: called[-1].detach()) for linear in detached]
        wanted = gradients(eager, x)
        for handle in handles:
            handle.remove()
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_eager_detach(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    eager, x = Stack(*CASES[name]), batch()
    gated = compiled(eager)
    check_every_mask(eager, gated, x)
    found: list[float] = []
    decide = Surroundings.thresholds

    def noted(*args: Any) -> tuple[float, ...]:
        decided = decide(*args)
        found.extend(decided)
        return decided

    monkeypatch.setattr(Surroundings, "thresholds", noted)
    open_only(gated, [False, True, True])
    gradients(gated, x)
    assert found.count(math.inf) == SHUT_ABOVE_THE_LOWEST.get(name, 0)


def test_a_norm_that_trains_does_so_whatever_is_shut() -> None:
    eager = Stack(in_a_row, residual)
    eager.layers[0] = Normed()
    check_every_mask(eager, compiled(eager), batch())


def test_a_layer_in_eval_mode_is_of_use() -> None:
    """Its gate is open, whatever its threshold."""
    eager, x = Stack(in_a_row, residual), batch()
    gated = compiled(eager)
    open_only(gated, [False, True, True])
    for model in (eager, gated):
        model.layers[0].eval()
    torch.testing.assert_close(gradients(gated, x), gradients(eager, x), rtol=1e-4, atol=1e-6)


def test_gradients_of_sizes_that_vary() -> None:
    """One graph serves all sizes and all layers."""
    eager = Stack(in_a_row, residual)
    gated = compiled(eager, dynamic=True)
    graphs = counters["stats"]["unique_graphs"]
    for rows in (5, 7):
        check_every_mask(eager, gated, batch(rows))
    assert counters["stats"]["unique_graphs"] == graphs > 0


def test_what_a_reentrant_checkpoint_repeats_trains_whatever_is_below() -> None:
    """Eager ``.detach()`` below it would leave it without a gradient: torch then has no reason to repeat it."""
    eager, x = Stack(partial(checkpointed, reentrant=True), residual), batch()
    gated, wanted = compiled(eager), gradients(eager, x)
    open_only(gated, [False, True, True])
    for name, gradient in gradients(gated, x).items():
        right = torch.zeros_like(gradient) if name.startswith("layers.0") else wanted[name]
        torch.testing.assert_close(gradient, right, rtol=1e-4, atol=1e-6, msg=name)


def test_a_gradient_is_kept_that_a_checkpoint_hands_on_as_another_tensor() -> None:
    eager, x = Stack(in_a_row, residual), batch()
    gated = compiled(eager)
    open_only(gated, [False, True, True])

    def kept(model: Stack) -> Tensor:
        lower, middle, upper = model.layers
        between = lower(x)
        between.retain_grad()
        with torch.autograd.graph.save_on_cpu():
            result = checkpoint(with_more_behind_it(middle), between, use_reentrant=False)
        upper(result).square().mean().backward()
        return between.grad

    torch.testing.assert_close(kept(gated), kept(eager), rtol=1e-4, atol=1e-6)


def test_a_graph_that_is_kept_gives_the_same_again() -> None:
    eager, x = Stack(one_twice_checkpointed, residual), batch()
    gated = compiled(eager)
    open_only(gated, [False, True, True])
    once = gradients(gated, x)
    gated.zero_grad(set_to_none=True)
    loss = gated(x).square().mean()
    loss.backward(retain_graph=True)
    loss.backward()
    twice = {name: part.grad for name, part in gated.named_parameters() if part.grad is not None}
    assert twice.keys() >= {name for name, gradient in once.items() if gradient.any()} != set()
    for name, gradient in twice.items():
        torch.testing.assert_close(gradient, 2 * once[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_gradient_is_of_no_use_below_what_is_shut() -> None:
    """Whatever eager code lies between, and as soon as anything else below trains it is of use."""
    weight, other = (torch.ones(3, requires_grad=True) for _ in range(2))
    shut, open = weight * 2, weight * 3
    graph = Surroundings(borders=(0,), all_gated=True)
    graph.note([shut, None, 1], (math.inf, math.inf))
    graph.note([open], (math.inf, 0.0))
    assert graph.thresholds(training=True, inputs=[shut]) == (math.inf,)
    assert graph.thresholds(training=True, inputs=[shut.view(3, 1).sin() + 1]) == (math.inf,)
    assert graph.thresholds(training=True, inputs=[open]) == (0.0,)
    assert graph.thresholds(training=True, inputs=[shut + other]) == (0.0,)
    assert graph.thresholds(training=True, inputs=[shut + open]) == (0.0,)


def test_where_something_trains_without_a_gate_a_gradient_is_of_use() -> None:
    value = torch.ones(3, requires_grad=True) * 2
    Surroundings(all_gated=False).note([value], (math.inf,))
    assert Surroundings(borders=(0,)).thresholds(training=True, inputs=[value]) == (0.0,)
    assert Surroundings(borders=(0,)).thresholds(training=True, inputs=[torch.ones(3, requires_grad=True)]) == (0.0,)


def test_what_lies_behind_much_code_is_of_use() -> None:
    value = torch.ones(3, requires_grad=True) * 2
    graph = Surroundings(borders=(0,), all_gated=True)
    graph.note([value], (math.inf,))
    for _ in range(100):
        value = value + 1
    assert graph.thresholds(training=True, inputs=[value]) == (0.0,)


def test_a_kept_gradient_is_of_use() -> None:
    value = torch.ones(3, requires_grad=True) * 2
    graph = Surroundings(borders=(0,), all_gated=True)
    graph.note([value], (math.inf,))
    value.retain_grad()
    assert graph.thresholds(training=True, inputs=[value]) == (0.0,)


def test_what_a_hook_on_a_module_may_read_is_of_use() -> None:
    value = torch.ones(3, requires_grad=True) * 2
    graph = Surroundings(borders=(0,), all_gated=True)
    graph.note([value], (math.inf,))
    hooked = nn.Identity()
    assert graph.thresholds(training=True, inputs=[hooked(value)]) == (math.inf,)
    hooked.register_full_backward_hook(lambda *called: None)
    assert graph.thresholds(training=True, inputs=[hooked(value)]) == (0.0,)


def test_what_goes_down_costs_something_while_a_lower_site_is_open() -> None:
    """Two graphs of one site each: 1 FLOP waits for the site, and in the upper one 10 for its border."""
    waits_for = "0 0 1 1 0 1"
    lower, upper = Flops("0 0 1", "2", (1,), {}), Flops(waits_for, "2 3", (1, 10), {}, borders=1)
    costs = ModelCosts(((lower, (0,)), (upper, (1,))), sites=2)
    assert costs.total == 12
    masks = {(True, True): 12, (False, True): 1, (True, False): 11, (False, False): 0}
    assert costs.under(list(masks)) == list(masks.values())
