"""A pass that fails: the graph trains without it, a warning says why, and a script shows it again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_modules import Checkpointed, Linear, batch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from two_layers import Two, compiled

import skiplora_fx
from skiplora_fx import FallbackWarning, passes


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # nothing that an earlier compile has left
    torch._dynamo.reset()


def failing(*args: Any, **kwargs: Any) -> Any:
    raise ZeroDivisionError("nothing to share")


def gradients(model: nn.Module, x: Tensor) -> list[Tensor | None]:
    model.zero_grad()
    model(x).square().sum().backward()
    return [parameter.grad for parameter in model.parameters()]


FORWARD = ["find_lora", "insert_gates", "merge_siblings", "fold_gates"]
BACKWARD = ["check_consumed", "drop_rng_states", "liveness", "find_regions", "predicate_backward"]
FINISH = ["share_branches", "release_operands"]
FAILING = [*FORWARD, *BACKWARD, *FINISH]


def failing_at_its_end(name: str) -> Callable[..., Any]:
    """Return a pass that does all its work and then fails."""
    done = getattr(passes, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        done(*args, **kwargs)
        return failing()

    return run


def is_trained(linear: nn.Module) -> list[bool]:
    return [bool(parameter.grad.any()) for parameter in linear.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("sabotage", [lambda name: failing, failing_at_its_end], ids=["at once", "at its end"])
@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("build", [Two, Checkpointed])
def test_a_graph_on_which_a_pass_fails_trains_without_it(
    build: Callable[[], nn.Module],
    name: str,
    sabotage: Callable[[str], Callable[..., Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = build()
    x = batch()
    wanted = gradients(model, x)
    monkeypatch.setattr(passes, name, sabotage(name))
    run = compiled(model, threshold=0.0, merge_siblings=True)
    with pytest.warns(FallbackWarning, match=r"failed on a graph \(ZeroDivisionError: nothing to share\)"):
        found = gradients(run, x)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("sabotage", [lambda name: failing, failing_at_its_end], ids=["at once", "at its end"])
@pytest.mark.parametrize("name", BACKWARD)
def test_gates_are_exact_where_nothing_can_be_left_out(
    name: str, sabotage: Callable[[str], Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, name, sabotage(name))
    model = compiled(policy="freeze")
    with pytest.warns(FallbackWarning, match=f"{name} failed .* its adapters train, and nothing is left out"):
        gradients(model, batch())
    assert not any(is_trained(model.lower))
    assert all(is_trained(model.upper))
    assert [site.skipped for site in skiplora_fx.sites(model)] == [True, False]


@pytest.mark.parametrize(
    ("name", "without"), zip(FINISH, ["which takes longer to compile", "holds more memory than it needs"], strict=True)
)
def test_what_is_left_out_is_left_out_without_what_comes_last(
    name: str, without: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, name, failing)
    model = compiled(policy="freeze")
    with pytest.warns(FallbackWarning, match=f"{name} failed .* {without}"):
        gradients(model, batch())
    assert not any(is_trained(model.lower))
    assert all(is_trained(model.upper))


@pytest.mark.parametrize("sabotage", [lambda name: failing, failing_at_its_end], ids=["at once", "at its end"])
@pytest.mark.parametrize("name", ["release_saved", "settle_released"])
def test_a_forward_that_cannot_give_memory_back_keeps_it(
    name: str, sabotage: Callable[[str], Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, name, sabotage(name))
    model = compiled(policy="freeze", decision="previous")
    with pytest.warns(FallbackWarning, match=r"release_saved failed .* is held until then"):
        gradients(model, batch())
    assert not any(is_trained(model.lower))
    assert all(is_trained(model.upper))
    assert [site.skipped for site in skiplora_fx.sites(model)] == [True, False]


@pytest.mark.parametrize("name", ["find_layers", "outline_layers"])
def test_layers_that_cannot_be_outlined_are_told_of_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for the forward and once more for the backward."""
    monkeypatch.setattr(passes, name, failing)
    model = compiled(policy="freeze", outline_layers=True)
    with pytest.warns(FallbackWarning) as caught:
        gradients(model, batch())
    (told,) = (str(warning.message) for warning in caught if warning.category is FallbackWarning)
    assert "outline_layers failed" in told
    assert "each layer is compiled for itself, which takes longer" in told
    assert not any(is_trained(model.lower))
    assert all(is_trained(model.upper))


@pytest.mark.parametrize("name", FAILING)
def test_strict_raises(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, name, failing)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        with pytest.raises(Exception, match="nothing to share"):
            gradients(compiled(strict=True, merge_siblings=True), batch())


def test_options_that_are_wrong_are_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendCompilerFailed, match="ConfigError: no site matches the glob"):
        gradients(compiled(threshold={"nowhere": 0.1}), batch())
    with pytest.raises(BackendCompilerFailed, match="ConfigError: strict must be True or False, got 'yes'"):
        compiled(strict="yes")(batch())


def test_what_fails_in_inductor_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="nothing to share"):
        gradients(compiled(joint_custom_post_pass=failing), batch())


@pytest.mark.parametrize("build", [Linear, Checkpointed])
def test_the_report_shows_it_again(
    build: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(passes, "insert_gates", failing)
    with pytest.warns(FallbackWarning) as caught:
        gradients(compiled(build(), max_autotune=False), batch())
    (folder,) = (tmp_path / "skiplora_failures").iterdir()
    assert str(folder) in str(caught[0].message)
    assert sorted(path.name for path in folder.iterdir()) == ["about.json", "error.txt", "repro.py"]
    assert "nothing to share" in (folder / "error.txt").read_text()
    about = json.loads((folder / "about.json").read_text())
    assert (about["skiplora_fx"], about["torch"]) == (skiplora_fx.__version__, torch.__version__)
    assert about["inductor"] == {"max_autotune": "False"}
    assert about["dynamic"] is False
    sabotage = tmp_path / "sabotage.py"
    sabotage.write_text(
        "import runpy, sys\nfrom skiplora_fx import passes\n"
        "calls = []\ninsert = passes.insert_gates\n"
        "def counted(*args):\n    calls.append(len(args[1]))\n    return insert(*args)\n"
        "passes.insert_gates = counted\n"
        "runpy.run_path(sys.argv[1], run_name='__main__')\nprint(calls)\n"
    )
    done = subprocess.run(
        [sys.executable, str(sabotage), str(folder / "repro.py")], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    sites = 1 if build is Linear else 2
    assert done.stdout.strip() == f"[{sites}]"


def test_a_report_leaves_sizes_that_vary_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(passes, "insert_gates", failing)
    model = Linear()
    model.compile(backend="skiplora", dynamic=True)
    with pytest.warns(FallbackWarning):
        model(batch(3)).sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)  # of another compile
        for rows in (5, 7):
            model(batch(rows)).sum().backward()
    (folder,) = (tmp_path / "skiplora_failures").iterdir()
    assert json.loads((folder / "about.json").read_text())["dynamic"] is True


def test_the_options_of_a_mode_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(passes, "find_lora", failing)
    with pytest.warns(FallbackWarning):
        gradients(torch.compile(Linear(), backend="skiplora", mode="max-autotune-no-cudagraphs"), batch())
    (folder,) = (tmp_path / "skiplora_failures").iterdir()
    assert json.loads((folder / "about.json").read_text())["inductor"]["max_autotune"] == "True"


def test_a_report_that_cannot_be_saved_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "skiplora_failures").write_text("in the way")
    monkeypatch.setattr(passes, "find_lora", failing)
    with pytest.warns(FallbackWarning, match="A report could not be saved"):
        gradients(compiled(), batch())
