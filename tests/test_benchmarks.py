"""The benchmarks of time, memory and compiles run as they are, on a very small model."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compile_time import environment
from speed_parts.arguments import PRESETS, add_shape, parse
from speed_parts.masks import MASKS, shut_sites
from speed_parts.models import build

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SMALL = ["--layers", "1", "--dim", "64", "--batch", "2", "--length", "8", "--vocab", "32"]


def rows(folder: Path, script: str, *options: str) -> list[dict[str, Any]]:
    report = folder / "report.json"
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *SMALL, "--json", str(report), *options]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return json.loads(report.read_text())["rows"]


@pytest.mark.parametrize(
    ("mask", "against"),
    # Where nothing is left to train there is no oracle.
    [("lower half", "oracle"), pytest.param("everything", "inductor", marks=pytest.mark.slow)],
)
def test_speed_has_a_row_for_each_arm(mask: str, against: str, tmp_path: Path) -> None:
    options = ("--rounds", "2", "--warmup", "1", "--masks", mask, "--arms", "skiplora", "oracle", "eager")
    found = rows(tmp_path, "speed", *options)
    wanted = {(mask, arm, against) for arm in ("skiplora", against, "eager")}
    assert {(row["skipped"], row["runner"], row["against"]) for row in found} == wanted
    assert all(len(row["samples"]) == 2 and row["backward_ratio"] > 0 for row in found)


@pytest.mark.slow
def test_memory_has_a_row_for_each_decision_under_each_mask(tmp_path: Path) -> None:
    found = rows(tmp_path, "memory", "--decisions", "current")
    told = {(row["skipped"], row["runner"]) for row in found}
    assert told == {
        ("nothing", "inductor"),
        ("nothing", "skiplora, current"),
        ("lower half", "oracle"),
        ("lower half", "skiplora, current"),
        ("everything", "inductor"),  # where nothing is left to train there is no oracle
        ("everything", "skiplora, current"),
    }


@pytest.mark.slow
def test_compile_time_has_a_row_for_each_arm(tmp_path: Path) -> None:
    found = rows(tmp_path, "compile_time", "--depths", "1", "--arms", "skiplora", "skiplora warm")
    assert [row["runner"] for row in found] == ["inductor", "skiplora", "skiplora warm"]
    assert all(row["seconds"]["wall"] > 0 and row["seconds"]["cpu"] > 0 for row in found)


def test_compile_time_starts_without_workers_whose_seconds_are_not_known(tmp_path: Path) -> None:
    print_threads = "from torch._inductor.config import compile_threads; print(compile_threads)"
    finished = subprocess.run(
        [sys.executable, "-c", print_threads], env=environment(str(tmp_path)), capture_output=True
    )
    assert finished.stdout.split() == [b"1"]


@pytest.fixture
def stand_in_for_python(tmp_path: Path) -> Path:
    """A program in Python's place, which crashes in one of the runs and writes the file of any other."""
    program = tmp_path / "python"
    program.write_text(
        """#!/bin/sh
for given in "$@"; do
    [ "${last:-}" = --json ] && file=$given
    last=$given
done
case $file in *memory-all-1x2048-layer.json) exit 137 ;; esac
echo "$last" > "$file"
"""
    )
    program.chmod(0o755)
    return program


def test_the_series_on_a_gpu_goes_on_behind_a_run_that_fails(stand_in_for_python: Path, tmp_path: Path) -> None:
    results = tmp_path / "results of a GPU"
    command = ["sh", str(BENCHMARKS / "gpu.sh"), str(stand_in_for_python), str(results), "--layers", "2"]
    for runs in (38, 1):  # the second time only what has failed is left
        finished = subprocess.run(command, capture_output=True, text=True)
        assert finished.returncode == 1
        assert finished.stdout.count("==") == runs
        assert finished.stderr.splitlines()[-1] == "failed: memory-all-1x2048-layer"
        assert len(list(results.iterdir())) == 37
    assert {file.read_text() for file in results.iterdir()} == {"2\n"}
    (results / "compile-qv.json").rename(results / "memory-all-1x2048-layer.json")
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_a_preset_is_weaker_than_what_is_given() -> None:
    parser = argparse.ArgumentParser()
    add_shape(parser)
    args = parse(parser, ["--preset", "llama-2-7b", "--layers", "2"])
    assert (args.layers, args.dim) == (2, PRESETS["llama-2-7b"]["dim"])


def test_checkpointing_leaves_the_embedding_without_a_gradient() -> None:
    parser = argparse.ArgumentParser()
    add_shape(parser)
    model, batch = build(parse(parser, [*SMALL, "--checkpointing"]))
    inside = model(**batch, output_hidden_states=True).hidden_states
    assert [hidden.requires_grad for hidden in inside] == [False, True]
    assert model.get_base_model().is_gradient_checkpointing


def test_masks_skip_what_their_names_say() -> None:
    names = [str(number) for number in range(20)]
    counts = {mask: len(shut_sites(mask, names, seed=0)) for mask in MASKS}
    assert list(counts.values()) == [0, 5, 10, 15, 20, 12]
    assert shut_sites("lower half", names, seed=0) == set(names[:10])
