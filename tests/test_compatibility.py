"""The compatibility table: PEFT's tuners, gated, rejected with a reason, or with nothing to gate.

A failure that lies upstream is a strict xfail with its reason, so that a repair there is noticed here.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import models
import peft
import pytest
import torch
import transformers
from capture import QuickBackend, dynamo_graph
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported

import skiplora_fx
from skiplora_fx.explain import Explanation
from skiplora_fx.passes import find_lora
from skiplora_fx.passes.parameters import Parameters
from skiplora_fx.site import Rejection

LINEARS = ("lin0", "lin1")


@pytest.fixture(autouse=True)
def _same_environment() -> Iterator[None]:
    """BOFT leaves CC and CXX at gcc where its extension cannot be built, and Inductor then links without libstdc++."""
    with mock.patch.dict(os.environ):
        yield


class MLP(nn.Module):
    """What PEFT's own tests of torch.compile adapt."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0, self.lin1 = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin1(torch.relu(self.lin0(x)))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin0 = nn.Embedding(20, 32)

    def forward(self, ids: Tensor) -> Tensor:
        return self.lin0(ids).tanh()


class Convolution(nn.Module):
    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.lin0 = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dimensions - 1](8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin0(x).tanh()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin0 = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin0(x[None], x[None], x[None])[0]


def adapted(config: str, base: nn.Module | None = None, **options: Any) -> nn.Module:
    """Return a model with PEFT's ``config``, in double precision, everything that trains drawn at random."""
    base = base or MLP()
    options = {"target_modules": [name for name in LINEARS if hasattr(base, name)], **options}
    torch.manual_seed(0)
    model = peft.get_peft_model(base, getattr(peft, config)(**options)).double().train()
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            nn.init.normal_(parameter, std=0.3)
    return model


def lora(**options: Any) -> Callable[[], nn.Module]:
    return lambda: adapted("LoraConfig", **{"r": 4, **options})


def tuner(config: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: adapted(config, **options)


def rows() -> Tensor:
    return torch.randn(4, 32, dtype=torch.float64)


def pixels() -> Tensor:
    return torch.randn(2, 8, 5, 5, dtype=torch.float64)


def run(compiled: Callable[[Tensor], Tensor], model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the gradients of all that trains, zeros for None, and of the input if that can have one."""
    model.zero_grad(set_to_none=True)
    x = x.clone().requires_grad_(x.is_floating_point())
    torch.manual_seed(1)
    compiled(x).sin().sum().backward()
    leaves = {**{name: p for name, p in model.named_parameters() if p.requires_grad}, "x": x}
    return {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
        if leaf.is_floating_point()
    }


def broken(upstream: str) -> pytest.MarkDecorator:
    """Mark what Dynamo cannot capture whole: it says so itself, and no other error will do."""
    return pytest.mark.xfail(reason=upstream, raises=Unsupported, strict=True)


MODULE_DROPOUT = broken("peft's lycoris layers ask `torch.rand(1) > module_dropout` in Python: Dynamo breaks there")
DORA_BREAKS = broken("peft's DoRA is a module that is not traced: the graph breaks between A and the sum")

GATED = [
    pytest.param(lora(), rows, "linear→linear", id="LoRA"),
    pytest.param(lora(use_rslora=True), rows, "linear→linear", id="rsLoRA"),
    pytest.param(lora(lora_alpha=4), rows, "linear→linear", id="LoRA, alpha equal to r"),
    pytest.param(lora(lora_bias=True), rows, "linear→linear", id="LoRA with bias"),
    pytest.param(lora(init_lora_weights="pissa"), rows, "linear→linear", id="PiSSA"),
    pytest.param(lora(init_lora_weights="olora"), rows, "linear→linear", id="OLoRA"),
    pytest.param(lora(init_lora_weights="orthogonal"), rows, "linear→linear", id="orthogonal"),
    pytest.param(lora(kasa_config=KasaConfig()), rows, "linear→linear", id="KaSA"),
    pytest.param(
        lora(use_bdlora=BdLoraConfig(target_modules_bd_a=["lin0"], target_modules_bd_b=["lin1"], nblocks=2)),
        rows,
        {"einsum→linear", "linear→einsum"},
        id="BdLoRA",
    ),
    pytest.param(lora(init_lora_weights="mica"), rows, "linear→linear", id="MiCA"),
    pytest.param(
        lambda: adapted("LoraConfig", Words(), r=4),
        lambda: torch.randint(0, 20, (2, 5)),
        "embedding→linear",
        id="LoRA, embedding",
    ),
    *(
        pytest.param(
            lambda dimensions=dimensions: adapted("LoraConfig", Convolution(dimensions), r=2),
            lambda dimensions=dimensions: torch.randn(2, 8, *(5,) * dimensions, dtype=torch.float64),
            "conv→conv",
            id=f"LoRA, Conv{dimensions}d",
        )
        for dimensions in (1, 2, 3)
    ),
    pytest.param(tuner("AdaLoraConfig", init_r=6, target_r=4, total_step=10), rows, "linear→linear", id="AdaLoRA"),
    pytest.param(tuner("VeraConfig", r=4), rows, "linear→linear", id="VeRA"),
    pytest.param(tuner("RandLoraConfig", r=4), rows, "linear→linear", id="RandLoRA"),
    pytest.param(tuner("UniLoraConfig", r=4), rows, "linear→linear", id="UniLoRA"),
    pytest.param(tuner("TinyLoraConfig", r=4), rows, "linear→linear→linear", id="TinyLoRA"),
    pytest.param(tuner("DeloraConfig", r=4), rows, "linear→linear", id="DeLoRA"),
    pytest.param(tuner("GraloraConfig", r=8), rows, "einsum→einsum", id="GraLoRA"),
    pytest.param(tuner("MissConfig", r=8), rows, "pooling→linear", id="MiSS"),
    pytest.param(tuner("PsoftConfig", r=4), rows, "linear→linear→linear", id="PSOFT"),
    pytest.param(
        lambda: adapted("AdamssConfig", r=4).float(),  # holds float32 whatever the model is cast to
        lambda: rows().float(),
        "linear→linear→linear",
        id="AdaMSS",
    ),
    pytest.param(tuner("OSFConfig"), rows, "linear→linear", id="OSF"),
    pytest.param(tuner("FourierFTConfig", n_frequency=20), rows, "composed linear", id="FourierFT"),
    pytest.param(tuner("HiraConfig", r=4), rows, "composed linear", id="HiRA"),
    pytest.param(tuner("PeanutConfig", r=4), rows, "composed linear", id="PEANuT"),
    pytest.param(tuner("LoHaConfig", r=4), rows, "composed linear", id="LoHa", marks=MODULE_DROPOUT),
    pytest.param(tuner("LoKrConfig", r=4), rows, "composed linear", id="LoKr", marks=MODULE_DROPOUT),
    pytest.param(
        tuner("VBLoRAConfig", vector_length=4, num_vectors=10, topk=2, r=4),
        rows,
        "linear→linear",
        id="VBLoRA",
        marks=broken("peft's VBLoRA asks `logits[0, 0].isinf().any()` in Python: Dynamo breaks there"),
    ),
    pytest.param(
        tuner("WaveFTConfig", n_frequency=16),
        rows,
        "composed linear",
        id="WaveFT",
        marks=broken("peft's wavelet transform builds filters in Python: Dynamo breaks, torch.export does not"),
    ),
    pytest.param(lora(use_dora=True), rows, "linear→linear", id="DoRA", marks=DORA_BREAKS),
    pytest.param(
        lambda: adapted("LoraConfig", Words(), r=4, use_dora=True),
        lambda: torch.randint(0, 20, (2, 5)),
        "embedding→linear",
        id="DoRA, embedding",
        marks=DORA_BREAKS,
    ),
    pytest.param(
        lambda: adapted("LoraConfig", Convolution(2), r=2, use_dora=True), pixels, "conv→conv", id="DoRA, Conv2d"
    ),
    pytest.param(
        lambda: adapted("AdaLoraConfig", Convolution(2), init_r=4, target_r=2, total_step=10),
        pixels,
        "composed conv",
        id="AdaLoRA, Conv2d",
    ),
    pytest.param(
        lambda: adapted("LoraConfig", Attention(), r=4),
        rows,
        "linear→linear",
        id="LoRA, MultiheadAttention",
        marks=broken("peft merges into `weight.data` in the forward, and out again: Dynamo cannot follow that"),
    ),
]


@pytest.mark.parametrize(("build", "example", "kind"), GATED)
def test_gated(build: Callable[[], nn.Module], example: Callable[[], Tensor], kind: str | set[str]) -> None:
    model, x = build(), example()
    wanted = run(model, model, x)
    backend = QuickBackend()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(run(compiled, model, x), wanted)
    findings = backend.only.findings
    layers = [name for name in LINEARS if hasattr(model.base_model.model, name)]
    assert [site.name for site in findings.sites] == [f"base_model.model.{name}" for name in layers]
    assert {site.kind for site in findings.sites} == ({kind} if isinstance(kind, str) else kind)
    assert findings.rejections == ()

    backend.only.thresholds.fill_(math.inf)
    found = run(compiled, model, x)
    of_input = found.pop("x", None)
    assert not any(bool(gradient.any()) for gradient in found.values())
    if of_input is not None:
        torch.testing.assert_close(of_input, gradient_through_the_base(model, x))


def gradient_through_the_base(model: nn.Module, x: Tensor) -> Tensor:
    """Return the gradient of the input in a model whose layers add the same Δh, detached."""

    class Detached(nn.Module):
        def __init__(self, layer: Any) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            h = self.layer.base_layer(x)
            return h + (self.layer(x) - h).detach()

    base = model.base_model.model
    original = {name: getattr(base, name) for name in LINEARS if hasattr(base, name)}
    try:
        for name, layer in original.items():
            setattr(base, name, Detached(layer))
        x = x.clone().requires_grad_()
        model(x).sin().sum().backward()
        assert x.grad is not None
        return x.grad
    finally:
        for name, layer in original.items():
            setattr(base, name, layer)


def test_modules_to_save_are_named() -> None:
    model = adapted("LoraConfig", target_modules=["lin0"], modules_to_save=["lin1"], r=4)
    (graph,) = skiplora_fx.explain(model, rows()).graphs
    assert [site.name for site in graph.sites] == ["base_model.model.lin0"]
    assert {(miss.name.rpartition(".")[2], miss.family) for miss in graph.rejections} == {
        ("weight", "no join"),
        ("bias", "no join"),
    }


def test_dropout_is_searched_through() -> None:
    model = adapted("LoraConfig", r=4, lora_dropout=0.1)
    (graph,) = skiplora_fx.explain(model, rows()).graphs
    assert [site.kind for site in graph.sites] == ["linear→linear"] * 2


def test_pvera_samples_and_is_gated() -> None:
    (graph,) = skiplora_fx.explain(adapted("PveraConfig", r=4), rows()).graphs
    assert [site.kind for site in graph.sites] == ["linear→linear"] * 2
    assert graph.rejections == ()


EXPORTED = [
    pytest.param(lora(), "linear→linear", id="LoRA"),
    pytest.param(lora(use_dora=True), "linear→linear", id="DoRA"),
    pytest.param(tuner("WaveFTConfig", n_frequency=16), "composed linear", id="WaveFT"),
    pytest.param(tuner("FourierFTConfig", n_frequency=20), "composed linear", id="FourierFT"),
    pytest.param(tuner("AdaLoraConfig", init_r=6, target_r=4, total_step=10), "linear→linear", id="AdaLoRA"),
    pytest.param(tuner("GraloraConfig", r=8), "einsum→einsum", id="GraLoRA"),
    pytest.param(tuner("MissConfig", r=8), "pooling→linear", id="MiSS"),
    pytest.param(tuner("HiraConfig", r=4), "composed linear", id="HiRA"),
]


@pytest.mark.parametrize(("build", "kind"), EXPORTED)
@pytest.mark.parametrize("threshold", [0.0, math.inf], ids=["open", "shut"])
def test_gated_when_exported(build: Callable[[], nn.Module], kind: str, threshold: float) -> None:
    model, x = build(), rows()
    options = {"threshold": threshold, "warmup_steps": 0, "probe_every": 0}
    gated = skiplora_fx.apply(torch.export.export(model, (x,)), **options)
    found = run(gated, model, x)
    names = [site.name for site in skiplora_fx.sites(gated)]
    assert names == [f"base_model.model.{name}" for name in LINEARS]
    if threshold == 0.0:
        torch.testing.assert_close(found, run(model, model, x))
    else:
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert not any(bool(found[name].any()) for name in trained)


CUT_OFF = {"no join": "a graph break may have cut it off"}

REJECTED = [
    pytest.param(
        lambda: adapted("LoraConfig", target_modules=[], r=4, target_parameters=["lin0.weight"]),
        CUT_OFF,
        id="target_parameters",
    ),
    pytest.param(
        lora(velora_config=VeloraConfig()),
        {"opaque": "the body of autograd_function_apply", "no join": "single weight"},
        id="VeLoRA",
    ),
    pytest.param(lora(monteclora_config=MontecloraConfig()), CUT_OFF, id="MonteCLoRA"),
    pytest.param(tuner("DeftConfig", r=4), {"multiplicative": "taken away again"}, id="DEFT"),
    pytest.param(
        tuner("LilyConfig", r=4),
        {"routed": "a router", "shared": "several readers", "non-linear": "softmax"},
        id="Lily",
    ),
    pytest.param(tuner("C3AConfig", block_size=8), {"opaque": "the body of autograd_function_apply"}, id="C3A"),
    pytest.param(
        tuner("IA3Config", feedforward_modules=["lin1"]), {"multiplicative": "multiplies an activation"}, id="IA3"
    ),
    pytest.param(
        tuner("OFTConfig", r=0, oft_block_size=8), {"multiplicative": "goes through a frozen weight"}, id="OFT"
    ),
    pytest.param(tuner("BOFTConfig", boft_block_size=8), {"multiplicative": "goes through a frozen weight"}, id="BOFT"),
    pytest.param(tuner("HRAConfig", r=4), {"multiplicative": "multiplies a frozen weight"}, id="HRA"),
    pytest.param(tuner("RoadConfig", group_size=8), {"multiplicative": "multiplies an activation"}, id="RoAd"),
    pytest.param(tuner("GloraConfig", r=4), {"weight-space": "added to a frozen weight"}, id="GLoRA"),
    pytest.param(tuner("SupertuningConfig"), {"weight-space": "added to a frozen weight"}, id="Supertuning"),
    pytest.param(tuner("BeftConfig"), {"no join": "as it is"}, id="BEFT"),
    pytest.param(
        tuner("LNTuningConfig"),
        {"no join": "its output is not added to anything", "non-linear": "relu"},
        id="LN tuning, of linears",
    ),
    pytest.param(tuner("ShiraConfig", r=4), CUT_OFF, id="SHiRA"),
]


def rejections(model: nn.Module, *inputs: Any, **kwargs: Any) -> list[Rejection]:
    found = skiplora_fx.explain(model, *inputs, **kwargs)
    assert not any(graph.sites for graph in found.graphs)
    return [rejection for graph in found.graphs for rejection in graph.rejections]


def check_reasons(found: list[Rejection], reasons: dict[str, str]) -> None:
    """Compare the families, and look for each family's words among its reasons."""
    assert {rejection.family for rejection in found} == set(reasons)
    for family, words in reasons.items():
        assert any(words in rejection.reason for rejection in found if rejection.family == family), words


@pytest.mark.parametrize(("build", "reasons"), REJECTED)
def test_rejected(build: Callable[[], nn.Module], reasons: dict[str, str]) -> None:
    check_reasons(rejections(build(), rows()), reasons)


def of_tokens(config: str, **options: Any) -> Callable[[], nn.Module]:
    """Return what builds a Llama of one layer with PEFT's ``config``."""
    return lambda: peft.get_peft_model(models.llama(1), getattr(peft, config)(task_type="CAUSAL_LM", **options)).train()


def saved_experts(folder: str) -> list[str]:
    """Save two LoRA adapters of that Llama; return where they lie."""
    paths = [f"{folder}/{number}" for number in range(2)]
    for path in paths:
        models.with_lora(models.llama(1), ["q_proj"]).save_pretrained(path)
    return paths


def arrow() -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        config = peft.ArrowConfig(top_k=1)
        model = peft.create_arrow_model(models.llama(1), saved_experts(folder), config)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model.train()


REJECTED_IN_A_LANGUAGE_MODEL = [
    pytest.param(arrow, {}, {"routed": "a router"}, id="Arrow"),
    pytest.param(
        of_tokens("PolyConfig", target_modules=["q_proj"], r=4, n_tasks=2, n_skills=2, n_splits=1),
        {"task_ids": torch.tensor([0, 1])},
        {"no join": "is part of no low-rank branch"},
        id="Poly",
    ),
    pytest.param(
        of_tokens("TrainableTokensConfig", target_modules=["embed_tokens"], token_indices=[1, 2]),
        {},
        {"weight-space": "added to a frozen weight"},
        id="trainable tokens",
    ),
]


@pytest.mark.parametrize(("build", "more", "reasons"), REJECTED_IN_A_LANGUAGE_MODEL)
def test_rejected_in_a_language_model(
    build: Callable[[], nn.Module], more: dict[str, Tensor], reasons: dict[str, str]
) -> None:
    check_reasons(rejections(build(), **models.tokens(), **more), reasons)


IN_NO_GRAPH = [
    pytest.param(tuner("FrodConfig", progressbar=False), lambda: {"x": rows()}, "Data dependent operator", id="FRoD"),
    pytest.param(
        of_tokens("LoraConfig", r=4, target_modules=["q_proj"], alora_invocation_tokens=[5, 6]),
        models.tokens,
        "Dynamic shape operator",
        id="aLoRA",
    ),
]


@pytest.mark.parametrize(("build", "batch", "reason"), IN_NO_GRAPH)
def test_what_a_graph_break_keeps_out_of_every_graph(
    build: Callable[[], nn.Module], batch: Callable[[], dict[str, Any]], reason: str
) -> None:
    found = skiplora_fx.explain(build(), **batch())
    assert [(graph.sites, graph.rejections) for graph in found.graphs] == [((), ())] * len(found.graphs)
    assert any(stop.reason.startswith(reason) for stop in found.breaks), found.breaks


NOTHING = [
    pytest.param("PromptTuningConfig", {"num_virtual_tokens": 3}, id="prompt tuning"),
    pytest.param("PromptEncoderConfig", {"num_virtual_tokens": 3}, id="p-tuning"),
    pytest.param("PrefixTuningConfig", {"num_virtual_tokens": 3}, id="prefix tuning"),
    pytest.param("LNTuningConfig", {}, id="LN tuning"),
]


@pytest.mark.parametrize(("config", "options"), NOTHING)
def test_nothing_to_gate(config: str, options: dict[str, Any]) -> None:
    """What these train is no low-rank branch beside a layer: no site, and every parameter is accounted for."""
    gm = dynamo_graph(of_tokens(config, **options)(), **models.tokens())
    findings = find_lora(gm)
    assert findings.sites == ()
    trained = {parameter.path for parameter in Parameters(gm) if parameter.trained}
    assert trained
    assert {rejection.name for rejection in findings.rejections} == trained


def the_only_graph(found: Explanation) -> tuple[list[tuple[str, str]], set[str]]:
    """Return the layer and the adapter of each site, and the families of what is rejected."""
    (graph,) = found.graphs
    sites = [(site.name.rpartition(".")[2], site.adapter) for site in graph.sites]
    return sites, {rejection.family for rejection in graph.rejections}


def test_two_adapters_at_once() -> None:
    model = adapted("LoraConfig", r=4)
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    sites, rejected = the_only_graph(skiplora_fx.explain(model.double(), rows()))
    assert sites == [(layer, adapter) for layer in LINEARS for adapter in ("default", "second")]
    assert rejected == set()


def test_disabled_adapters_leave_nothing_to_differentiate() -> None:
    model = adapted("LoraConfig", r=4)
    model.base_model.disable_adapter_layers()
    assert skiplora_fx.explain(model, rows()).graphs == ()


def test_xlora_gates_each_expert_and_rejects_the_router() -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = {Path(path).name: path for path in saved_experts(folder)}
        model = of_tokens("XLoraConfig", hidden_size=32, adapters=paths, use_trainable_adapters=True)()
    router, experts = skiplora_fx.explain(model, **models.tokens()).graphs
    assert (len(router.sites), {miss.family for miss in router.rejections}) == (0, {"non-linear"})
    assert [(site.adapter, site.kind) for site in experts.sites] == [
        ("lora_A.0", "linear→linear"),
        ("lora_A.1", "linear→linear"),
    ]


def test_shadow_gates_what_it_injects_and_names_the_rest() -> None:
    sites, rejected = the_only_graph(skiplora_fx.explain(of_tokens("ShadowConfig", r=4)(), **models.tokens()))
    assert sites == [("0", "default")]
    assert rejected >= {"multiplicative", "shared", "non-linear", "no join"}


def test_an_embedding_that_is_saved_too_is_named() -> None:
    config = transformers.OPTConfig(
        vocab_size=models.VOCABULARY,
        hidden_size=16,
        ffn_dim=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        word_embed_proj_dim=16,
        dropout=0.0,
        layerdrop=0.0,
        use_cache=False,
    )
    lora_config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    model = peft.get_peft_model(transformers.OPTForCausalLM(config), lora_config).train()
    assert the_only_graph(skiplora_fx.explain(model, **models.tokens())) == ([("q_proj", "default")], {"no join"})


BY_THEMSELVES: dict[str, tuple[str, Callable[..., None]]] = {
    "modules_to_save": ("gated beside it; what is saved is rejected: no join", test_modules_to_save_are_named),
    "modules_to_save of an embedding": (
        "gated beside it; what is saved is rejected: no join",
        test_an_embedding_that_is_saved_too_is_named,
    ),
    "LoRA with dropout": ("gated: linear→linear", test_dropout_is_searched_through),
    "PVeRA": ("gated: linear→linear", test_pvera_samples_and_is_gated),
    "two adapters at once": ("gated, each by itself", test_two_adapters_at_once),
    "disabled adapters": ("nothing to differentiate", test_disabled_adapters_leave_nothing_to_differentiate),
    "X-LoRA": (
        "gated, each expert by itself; the router is rejected: non-linear",
        test_xlora_gates_each_expert_and_rejects_the_router,
    ),
    "Shadow": (
        "gated where it is added to a block; the rest is rejected",
        test_shadow_gates_what_it_injects_and_names_the_rest,
    ),
}
"""What has a test of its own, with what that shows."""

UNTESTED = {"QALoRA": "needs a model quantised by GPTQ; its formula is a shape of its own"}
