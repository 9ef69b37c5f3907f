"""The gated copy computes what the original does, and the right ratios and decisions beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from aten import count
from capture import Call, dynamo_call, text
from expecttest import assert_expected_inline
from lora_modules import Around, Checkpointed, Linear, batch, peft
from torch import Tensor, nn

from skiplora_fx._torch_compat import fake_propagate
from skiplora_fx.gate import DECIDE, GATE
from skiplora_fx.passes import GatedGraph, find_lora, insert_gates
from skiplora_fx.passes.inline_leaves import inline_leaves

CHECKPOINT = torch.ops.higher_order.tag_activation_checkpoint


def gated(call: Call, scope: str = "adapter") -> GatedGraph:
    return insert_gates(call.gm, find_lora(call.gm).sites, scope)


def run(call: Call, thresholds: Sequence[float], scope: str = "adapter") -> list[Tensor]:
    """Return outputs, ratios and decisions of the gated graph, run eagerly."""
    return list(gated(call, scope).gm(*call.inputs, torch.tensor(thresholds, dtype=torch.float32)))


def chained() -> nn.Module:
    model = peft()
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def test_the_graph_with_the_adapter_scope() -> None:
    assert_expected_inline(
        text(gated(dynamo_call(Linear(), batch())).gm.graph),
        """\
linear = linear(l_x_, l_self_modules_base_parameters_weight_, l_self_modules_base_parameters_bias_)
linear_1 = linear(l_x_, l_self_modules_a_parameters_weight_, None)
linear_2 = linear(linear_1, l_self_modules_b_parameters_weight_, None)
mul = mul(linear_2, 2.0)
detach_default = detach.default(linear)
to_dtype = to.dtype(detach_default, torch.float32)
linalg_vector_norm = linalg_vector_norm(to_dtype)
detach_default_1 = detach.default(mul)
to_dtype_1 = to.dtype(detach_default_1, torch.float32)
linalg_vector_norm_1 = linalg_vector_norm(to_dtype_1)
getitem = getitem(skiplora_thresholds, 0)
div = div(linalg_vector_norm_1, linalg_vector_norm)
eq = eq(linalg_vector_norm, 0)
where = where(eq, inf, div)
add_1 = add(linalg_vector_norm_1, linalg_vector_norm)
isfinite = isfinite(add_1)
where_1 = where(isfinite, where, nan)
lt = lt(where_1, getitem)
logical_not = logical_not(lt)
gate_default = gate.default(mul, logical_not, [0])
add = add(linear, gate_default)
stack = stack([linalg_vector_norm_1])
stack_1 = stack([linalg_vector_norm])
div_1 = div(stack, stack_1)
eq_1 = eq(stack_1, 0)
where_2 = where(eq_1, inf, div_1)
add_2 = add(stack, stack_1)
isfinite_1 = isfinite(add_2)
where_3 = where(isfinite_1, where_2, nan)
decide_default = decide.default(where_3, skiplora_thresholds)
return (add, where_3, decide_default)""",
    )


def test_the_graph_with_the_layer_scope() -> None:
    assert_expected_inline(
        text(gated(dynamo_call(Linear(), batch()), "layer").gm.graph),
        """\
linear = linear(l_x_, l_self_modules_base_parameters_weight_, l_self_modules_base_parameters_bias_)
linear_1 = linear(l_x_, l_self_modules_a_parameters_weight_, None)
linear_2 = linear(linear_1, l_self_modules_b_parameters_weight_, None)
mul = mul(linear_2, 2.0)
detach_default = detach.default(linear)
to_dtype = to.dtype(detach_default, torch.float32)
linalg_vector_norm = linalg_vector_norm(to_dtype)
detach_default_1 = detach.default(mul)
to_dtype_1 = to.dtype(detach_default_1, torch.float32)
linalg_vector_norm_1 = linalg_vector_norm(to_dtype_1)
getitem = getitem(skiplora_thresholds, 0)
div = div(linalg_vector_norm_1, linalg_vector_norm)
eq = eq(linalg_vector_norm, 0)
where = where(eq, inf, div)
add_1 = add(linalg_vector_norm_1, linalg_vector_norm)
isfinite = isfinite(add_1)
where_1 = where(isfinite, where, nan)
lt = lt(where_1, getitem)
logical_not = logical_not(lt)
add = add(linear, mul)
gate_default = gate.default(add, logical_not, [0])
stack = stack([linalg_vector_norm_1])
stack_1 = stack([linalg_vector_norm])
div_1 = div(stack, stack_1)
eq_1 = eq(stack_1, 0)
where_2 = where(eq_1, inf, div_1)
add_2 = add(stack, stack_1)
isfinite_1 = isfinite(add_2)
where_3 = where(isfinite_1, where_2, nan)
decide_default = decide.default(where_3, skiplora_thresholds)
return (gate_default, where_3, decide_default)""",
    )


@pytest.mark.parametrize("scope", ["adapter", "layer"])
def test_the_original_is_not_changed(scope: str) -> None:
    call = dynamo_call(Checkpointed(), batch().requires_grad_())
    bodies = [module for name, module in call.gm.named_modules() if name]
    before = [str(graph.graph) for graph in (call.gm, *bodies)]
    gated(call, scope)
    assert [str(graph.graph) for graph in (call.gm, *bodies)] == before
    assert [module for name, module in call.gm.named_modules() if name] == bodies


@pytest.mark.parametrize("scope", ["adapter", "layer"])
@pytest.mark.parametrize("build", [Linear, chained, Checkpointed])
def test_what_goes_in_and_out(build: Callable[[], nn.Module], scope: str) -> None:
    call = dynamo_call(build(), batch().requires_grad_())
    copy = gated(call, scope)
    original = [node.target for node in call.gm.graph.find_nodes(op="placeholder")]
    placeholders = copy.gm.graph.find_nodes(op="placeholder")
    assert [node.target for node in placeholders] == [*original, "skiplora_thresholds"]
    assert placeholders[-1]._dynamo_source is None
    sources = [node._dynamo_source for node in call.gm.graph.find_nodes(op="placeholder")]
    assert [node._dynamo_source for node in placeholders[:-1]] == sources

    expected = call.gm(*call.inputs)
    *outputs, ratios, opens = copy.gm(*call.inputs, torch.zeros(len(copy.sites)))
    torch.testing.assert_close(outputs, list(expected), rtol=0, atol=0)
    assert (ratios.dtype, ratios.shape) == (torch.float32, (len(copy.sites),))
    assert (opens.dtype, opens.shape) == (torch.bool, (len(copy.sites),))
    assert not ratios.requires_grad


@pytest.mark.parametrize(
    ("build", "scope", "gates"),
    [
        (Linear, "adapter", ((0,),)),
        (Linear, "layer", ((0,),)),
        (chained, "adapter", ((0,), (1,))),
        (chained, "layer", ((0,), (1,), (0, 1))),
        (Checkpointed, "adapter", ((0,), (1,))),
        (Checkpointed, "layer", ((0,), (1,))),
    ],
)
def test_which_gates_there_are(build: Callable[[], nn.Module], scope: str, gates: tuple[Any, ...]) -> None:
    copy = gated(dynamo_call(build(), batch().requires_grad_()), scope)
    assert copy.gates == gates
    graphs = [module.graph for module in copy.gm.modules() if isinstance(module, torch.fx.GraphModule)]
    called = {node.args[0].target for node in copy.gm.graph.nodes if node.target is CHECKPOINT}
    graphs = [copy.gm.graph, *(getattr(copy.gm, name).graph for name in called)]
    assert count(graphs, GATE) == len(gates)
    assert count(graphs, DECIDE) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_ratio_is_that_of_the_norms(dtype: torch.dtype) -> None:
    model, x = Linear().to(dtype), batch().to(dtype)
    h, delta = model.base(x).detach(), model.delta(x).detach()
    expected = delta.double().norm() / h.double().norm()
    *_, ratios, _ = run(dynamo_call(model, x), [0.0])
    assert ratios.dtype is torch.float32
    torch.testing.assert_close(ratios, expected.float().reshape(1), rtol=1e-6, atol=0)


def test_float16_norms_do_not_overflow() -> None:
    model = Linear()
    with torch.no_grad():
        model.base.weight.mul_(3000)
    x = batch()
    expected = model.delta(x).half().double().norm() / model.base(x).half().double().norm()
    half, x = model.half(), x.half()
    *_, ratios, _ = run(dynamo_call(half, x), [0.0])
    torch.testing.assert_close(ratios.double(), expected.detach().reshape(1), rtol=1e-2, atol=0)


@pytest.mark.parametrize(("threshold", "open"), [(math.inf, True), (1e30, True), (0.0, True)])
def test_a_zero_h_gives_infinity(threshold: float, open: bool) -> None:
    model = Linear()
    nn.init.zeros_(model.base.weight)
    nn.init.zeros_(model.base.bias)
    *_, ratios, opens = run(dynamo_call(model, batch()), [threshold])
    assert ratios.tolist() == [math.inf]
    assert opens.tolist() == [open]


def test_a_zero_branch_gives_zero() -> None:
    model = Linear()
    nn.init.zeros_(model.b.weight)
    *_, ratios, opens = run(dynamo_call(model, batch()), [1e-30])
    assert (ratios.tolist(), opens.tolist()) == ([0.0], [False])


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30], ids=["nan", "infinite", "norm overflows"])
@pytest.mark.parametrize("part", ["a", "b", "base"])
def test_what_is_not_finite_opens(part: str, value: float) -> None:
    model = Linear().float()
    nn.init.constant_(getattr(model, part).weight, value)
    call = dynamo_call(model, batch().float())
    *_, ratios, opens = run(call, [math.inf])
    assert math.isnan(ratios.item())
    assert opens.tolist() == [True]


def test_a_threshold_equal_to_the_ratio_opens() -> None:
    call = dynamo_call(Linear(), batch())
    *_, ratios, _ = run(call, [0.0])
    *_, opens = run(call, ratios.tolist())
    assert opens.tolist() == [True]


def test_chained_ratios_are_all_of_the_layer_itself() -> None:
    model, x = chained(), batch()
    layer = model.base_model.model.first
    h = layer.base_layer(x).norm()
    deltas = [layer.lora_B[name](layer.lora_A[name](x)) * layer.scaling[name] for name in ("default", "second")]
    *_, ratios, _ = run(dynamo_call(model, x), [0.0, 0.0])
    torch.testing.assert_close(ratios, torch.stack([delta.norm() / h for delta in deltas]).detach())


def test_checkpointed_calls_get_a_body_each() -> None:
    copy = gated(dynamo_call(Checkpointed(), batch().requires_grad_()))
    bodies = [node.args[0].target for node in copy.gm.graph.nodes if node.target is CHECKPOINT]
    assert len(set(bodies)) == 2
    assert [count([getattr(copy.gm, body).graph], GATE) for body in bodies] == [1, 1]


def test_an_in_place_join() -> None:
    model = Around(lambda layer, x: layer.base(x).add_(layer.delta(x)))
    x = batch()
    call = dynamo_call(model, x)
    output, ratios, _ = run(call, [0.0])
    torch.testing.assert_close(output, model(x))
    expected = model.layer.delta(x).norm() / model.layer.base(x).norm()
    torch.testing.assert_close(ratios, expected.detach().reshape(1))


def add_to(h: Tensor, delta: Tensor) -> Tensor:
    h.add_(delta)
    return h


def add_to_a_part(h: Tensor, delta: Tensor) -> Tensor:
    h[:, :8].add_(delta[:, :8])
    return h


def add_into_the_branch(h: Tensor, delta: Tensor) -> Tensor:
    delta.add_(h)
    return delta


@pytest.mark.parametrize(
    ("join", "scope", "gates"),
    [
        (add_to, "adapter", ((0,),)),
        (add_to, "layer", ((0,),)),
        (add_to_a_part, "adapter", ((0,),)),
        (add_to_a_part, "layer", ((0,), (0,))),  # Δh as well, as the rest's gradient goes past it
        (add_into_the_branch, "adapter", ((0,),)),
        (add_into_the_branch, "layer", ((0,),)),
    ],
)
def test_who_reads_what_was_written_by_its_old_name_reads_the_gate(join: Any, scope: str, gates: Any) -> None:
    model, x = Around(lambda layer, x: join(layer.base(x), layer.delta(x))), batch()
    call = dynamo_call(model, x)
    copy = gated(call, scope)
    assert copy.gates == gates
    for threshold in (0.0, math.inf):
        output, *_ = copy.gm(*call.inputs, torch.tensor([threshold]))
        torch.testing.assert_close(output, model(x), rtol=0, atol=0)
        model.zero_grad()
        if output.requires_grad:
            output.sum().backward()
        found = model.layer.a.weight.grad
        assert (found is None or not found.any()) == (threshold > 0)


def test_the_thresholds_come_after_what_has_a_default() -> None:
    class Default(Linear):
        def forward(self, x: Tensor, scale: float = 2.0, **others: Any) -> Tensor:
            return super().forward(x) * scale

    model = Default()
    gm = torch.fx.symbolic_trace(model)
    inline_leaves(gm)
    fake_propagate(gm, [batch()])
    output = gm.graph.output_node()
    output.args = ((output.args[0],),)
    copy = insert_gates(gm, find_lora(gm).sites, "adapter")
    names = [str(node.target) for node in copy.gm.graph.find_nodes(op="placeholder")]
    assert names == ["x", "scale", "skiplora_thresholds", "**others"]
    x = batch()
    result, *_ = copy.gm(x, skiplora_thresholds=torch.zeros(1))
    torch.testing.assert_close(result, model(x), rtol=0, atol=0)


@pytest.mark.parametrize("scope", ["adapter", "layer"])
@pytest.mark.parametrize("open", [True, False])
def test_run_eagerly_the_gates_stop_gradients(scope: str, open: bool) -> None:
    model, x = Linear(), batch().requires_grad_()
    output, *_ = run(dynamo_call(model, x), [0.0 if open else math.inf], scope)
    output.sin().sum().backward()
    found = [x.grad, model.a.weight.grad, model.b.weight.grad]
    x.grad, model.a.weight.grad, model.b.weight.grad = None, None, None
    h, delta = model.base(x), model.delta(x)
    if not open:
        h, delta = (h if scope == "adapter" else h.detach()), delta.detach()
    loss = (h + delta).sin().sum() + 0 * x.sum() + 0 * model.delta(x).sum()
    loss.backward()
    torch.testing.assert_close(found, [x.grad, model.a.weight.grad, model.b.weight.grad])
