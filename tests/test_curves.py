"""The curves of cost against size: which points are made, how an exponent is fitted, what the table says."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from curve_parts.growth import exponent, settled
from curve_parts.points import AXES, TARGETS_OF, Size, missing, sizes
from curve_parts.report import curves, report
from curves import Shared
from quality_parts.store import SettingsError, Store

CURVES = Path(__file__).parent.parent / "benchmarks" / "curves.py"
SHARED = Shared(2, 8, 256, 64, "adapter", "current", "cpu", "float32", False)


def point(layers: int) -> dict[str, Any]:
    """Return what a point of a model might be whose every cost is linear in its layers."""
    taken = [3e-3 * layers, 1e-3 * layers, 2e-3 * layers]
    arm = {
        "first step": {"wall": 2.0 * layers, "cpu": 1.0 * layers},
        "peak": 2**20 * layers,
        "steps": {"wall": taken, "cpu": taken},
    }
    return {
        "arms": {"inductor": arm, "skiplora": arm, "skiplora, lower half shut": arm},
        "regions": 7 * layers,
        "branches": 20,
        "backward nodes": 70 * layers,
    }


def test_a_point_that_is_there_or_on_two_axes_is_not_made_again() -> None:
    base = Size(layers=2)
    axes = {"layers": (2, 4), "dim": (64, 128)}
    assert list(missing(base, axes, set())) == [base, Size(layers=4), Size(dim=128)]
    assert list(missing(base, axes, {base.name, Size(dim=128).name})) == [Size(layers=4)]


def test_every_size_has_a_name_of_its_own_and_targets() -> None:
    along = {size for axis, values in AXES.items() for size in sizes(Size(), axis, values)}
    assert len({size.name for size in along}) == len(along)
    assert {size.adapters for size in along} <= set(TARGETS_OF)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0])
def test_the_exponent_is_the_power(power: float) -> None:
    assert exponent({size: 3 * size**power for size in (4, 8, 16, 32)}) == pytest.approx(power)


def test_no_exponent_is_made_up() -> None:
    assert math.isnan(exponent({4: 1.0}))
    assert math.isnan(exponent({4: 0.0, 8: 1.0}))


def test_few_layers_are_left_out_of_the_fit_of_layers_alone() -> None:
    curve = {2: 1.0, 4: 2.0, 8: 4.0}
    assert settled("layers", curve) == {4: 2.0, 8: 4.0}
    assert settled("dim", curve) == curve


def test_the_report_is_of_the_points_that_are_there(tmp_path: Path) -> None:
    store = Store(tmp_path, SHARED)
    for layers in (4, 8):
        store.write(Size(layers=layers).name, point(layers))
    found = {(curve.measure.name, curve.arm): curve for curve in curves(store, Size(), "layers", (4, 8, 16))}
    steps = found["step, CPU ms", "skiplora"]
    assert steps.values == pytest.approx({4: 8.0, 8: 16.0})
    assert steps.exponent == pytest.approx(1)
    assert found["branches compiled", "skiplora"].exponent == pytest.approx(0)
    table = report(store, Size(), {"layers": (4, 8, 16), "dim": (64, 128)})
    assert [column in table for column in ("layers 8", "layers 16", "dim")] == [True, False, False]
    assert (tmp_path / "table.md").read_text() == table + "\n"
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_points_of_another_setting_are_refused(tmp_path: Path) -> None:
    Store(tmp_path, SHARED)
    with pytest.raises(SettingsError, match="batch"):
        Store(tmp_path, Shared(4, 8, 256, 64, "adapter", "current", "cpu", "float32", False))


@pytest.mark.slow
def test_a_point_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    options = [
        "--axes",
        "layers",
        "--values",
        "1",
        "--length",
        "8",
        "--vocab",
        "32",
        "--rounds",
        "2",
        "--oracle-layers",
        "1",
    ]
    command = [sys.executable, str(CURVES), *options, "--results", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    found = json.loads((tmp_path / f"{Size(layers=1, length=8).name}.json").read_text())
    assert found["sites"] == 2
    assert 0 < found["branches"] <= 2 * found["regions"]
    assert set(found["arms"]) == {"inductor", "skiplora", "skiplora, lower half shut", "oracle"}
    assert all(len(arm["steps"]["cpu"]) == 2 and arm["peak"] > 0 for arm in found["arms"].values())
