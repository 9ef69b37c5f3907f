"""Which inputs of a graph are borders, and what is written for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from capture import dynamo_call, text
from expecttest import assert_expected_inline
from lora_modules import Around, Linear, batch
from torch import Tensor

from skiplora_fx.errors import InternalError
from skiplora_fx.passes import find_lora, insert_gates
from skiplora_fx.passes.border_gates import find_borders
from skiplora_fx.wanted_inputs import carried_inputs


def carried() -> Tensor:
    return batch().requires_grad_() * 2


def borders_of(forward: Callable[..., Any], x: Tensor) -> list[str]:
    gm, inputs = dynamo_call(Around(forward), x)
    trained = {node for site in find_lora(gm).sites for node in site.trained}
    return [node.name for node in find_borders(gm.graph, carried_inputs(inputs), trained)]


def test_an_input_that_was_computed_outside() -> None:
    assert borders_of(lambda layer, x: layer(x), carried()) == ["l_x_"]


def test_a_leaf_may_be_followed_by_what_is_none() -> None:
    """Dynamo asks no input whether it is one."""
    assert borders_of(lambda layer, x: layer(x), batch().requires_grad_()) == ["l_x_"]


def test_no_input_without_a_gradient() -> None:
    assert borders_of(lambda layer, x: layer(x), batch()) == []


@pytest.mark.parametrize(
    "forward",
    [
        lambda layer, x: (layer(x), x.view(-1)),
        lambda layer, x: layer(x.mul_(2.0)),
        lambda layer, x: layer(x.view(-1).mul_(2.0).view(x.shape)),
    ],
    ids=["given back as a view", "written into", "written into through a view"],
)
def test_what_autograd_has_to_know_as_an_input_is_none(forward: Callable[..., Any]) -> None:
    assert borders_of(forward, carried()) == []


def test_all_that_reads_it_reads_the_gate() -> None:
    gm, inputs = dynamo_call(Linear(), carried())
    sites = find_lora(gm).sites
    (border,) = find_borders(gm.graph, carried_inputs(inputs), set())
    gated = insert_gates(gm, sites, "layer", held=True, borders=[border])
    assert (gated.gates, gated.reached, gated.decisions) == (((0,), (1,)), (True, True), 2)
    assert_expected_inline(
        text(gated.gm.graph),
        """\
getitem_1 = getitem(skiplora_thresholds, 1)
eq_1 = eq(getitem_1, 0)
gate_default_1 = gate.default(l_x_, eq_1, [1])
linear = linear(gate_default_1, l_self_modules_base_parameters_weight_, l_self_modules_base_parameters_bias_)
linear_1 = linear(gate_default_1, l_self_modules_a_parameters_weight_, None)
linear_2 = linear(linear_1, l_self_modules_b_parameters_weight_, None)
mul = mul(linear_2, 2.0)
detach_default = detach.default(linear)
to_dtype = to.dtype(detach_default, torch.float32)
linalg_vector_norm = linalg_vector_norm(to_dtype)
detach_default_1 = detach.default(mul)
to_dtype_1 = to.dtype(detach_default_1, torch.float32)
linalg_vector_norm_1 = linalg_vector_norm(to_dtype_1)
getitem = getitem(skiplora_thresholds, 0)
eq = eq(getitem, 0)
add = add(linear, mul)
gate_default = gate.default(add, eq, [0])
stack = stack([linalg_vector_norm_1])
stack_1 = stack([linalg_vector_norm])
div = div(stack, stack_1)
eq_2 = eq(stack_1, 0)
where = where(eq_2, inf, div)
add_1 = add(stack, stack_1)
isfinite = isfinite(add_1)
where_1 = where(isfinite, where, nan)
hold_default = hold.default(skiplora_thresholds)
return (gate_default, where_1, hold_default)""",
    )


def test_decisions_are_taken_before() -> None:
    gm, _ = dynamo_call(Around(lambda layer, x: layer(x)), carried())
    with pytest.raises(InternalError, match="borders"):
        insert_gates(gm, find_lora(gm).sites, "layer", borders=gm.graph.find_nodes(op="placeholder")[:1])
