"""The pipeline: what runs when, what can be left out, and who may look."""

from __future__ import annotations

import importlib
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from capture import QuickBackend, dynamo_call
from lora_modules import Around, Linear, batch
from torch import Tensor, fx

from skiplora_fx import InternalError, passes
from skiplora_fx._torch_compat import CustomGraphPass
from skiplora_fx.config import OPTIONAL_PASSES
from skiplora_fx.passes import PIPELINE, Pipeline

ALL_OFF = [
    names
    for count in range(len(OPTIONAL_PASSES))
    for names in itertools.combinations(OPTIONAL_PASSES[:-1], count)
    if "fold_gates" not in names or "predicate_backward" in names
]
"""Every ``disable_passes`` that is allowed, without the last pass, which changes no value."""


def model() -> Around:
    torch.manual_seed(0)
    return Around(lambda layer, x: layer(x).sin())


def gradients(run: Any, owner: Around, x: Tensor) -> list[Tensor]:
    owner.zero_grad()
    run(x).sum().backward()
    return [parameter.grad.clone() for parameter in (owner.layer.a.weight, owner.layer.b.weight)]


def test_each_stage_is_a_file_and_a_function_of_its_name() -> None:
    for stage in PIPELINE:
        module = importlib.import_module(f"skiplora_fx.passes.{stage.name}")
        assert callable(getattr(module, stage.name))
        assert getattr(passes, stage.name) is getattr(module, stage.name)
        assert Path(str(module.__file__)).stem == stage.name


def test_passes_run_in_the_order_of_the_pipeline() -> None:
    backend, owner = QuickBackend(merges=True), model()
    gradients(torch.compile(owner, backend=backend), owner, batch())
    order = [stage.name for stage in PIPELINE]
    seen = [name for name in backend.passes if name in order]
    # Analyses show no graph, and what the forward saves is given back where decisions are held, under Inductor alone.
    assert seen == [name for name in order if name not in ("release_saved", "liveness", "find_regions")]


@pytest.mark.parametrize("disabled", ALL_OFF, ids=lambda names: " ".join(names) or "none")
@pytest.mark.parametrize("open", [True, False])
def test_gradients_are_exact_whatever_is_left_out(disabled: tuple[str, ...], open: bool) -> None:
    owner, x = model(), batch()
    found = gradients(_through_inductor(owner, disabled, open), owner, x)
    wanted = gradients(owner._forward.__get__(owner.layer), owner, x)
    shut = not open and "insert_gates" not in disabled
    torch.testing.assert_close(found, [grad * 0 for grad in wanted] if shut else wanted)


def _through_inductor(owner: Around, disabled: tuple[str, ...], open: bool) -> Any:
    options = {"threshold": 0.0 if open else math.inf, "warmup_steps": 0, "probe_every": 0, "disable_passes": disabled}
    return torch.compile(owner, backend="skiplora", options=options)


class Watch(CustomGraphPass):
    """A user's own pass: notes that it ran."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, graph: fx.Graph) -> None:
        self.runs += 1

    def uuid(self) -> Any:
        return None


@pytest.mark.parametrize("hook", ["joint_custom_pre_pass", "post_grad_custom_pre_pass"])
@pytest.mark.parametrize("several", [False, True], ids=["alone", "in a list"])
def test_passes_of_the_user_in_the_same_places_still_run(hook: str, several: bool) -> None:
    owner, theirs = model(), Watch()
    options = {"threshold": math.inf, "warmup_steps": 0, hook: [theirs] if several else theirs}
    found = gradients(torch.compile(owner, backend="skiplora", options=options), owner, batch())
    assert theirs.runs
    assert not any(bool(gradient.any()) for gradient in found)


def test_a_gate_lost_between_two_passes_stops_the_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    call = dynamo_call(Linear(), batch())
    pipeline = Pipeline("adapter")
    pipeline.rewrite_dynamo(call.gm)
    assert pipeline.gated is not None
    monkeypatch.setattr(pipeline, "gated", replace(pipeline.gated, gates=(*pipeline.gated.gates, (1,))))
    graph = fx.Graph()
    ratios, thresholds = graph.placeholder("primals_1"), graph.placeholder("primals_2")
    graph.output((graph.call_function(torch.ops.skiplora.decide.default, (ratios, thresholds)),))
    with pytest.raises(InternalError, match="gates inserted: 2, gates in the joint graph: 0"):
        pipeline.rewrite_joint(graph)
