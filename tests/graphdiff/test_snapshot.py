"""A snapshot holds every stage, says what each node is, and is the same file in every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import models
import oracle
import pytest
import torch
from lora_modules import Around, Checkpointed, Linear, batch, peft
from snapshots import snapshot
from torch import Tensor, nn
from torch._dynamo.utils import counters

from skiplora_fx import UsageError
from skiplora_fx.graphdiff.files import snapshot_json
from skiplora_fx.graphdiff.records import Snapshot
from skiplora_fx.graphdiff.stages import STAGES

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def taken() -> Snapshot:
    torch.manual_seed(0)
    return snapshot(models.with_lora(models.llama(2)).train(), kwargs=models.tokens())


def test_every_stage_is_there(taken: Snapshot) -> None:
    (graph,) = taken.graphs
    assert [stage.name for stage in graph.stages] == [name for name in STAGES if name != "merged"]
    assert all(node.name and node.target for stage in graph.stages for node in stage.nodes)


def test_merged_siblings_are_a_stage_of_their_own() -> None:
    torch.manual_seed(0)
    model = models.with_lora(models.llama(1), models.MLP).train()
    (graph,) = snapshot(model, kwargs=models.tokens(), merge_siblings=True).graphs
    assert [stage.name for stage in graph.stages] == list(STAGES)
    before, after = graph.stage("gated"), graph.stage("merged")
    assert before is not None
    assert after is not None
    linears = [sum(node.target.endswith("linear") for node in stage.nodes) for stage in (before, after)]
    assert linears[0] - linears[1] == 1  # gate and up in one, down by itself


def test_sites_are_those_of_the_model(taken: Snapshot) -> None:
    model = models.with_lora(models.llama(2))
    (graph,) = taken.graphs
    names = list(oracle.adapted_layers(model))
    assert [site.name for site in graph.sites] == names
    assert graph.calls == (tuple(names),)
    captured = graph.stage("captured")
    assert captured is not None
    assert all({site.join, site.h, site.delta, *site.parameters} <= set(captured.by_name) for site in graph.sites)


def test_what_a_node_is(taken: Snapshot) -> None:
    (graph,) = taken.graphs
    backward = graph.stage("backward")
    assert backward is not None
    products = [node for node in backward.nodes if node.target == "aten.mm" and node.site == 1]
    product = products[0]
    (tensor,) = product.tensors
    assert (tensor.dtype, tensor.device) == ("float32", "cpu")
    assert product.module.startswith(graph.sites[1].name)
    assert product.module_type == "torch.nn.modules.linear.Linear"
    assert product.source.startswith("peft/tuners/lora/layer.py:")
    assert (product.flops or 0) > 0
    assert product.condition is not None


def test_gates_belong_to_their_site(taken: Snapshot) -> None:
    (graph,) = taken.graphs
    for name, target in (("gated", "skiplora.gate"), ("backward", "skiplora.gate_backward")):
        stage = graph.stage(name)
        assert stage is not None
        assert sorted(node.site or 0 for node in stage.nodes if node.target == target) == [0, 1, 2, 3]


def test_regions_hold_the_nodes_that_are_theirs(taken: Snapshot) -> None:
    (graph,) = taken.graphs
    stage = graph.stage("predicated")
    assert stage is not None
    assert stage.regions
    for region in stage.regions:
        assert [node.name for node in stage.nodes if node.region == region.number] == list(region.nodes)
        assert set(region.outputs) <= set(region.nodes)
        assert region.flops == sum(stage.by_name[name].flops or 0 for name in region.nodes)


def test_a_graph_in_which_nothing_is_gated_has_the_stages_of_plain_inductor() -> None:
    (graph,) = snapshot(nn.Linear(3, 3), torch.randn(2, 3)).graphs
    assert [stage.name for stage in graph.stages] == ["captured", "joint", "forward", "backward"]
    assert {miss.family for miss in graph.rejections} == {"no join"}


def test_layers_that_share_a_graph_have_a_call_each() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Linear() for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                torch._dynamo.graph_break()
                x = layer(x)
            return x

    graphs = snapshot(Broken(), batch()).graphs
    assert [call for graph in graphs for call in graph.calls] == [("layers.0",), ("layers.1",)]


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (Checkpointed(), {}),
        (peft(), {"scope": "layer"}),
        (peft(), {"decision": "previous"}),
        (peft(), {"disable_passes": ["predicate_backward"]}),
        (peft(), {"disable_passes": ["fold_gates", "predicate_backward"]}),
        (peft(), {"disable_passes": ["insert_gates"]}),
    ],
)
def test_other_options_and_models(model: nn.Module, options: dict[str, object]) -> None:
    (graph,) = snapshot(model, batch(), **options).graphs
    assert graph.sites
    assert graph.stage("backward") is not None
    assert (graph.stage("predicated") is not None) == ("disable_passes" not in options)


def test_nothing_to_differentiate_is_an_error() -> None:
    with pytest.raises(UsageError, match="no graph of Linear has a backward"):
        snapshot(nn.Linear(3, 3).requires_grad_(False), torch.randn(2, 3))


def test_what_is_no_model_is_an_error() -> None:
    with pytest.raises(UsageError, match="diff needs a model"):
        snapshot("llama")


def test_compiled_code_stays_compiled() -> None:
    model = Around(lambda layer, x: layer(x).sin())
    model.compile(backend="skiplora")
    model(batch()).sum().backward()
    before = counters["stats"]["unique_graphs"]
    snapshot(model, batch())
    after = counters["stats"]["unique_graphs"]
    model(batch()).sum().backward()
    assert counters["stats"]["unique_graphs"] == after > before


_SCRIPT = """
import sys
sys.path[:0] = [{tests!r}, {here!r}]
import models
from snapshots import snapshot
from skiplora_fx.graphdiff.files import snapshot_json
taken = snapshot(models.with_lora(models.llama(1), "all-linear").train(), kwargs=models.tokens(), scope="layer")
sys.stdout.write(snapshot_json(taken))
"""


def test_the_same_bytes_in_every_process() -> None:
    script = _SCRIPT.format(tests=str(TESTS), here=str(Path(__file__).parent))
    found = []
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr.decode()
        found.append(run.stdout)
    assert found[0]
    assert found[0] == found[1]


def test_the_same_text_a_second_time() -> None:
    model = peft()
    assert snapshot_json(snapshot(model, batch())) == snapshot_json(snapshot(model, batch()))
