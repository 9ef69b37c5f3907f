"""Each way in which people use torch.compile: correct, or a clear error and nothing lost."""

from __future__ import annotations

import copy
import io
import math
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import models
import oracle
import pytest
import torch
from lora_modules import RANK, WIDE, Plain, batch, peft
from peft import LoraConfig
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from usages import (
    NOTHING,
    OPENED,
    SHUT,
    assert_close,
    check,
    expected_gradients,
    gated,
    loss_of,
    two_layers,
    usage,
)

import skiplora_fx
from skiplora_fx import SkipLoraConfig
from skiplora_fx.live import live_sites


@usage("`fullgraph=True`")
def test_fullgraph() -> None:
    check(gated(two_layers(), fullgraph=True))


@usage("`torch.compile(model)` in place of `model.compile()`")
def test_the_wrapper() -> None:
    model = two_layers()
    options = {"threshold": math.inf, "warmup_steps": 0, "probe_every": 0, "strict": True}
    wrapped = torch.compile(model, backend="skiplora", options=options)
    loss_of(wrapped).backward()
    assert [site.skipped for site in skiplora_fx.sites(wrapped)] == [True, True]
    assert not any(bool(p.grad.any()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune-no-cudagraphs"])
@usage(
    "`mode=`, max-autotune among them",
    "gated with the options' defaults, as torch takes a mode or options, not both: options may hold what a mode stands "
    "for, such as `max_autotune`",
)
def test_modes(mode: str) -> None:
    model = two_layers()
    model.compile(backend="skiplora", mode=mode)
    defaults = SkipLoraConfig()
    check(model, shut=NOTHING)
    for _ in range(defaults.warmup_steps):
        loss_of(model).backward()
    for name, threshold in ((SHUT, math.inf), (OPENED, 0.0)):
        skiplora_fx.set_threshold(model, threshold, f"*{name}")
    check(model)


@usage(
    '`mode="reduce-overhead"`, or the option that it stands for',
    "gated, gradients exact, on a CPU, where it changes nothing. On a GPU, untried, only the forward can have a CUDA "
    "graph: Inductor makes none of a graph with `cond`, which the backward is",
)
def test_cuda_graphs() -> None:
    check(gated(two_layers(), options={"triton.cudagraphs": True}))


@usage("Inductor's own options beside ours, such as `epilogue_fusion`")
def test_inductors_options() -> None:
    check(gated(two_layers(), options={"epilogue_fusion": False, "max_autotune_pointwise": True}))


@pytest.mark.parametrize("dynamic", [None, True])
@usage("batches of several sizes, `dynamic=True` or as torch finds out")
def test_sizes(dynamic: bool | None) -> None:
    model = gated(two_layers(), dynamic=dynamic)
    for rows in (3, 5, 9, 1):
        check(model, lambda model, rows=rows: model(torch.ones(rows, WIDE)).square().mean())


@usage("an empty batch", "gradients of zero, and nothing is lost")
def test_an_empty_batch() -> None:
    model = gated(two_layers())
    model(torch.ones(0, WIDE)).sum().backward()
    assert all(not bool(p.grad.any()) for p in model.parameters() if p.grad is not None)
    check(model)


@usage("a graph break in the forward", "gated, each graph by itself; gradients exact")
def test_a_graph_break() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = two_layers()

        def forward(self, x: Tensor) -> Tensor:
            y = self.inner(x).relu()
            torch._dynamo.graph_break()
            return self.inner(y)

    check(gated(Broken()))


@usage("`eval()` and `train()` by turns", "gated in training, not in evaluation; nothing is counted there")
def test_eval_and_train() -> None:
    model = gated(two_layers())
    check(model)
    with torch.no_grad():
        evaluated = model.eval()(batch())
    assert evaluated.isfinite().all()
    check(model.train())
    assert [site.backwards for site in skiplora_fx.sites(model)] == [2, 2]


@usage("a forward under `no_grad` between forward and backward")
def test_no_grad_between() -> None:
    def forward(model: nn.Module) -> Tensor:
        loss = loss_of(model)
        with torch.no_grad():
            model(batch())
        return loss

    check(gated(two_layers()), forward)


@usage("gradients accumulated over several backwards")
def test_accumulation() -> None:
    check(gated(two_layers()), lambda model: loss_of(model) + 2 * loss_of(model))


@usage("`set_adapter`: another adapter of the same layers", "compiled anew, gated, gradients exact")
def test_set_adapter() -> None:
    model = two_layers()
    model.add_adapter("other", LoraConfig(r=RANK + 1, target_modules=["first", "second"], init_lora_weights=False))
    gated(model)
    check(model)
    model.set_adapter("other")
    check(model)
    model.set_adapter("default")
    check(model)


@usage("an adapter of another rank in the place of the old one", "compiled anew, gated, gradients exact")
def test_another_rank() -> None:
    model = two_layers()
    gated(model)
    check(model)
    model.delete_adapter("default")
    model.add_adapter("default", LoraConfig(r=RANK - 1, target_modules=["first", "second"], init_lora_weights=False))
    model.set_adapter("default")
    check(model)


@usage("`disable_adapter()` for a reference forward, as DPO does", "nothing to gate there; gated again after it")
def test_disabled_for_a_while() -> None:
    model = gated(two_layers())
    check(model)
    with model.disable_adapter(), torch.no_grad():
        model(batch())
    check(model)


@usage("`torch.autocast`, bfloat16")
def test_autocast() -> None:
    def forward(model: nn.Module) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(model)

    check(gated(two_layers()), forward, rtol=0.02)  # bfloat16 has 8 bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@usage(
    "a model in bfloat16 or float16",
    "gated; gradients exact as far as the dtype goes; norms are taken in float32, so that a large activation does not "
    "overflow",
)
def test_half_precision(dtype: torch.dtype) -> None:
    def forward(model: nn.Module) -> Tensor:
        return (model(torch.full((4, WIDE), 2.0, dtype=dtype)).float() / 1e3).square().mean()

    model = two_layers().to(dtype)
    with torch.no_grad():
        model.get_submodule("base_model.model.second.base_layer").bias.fill_(3e4)  # norm 2.4e5, float16 ends at 6.5e4
    as_eager_rounds = {"emulate_precision_casts": True}  # Inductor keeps in float32 what it fuses
    check(gated(model, options=as_eager_rounds), forward, rtol=2 * torch.finfo(dtype).eps)
    assert all(0 < site.ratio < math.inf for site in skiplora_fx.sites(model))


@pytest.mark.parametrize("skipped_grad", ["zero", "none"])
@usage("`GradScaler`", "gated; a step with infinite gradients is left out, and nothing of it is counted")
def test_grad_scaler(skipped_grad: str) -> None:
    model = gated(two_layers(), options={"skipped_grad": skipped_grad})
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    attachment = skiplora_fx.attach(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    loss_of(model)  # compiles: sites are known from here on
    skiplora_fx.set_threshold(model, 0.0)
    before = {name: p.detach().clone() for name, p in trained.items()}
    scaled_step(scaler, optimizer, 1e38 * loss_of(model))
    assert any(bool(p.grad.isinf().any()) for p in trained.values())
    torch.testing.assert_close({name: p.detach() for name, p in trained.items()}, before, rtol=0, atol=0)
    assert (scaler.get_scale(), attachment.clock.steps) == (2.0**3, 0)

    skiplora_fx.set_threshold(model, math.inf, f"*{SHUT}")
    expected = expected_gradients(copy.deepcopy(model), loss_of)
    optimizer.zero_grad()
    scaler.scale(loss_of(model)).backward()
    skiplora_fx.sites(model)  # reads what the backward has left
    assert {site.name: (site.backwards_in_step, site.opens_in_step) for site in live_sites(model)} == {
        name: (1, int(not name.endswith(SHUT))) for name in oracle.adapted_layers(model)
    }
    scaler.step(optimizer)
    scaler.update()
    assert (scaler.get_scale(), attachment.clock.steps) == (2.0**3, 1)
    assert {name for name, p in trained.items() if p.grad is None} == {
        name for name in trained if SHUT in name and skipped_grad == "none"
    }
    moved = {name: before[name] - p.detach() for name, p in trained.items()}
    assert_close(moved, {name: 0.1 * gradient for name, gradient in expected.items()})


def scaled_step(scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()


@pytest.mark.parametrize("reentrant", [False, True])
@usage(
    "activation checkpointing, both kinds",
    "gated, gradients exact; truncation saves nothing until [a hook of transformers and PEFT]"
    "(explain.md#activation-checkpointing) is taken away",
)
def test_checkpointing(reentrant: bool) -> None:
    model = two_layers()

    def forward(model: nn.Module) -> Tensor:
        x = batch_that_wants_gradients()
        return torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant).square().mean()

    check(gated(model), forward)


def batch_that_wants_gradients() -> Tensor:
    torch.manual_seed(1)
    return batch().requires_grad_()


@usage(
    "a trained norm, bias or head beside the adapters",
    "gated; what trains elsewhere is in `explain` and has its gradient",
)
def test_other_parameters_train() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.LayerNorm(WIDE), nn.Linear(WIDE, 5)
            self.first, self.second = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x + self.second(torch.relu(self.first(x)))))

    torch.manual_seed(0)
    model = peft(Normed(), (SHUT, OPENED), modules_to_save=["norm", "head"], bias="all")
    others = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert {name.split(".")[2] for name in others} == {"norm", "head", "first", "second"}
    (graph,) = skiplora_fx.explain(model, batch()).graphs
    assert {rejection.name for rejection in graph.rejections} == others
    assert [site.name.rsplit(".", 1)[-1] for site in graph.sites] == [SHUT, OPENED]
    check(gated(model))


@usage("an adapted layer in two places of the model", "gated, one site that counts each backward once; gradients exact")
def test_a_layer_in_two_places() -> None:
    class Again(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.second(torch.relu(self.again(torch.relu(self.first(x)))))

    torch.manual_seed(0)
    model = peft(Again(), (SHUT, OPENED))
    inner = model.get_submodule("base_model.model")
    inner.again = inner.first
    check(gated(model))
    assert [site.backwards for site in skiplora_fx.sites(model)] == [1, 1]


@usage("adapters that share an A", "gated, each by itself; the shared A has the gradient of those that are open")
def test_shared_adapter_weights() -> None:
    model = two_layers()
    model.get_submodule("base_model.model.first").lora_A = model.get_submodule("base_model.model.second").lora_A
    check(gated(model))
    assert bool(model.get_parameter("base_model.model.first.lora_A.default.weight").grad.any())


@pytest.mark.parametrize("shut", ["embed", "first"])
@usage("an adapter on an `nn.Embedding`")
def test_an_embedding(shut: str) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.first = nn.Embedding(7, WIDE), nn.Linear(WIDE, WIDE)

        def forward(self, ids: Tensor) -> Tensor:
            return self.first(self.embed(ids).tanh())

    def forward(model: nn.Module) -> Tensor:
        return model(torch.arange(6).view(2, 3)).square().mean()

    torch.manual_seed(0)
    model = peft(Words(), ("embed", "first"))
    gated(model, options={"threshold": {f"*{shut}": math.inf, "*": 0.0}})
    eager = copy.deepcopy(model)
    found, expected = (oracle.gradients(each, lambda each=each: forward(each)) for each in (model, eager))
    # An embedding reads nothing that has a gradient, and the other layer's h goes on: nothing else changes.
    assert_close(
        found,
        {name: g * (f".{shut}." not in name) for name, g in expected.items()}
        if shut == "embed"
        else expected_gradients(eager, forward, shut),
    )
    assert {site.name.rsplit(".", 1)[-1]: site.skipped for site in skiplora_fx.sites(model)} == {
        "embed": shut == "embed",
        "first": shut == "first",
    }


@usage("adapters on an `lm_head` whose weight is tied to the embeddings")
def test_tied_weights() -> None:
    def forward(model: nn.Module) -> Tensor:
        return model(**models.tokens()).loss

    model = models.with_lora(models.llama(1, tie_word_embeddings=True), ["lm_head", "q_proj"])
    check(gated(model, options={"threshold": {"*lm_head": math.inf, "*": 0.0}}), forward, shut="lm_head")


@usage("hooks on an adapted layer", "gated if Dynamo can trace them; gradients exact")
def test_hooks() -> None:
    model = two_layers()
    layer = model.get_submodule("base_model.model.second")
    layer.register_forward_hook(lambda module, inputs, output: output * 2)
    check(gated(model))


@usage("hooks that run once a gradient is in `.grad`, as optimizers in the backward use them", "gated; each runs once")
def test_hooks_on_gradients() -> None:
    model = gated(two_layers())
    seen: list[str] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: seen.append(name))
    loss_of(model).backward()
    assert sorted(seen) == sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
    assert [site.skipped for site in skiplora_fx.sites(model)] == [True, False]


@usage(
    "compiled autograd",
    "gated, gradients exact, but nothing is left out of the backward, which it compiles by itself; "
    'with `decision="previous"` only with `disable_passes=["release_saved"]`, an error says',
)
def test_compiled_autograd() -> None:
    captured = torch._dynamo.utils.counters["compiled_autograd"]
    before = captured["captures"]
    with compiled_autograd._enable(torch.compile(backend="eager")):
        check(gated(two_layers()))
        check(gated(two_layers(), options={"decision": "previous", "disable_passes": ["release_saved"]}))
        refused = gated(two_layers(), options={"decision": "previous"})
        with pytest.raises(skiplora_fx.UsageError, match="Compiled autograd does that"):
            check(refused)
    assert captured["captures"] > before


@usage("`backward(retain_graph=True)`, and once more")
def test_a_graph_that_is_kept() -> None:
    def kept(model: nn.Module) -> Tensor:
        loss = loss_of(model)
        loss.backward(retain_graph=True)
        return loss

    check(gated(two_layers()), kept)


@usage("double backward", "torch's own error; nothing is lost")
def test_double_backward() -> None:
    model = gated(two_layers())
    parameter = model.get_parameter("base_model.model.second.lora_B.default.weight")
    (gradient,) = torch.autograd.grad(loss_of(model), [parameter], create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        gradient.sum().backward()
    check(model)


@usage(
    "`copy.deepcopy`, `pickle` or `torch.save` of a compiled model",
    "the copy is not compiled, as ever; compiled again it is gated, with sites and steps of its own",
)
def test_copies() -> None:
    model = gated(two_layers())
    check(model)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(saved, weights_only=False)):
        check(gated(twin))
        assert [site.backwards for site in skiplora_fx.sites(twin)] == [1, 1]
    assert [site.backwards for site in skiplora_fx.sites(model)] == [1, 1]


@usage("two models in one process", "gated, each with its own sites, steps and policy")
def test_two_models() -> None:
    one, other = gated(two_layers()), gated(two_layers())
    check(one)
    check(other)
    skiplora_fx.set_threshold(one, 0.0)
    loss_of(one).backward()
    assert [site.skipped for site in skiplora_fx.sites(one)] == [False, False]
    check(other)


@usage("models that are trained in threads of their own", "gated, each with its own decisions; gradients exact")
def test_threads() -> None:
    trained = {shut: threaded_model(shut) for shut in (SHUT, OPENED)}
    for model, _ in trained.values():
        loss_on(BATCH)(model).backward()  # torch compiles under a lock: what is tested is the running
    begin = threading.Barrier(len(trained))
    with ThreadPoolExecutor(len(trained)) as threads:
        done = [
            threads.submit(train_and_check, model, expected, shut, begin) for shut, (model, expected) in trained.items()
        ]
        for each in done:
            each.result()


BATCH = torch.linspace(-1, 1, 3 * WIDE).view(3, WIDE)
THREADED_STEPS = 50


def loss_on(x: Tensor) -> Callable[[nn.Module], Tensor]:
    return lambda model: model(x).square().mean()


def threaded_model(shut: str) -> tuple[nn.Module, oracle.Gradients]:
    """Return a model in which ``shut`` is skipped, and what its gradients have to be."""
    model = two_layers()
    expected = expected_gradients(copy.deepcopy(model), loss_on(BATCH), shut)
    return gated(model, options={"threshold": {f"*{shut}": math.inf, "*": 0.0}}), expected


def train_and_check(model: nn.Module, expected: oracle.Gradients, shut: str, begin: threading.Barrier) -> None:
    begin.wait()
    for step in range(THREADED_STEPS):
        assert_close(oracle.gradients(model, lambda: loss_on(BATCH)(model)), expected)
        sites = skiplora_fx.sites(model)
        assert [site.skipped for site in sites] == [site.name.endswith(shut) for site in sites]
        assert [site.backwards for site in sites] == [step + 2, step + 2]
