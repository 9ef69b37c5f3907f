"""What Inductor keeps of a backward in its caches is found again only by the code that made it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from lora_modules import batch
from partitioner import Counting
from torch._inductor.utils import fresh_cache
from two_layers import compiled, skipped, step

import skiplora_fx
from skiplora_fx import passes
from skiplora_fx.inductor_hooks import _SOURCES, _Hook

PACKAGE = (str(Path(skiplora_fx.__file__).parent), str(Path(passes.__file__).parent))
ONLOOKERS = {"failures.py", "watching.py"}
"""They change no graph."""


class RunInHooks:
    """A profiler that collects which files of the package run while a hook does."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self._hooks = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if frame.f_code is _Hook.__call__.__code__:
            self._hooks += {"call": 1, "return": -1}.get(event, 0)
        if self._hooks and frame.f_code.co_filename.startswith(PACKAGE):
            self.files.add(frame.f_code.co_filename)


def test_what_changes_a_graph_is_in_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # what comes from a cache runs no hook
    model, seen = compiled(), RunInHooks()
    sys.setprofile(seen)
    try:
        step(model)
    finally:
        sys.setprofile(None)
    changing = {file for file in seen.files if Path(file).name not in ONLOOKERS}
    assert {"fold_gates.py", "predicate_backward.py", "inductor_hooks.py"} <= {Path(file).name for file in changing}
    assert changing <= set(_SOURCES)


def test_costs_are_counted_anew_and_kernels_are_found_again(tmp_path: Path) -> None:
    """Costs come from the passes, which do not run for a graph from a cache; a kernel is the same in any case."""
    kernels = []
    with fresh_cache(dir=str(tmp_path), delete=False):
        for _ in range(2):
            torch.compiler.reset()
            model = compiled(policy="budget", policy_kwargs={"target": 0.5, "every": 1})
            for _ in range(3):
                step(model)
            assert any(skipped(model)), "without costs a budget shuts nothing"
            kernels.append(sorted(tmp_path.rglob("*.so")))
    assert kernels[0] == kernels[1] != []


def test_a_partitioner_without_a_key_finds_nothing_in_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Inductor alone takes the graph that another has cut: it does not ask the partitioner whether it may."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for _ in range(2):
        torch.compiler.reset()
        theirs = Counting()
        step(compiled(custom_partitioner_fn=theirs, decision="previous"))
        assert theirs.cut == 1


def test_a_graph_can_be_kept_though_its_backward_was_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hooks do not run then, and torch refuses ``retain_graph`` where it believes that inputs are overwritten."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with torch._functorch.config.patch(enable_autograd_cache=False):  # which would find the whole, metadata and all
        for _ in range(2):
            torch.compiler.reset()
            hits = torch._dynamo.utils.counters["inductor"]["fxgraph_cache_hit"]
            model, x = compiled(threshold=0.0), batch()
            model(x).sum().backward()
            trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
            once = [parameter.grad.clone() for parameter in trained]
            model.zero_grad()
            loss = model(x).sum()
            loss.backward(retain_graph=True)
            loss.backward()
    assert torch._dynamo.utils.counters["inductor"]["fxgraph_cache_hit"] >= hits + 2
    for parameter, gradient in zip(trained, once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def test_a_backward_that_is_not_predicated_overwrites_nothing_either() -> None:
    """Torch does not refuse ``retain_graph`` for it."""
    seen: list[list[int]] = []

    def look(graph: torch.fx.Graph) -> None:
        seen.append(torch._guards.TracingContext.get().fw_metadata.bw_donated_idxs)

    step(compiled(threshold=0.0, disable_passes=["predicate_backward"], post_grad_custom_post_pass=look))
    assert seen == [[], []]  # of the forward, and of the backward
