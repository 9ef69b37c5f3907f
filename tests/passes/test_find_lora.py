"""Every shape in which an adapter meets a frozen layer is found, and labelled right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import models
import oracle
import pytest
import torch
import torch.nn.functional as F
from capture import dynamo_graph
from lora_modules import RANK, WIDE, Around, Checkpointed, Linear, Plain, batch, peft
from torch import Tensor, nn

from skiplora_fx.passes import find_lora
from skiplora_fx.site import Findings, Site

FIRST = "base_model.model.first"


def search(model: nn.Module, *args: Any, **kwargs: Any) -> Findings:
    inputs = args if args or kwargs else (batch(),)
    return find_lora(dynamo_graph(model, *inputs, **kwargs))


def only_site(findings: Findings) -> Site:
    assert findings.rejections == ()
    (site,) = findings.sites
    return site


@pytest.mark.parametrize(
    ("build", "batch_of"),
    [
        pytest.param(lambda: models.with_lora(models.llama(2), models.QV), models.tokens, id="Llama q and v"),
        pytest.param(lambda: models.with_lora(models.llama(1), models.ALL_LINEAR), models.tokens, id="all linears"),
        pytest.param(
            lambda: models.with_lora(models.gpt2(1), ["c_attn", "c_proj"], fan_in_fan_out=True),
            lambda: {"input_ids": models.tokens()["input_ids"]},
            id="GPT-2, Conv1D",
        ),
        pytest.param(lambda: models.with_lora(models.bert(1), ["query", "dense"]), models.labelled, id="BERT"),
        pytest.param(lambda: models.with_lora(models.t5(1), ["q", "v"]), models.tokens, id="T5"),
    ],
)
def test_whole_models(build: Callable[[], nn.Module], batch_of: Callable[[], dict[str, Any]]) -> None:
    model = build().train()
    findings = search(model, **batch_of())
    assert findings.rejections == ()
    assert {site.name for site in findings.sites} == set(oracle.adapted_layers(model))
    assert [site.index for site in findings.sites] == list(range(len(findings.sites)))
    assert {(site.adapter, site.rank, site.chain, site.last) for site in findings.sites} == {("default", 4, 0, True)}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="as it comes"),
        pytest.param({"lora_dropout": 0.1}, id="dropout"),
        pytest.param({"lora_bias": True}, id="bias"),
        pytest.param({"use_rslora": True}, id="rsLoRA"),
        pytest.param({"lora_alpha": RANK}, id="alpha equal to r"),
    ],
)
def test_options_of_peft(options: dict[str, Any]) -> None:
    site = only_site(search(peft(**options)))
    assert (site.name, site.adapter, site.rank, site.chain, site.last) == (FIRST, "default", RANK, 0, True)
    biases = int("lora_bias" in options)
    assert len(site.parameters) == 2 + biases


@pytest.mark.parametrize("trained", ["lora_only", "all"])
def test_a_bias_that_trains_leaves_the_layer_frozen(trained: str) -> None:
    findings = search(peft(bias=trained))
    assert [(site.name, site.rank) for site in findings.sites] == [(FIRST, RANK)]
    biases = [f"{FIRST}.base_layer.bias", "base_model.model.second.bias"]
    assert [miss.name for miss in findings.rejections] == biases[: 1 + (trained == "all")]


def test_a_bias_that_trains_under_dora() -> None:
    model = torch.export.export(peft(bias="lora_only", use_dora=True), (batch(),)).module()
    findings = find_lora(model)
    assert [site.name for site in findings.sites] == [FIRST]
    assert findings.rejections == ()  # the bias is a part of what DoRA adds


def test_a_norm_and_an_embedding_that_train_before_the_layer() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.norm, self.layer = nn.Embedding(20, WIDE), nn.LayerNorm(WIDE), Linear()

        def forward(self, ids: Tensor) -> Tensor:
            x = self.words(ids)
            return x + self.layer(self.norm(x)) + self.layer(x)

    findings = search(Block(), torch.randint(0, 20, (2, 3)))
    assert [site.name for site in findings.sites] == ["layer", "layer"]
    assert {miss.family for miss in findings.rejections} == {"no join", "shared"}


def test_a_trained_weight_beside_the_frozen_one_leaves_a_frozen_path() -> None:
    class Beside(Linear):
        def __init__(self) -> None:
            super().__init__()
            self.full = nn.Linear(WIDE, WIDE)

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + self.full(x) + self.delta(x)

    findings = search(Beside())
    assert [site.rank for site in findings.sites] == [RANK]
    assert {miss.name for miss in findings.rejections} == {"full.weight", "full.bias"}


def test_base_in_bfloat16_under_adapters_in_float32() -> None:
    model = peft()
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    site = only_site(search(model, batch().bfloat16()))
    assert (site.name, site.rank) == (FIRST, RANK)
    assert site.delta.meta["example_value"].dtype is torch.float32
    assert site.h.meta["example_value"].dtype is torch.bfloat16


def test_autocast() -> None:
    model = peft()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        site = only_site(search(model))
    assert (site.name, site.rank) == (FIRST, RANK)


def test_the_parts_of_a_site() -> None:
    gm = dynamo_graph(Around(lambda layer, x: layer(x)), batch())
    site = only_site(find_lora(gm))
    assert (site.h, site.delta) == tuple(site.join.args)
    shapes = [tuple(node.meta["example_value"].shape) for node in site.parameters]
    assert shapes == [(RANK, WIDE), (WIDE, RANK)]
    assert site.key is site.parameters[0]
    assert site.body == ()
    assert (site.name, site.adapter, site.key_depth) == ("layer", "", 2)


def test_the_compiled_module_may_be_the_adapted_layer_itself() -> None:
    site = only_site(find_lora(dynamo_graph(Linear(), batch())))
    assert (site.name, site.adapter, site.key_depth) == ("", "", 2)


@pytest.mark.parametrize(
    "forward",
    [
        pytest.param(lambda layer, x: layer.delta(x) + layer.base(x), id="branch on the left"),
        pytest.param(lambda layer, x: torch.add(layer.base(x), layer.delta(x)), id="torch.add"),
        pytest.param(lambda layer, x: layer.base(x).add(layer.delta(x)), id="method"),
        pytest.param(lambda layer, x: layer.base(x).add_(layer.delta(x)), id="in place"),
        pytest.param(lambda layer, x: layer.base(x) + 2.0 * layer.b(layer.a(x)), id="scale on the left"),
        pytest.param(lambda layer, x: layer.base(x) + layer.b(layer.a(x)), id="no scale"),
        pytest.param(lambda layer, x: layer.base(x) + layer.b(layer.a(x)) * 8 / 4, id="two scales"),
        pytest.param(lambda layer, x: layer.base(x) + layer.b(layer.a(x) * 0.5), id="scale between"),
        pytest.param(lambda layer, x: layer.base(x) + layer.b(F.dropout(layer.a(x), 0.5)), id="dropout between"),
        pytest.param(
            lambda layer, x: layer.base(x) + layer.b(F.relu(layer.a(x))), id="a network beside a frozen layer"
        ),
        pytest.param(lambda layer, x: x + layer.delta(x), id="onto the input"),
        pytest.param(lambda layer, x: torch.sin(x) * x + layer.delta(x), id="onto anything"),
        pytest.param(lambda layer, x: (layer.base(x) + layer.delta(x)).to(torch.float64), id="cast after"),
        pytest.param(lambda layer, x: layer.base(x) + layer.delta(x.double().float()).double().float(), id="casts"),
    ],
)
def test_ways_to_join(forward: Callable[..., Any]) -> None:
    site = only_site(search(Around(forward)))
    assert (site.name, site.rank) == ("layer", RANK)


@pytest.mark.parametrize(
    ("trained", "key"), [({"train_a": False}, 1), ({"train_b": False}, 0)], ids=["LoRA-FA: A frozen", "B frozen"]
)
def test_half_of_it_frozen(trained: dict[str, bool], key: int) -> None:
    site = only_site(search(Around(lambda layer, x: layer(x), **trained)))
    assert site.key is site.parameters[key]


def test_chained_adapters_in_their_order() -> None:
    model = peft()
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    findings = search(model)
    assert findings.rejections == ()
    found = [(site.name, site.adapter, site.chain, site.last) for site in findings.sites]
    assert found == [(FIRST, "default", 0, False), (FIRST, "second", 1, True)]
    first, second = findings.sites
    assert first.h is second.h
    assert second.join.args[0] is first.join


def test_two_adapters_side_by_side_are_no_chain() -> None:
    findings = search(peft(targets=("first", "second")))
    found = [(site.name, site.chain, site.last) for site in findings.sites]
    assert found == [(FIRST, 0, True), ("base_model.model.second", 0, True)]


def test_checkpointed_bodies() -> None:
    gm = dynamo_graph(Checkpointed(), batch().requires_grad_())
    findings = find_lora(gm)
    assert findings.rejections == ()
    assert [site.name for site in findings.sites] == ["layers.0", "layers.1"]
    calls = [node.name for node in gm.graph.nodes if node.target is torch.ops.higher_order.tag_activation_checkpoint]
    assert [site.body for site in findings.sites] == [(call,) for call in calls]
    placeholders = set(gm.graph.find_nodes(op="placeholder"))
    assert all(placeholders.issuperset(site.parameters) for site in findings.sites)
    assert all(site.join.graph is not gm.graph for site in findings.sites)


def test_a_part_of_a_model_is_named_from_there() -> None:
    whole = nn.ModuleList([Around(lambda layer, x: layer(x)), Around(lambda layer, x: layer(x))])
    assert [only_site(search(part)).name for part in whole] == ["layer", "layer"]
    assert only_site(search(Linear())).name == ""


@pytest.mark.parametrize("options", [{"train_a": False}, {"train_b": False}])
def test_a_layer_that_is_called_twice_bears_its_own_name(options: dict[str, bool]) -> None:
    findings = search(Around(lambda layer, x: layer(layer(x).relu()), **options))
    assert [(site.name, site.rank) for site in findings.sites] == [("layer", RANK)] * 2


def test_adapters_side_by_side_in_one_module_are_told_apart() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(WIDE, WIDE).requires_grad_(False)
            self.q_a, self.v_a = nn.Linear(WIDE, RANK), nn.Linear(WIDE, RANK)
            self.q_b, self.v_b = nn.Linear(RANK, WIDE), nn.Linear(RANK, WIDE)

        def forward(self, x: Tensor) -> Tensor:
            h = self.base(x)
            return (h + self.q_b(self.q_a(x))).tanh() * (h + self.v_b(self.v_a(x))).tanh()

    findings = search(nn.Sequential(Attention()))
    assert [(site.name, site.adapter) for site in findings.sites] == [("0", "q_a"), ("0", "v_a")]


def test_a_layer_with_a_lone_parameter_in_a_container_is_named_by_its_module() -> None:
    class Lone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(WIDE, WIDE).requires_grad_(False)
            self.pools = nn.ParameterDict({"default": torch.randn(RANK, WIDE)})

        def forward(self, x: Tensor) -> Tensor:
            return self.base(x) + x.reshape(-1, WIDE // RANK, RANK).sum(1) @ self.pools["default"]

    site = only_site(search(nn.Sequential(Lone())))
    assert (site.name, site.adapter, site.key_depth) == ("0", "default", 2)


def test_adapters_with_a_shared_parameter_have_a_key_of_their_own() -> None:
    class Bank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bank = nn.Parameter(torch.randn(RANK, WIDE))
            self.up = nn.ParameterList(torch.randn(WIDE, RANK) for _ in range(2))
            self.base = nn.Linear(WIDE, WIDE).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            for up in self.up:
                x = torch.sin(self.base(x) + x @ self.bank.T @ up.T)
            return x

    findings = search(Bank())
    assert findings.rejections == ()
    assert [site.key.name[-2:] for site in findings.sites] == ["0_", "1_"]
    assert [site.own == (site.key,) for site in findings.sites] == [True, True]


def test_a_frozen_base_elsewhere_is_no_rejection() -> None:
    model = peft(Plain(), ("second",))
    assert only_site(search(model)).name == "base_model.model.second"
