"""The ways in: the backend's name, the wrapper of torch.compile, the logs."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from lora_modules import Around, Linear, batch

import skiplora_fx

ALWAYS_SHUT = {"threshold": math.inf, "warmup_steps": 0, "probe_every": 0}


def run(script: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script that may import the tests' helpers in a process of its own."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, **variables}
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, env=env)


def test_torch_finds_the_backend_without_an_import() -> None:
    listing = "import torch; print('skiplora' in torch.compiler.list_backends())"
    done = subprocess.run([sys.executable, "-c", listing], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_the_wrapper_of_torch_compile() -> None:
    model = Around(lambda layer, x: layer(x))
    wrapper = torch.compile(model, backend="skiplora", options=ALWAYS_SHUT)
    wrapper(batch()).sum().backward()
    assert [site.name for site in skiplora_fx.sites(wrapper)] == ["layer"]
    assert skiplora_fx.sites(wrapper) == skiplora_fx.sites(model)
    assert not model.layer.a.weight.grad.any()
    skiplora_fx.set_threshold(wrapper, 0.0)
    wrapper(batch()).sum().backward()
    assert model.layer.a.weight.grad.any()


def test_a_function_that_calls_a_model() -> None:
    layer = Linear()
    function = torch.compile(lambda x: layer(x).sum(), backend="skiplora", options=ALWAYS_SHUT)
    function(batch()).backward()
    assert not layer.a.weight.grad.any()
    assert len(skiplora_fx.sites(layer)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"treshold": 0.1}, "unknown option 'treshold'.*Did you mean 'threshold'?"),
        ({"threshold": {"*.nowhere": 0.1}}, r"no site matches the glob '\*.nowhere'. The sites are:\n  layer"),
    ],
)
def test_what_is_wrong_is_named_at_the_first_forward(options: dict[str, object], message: str) -> None:
    model = Around(lambda layer, x: layer(x))
    model.compile(backend="skiplora", options=options)
    with pytest.raises(Exception, match=message) as raised:
        model(batch())
    causes = (raised.value, raised.value.__cause__, getattr(raised.value, "inner_exception", None))
    assert any(isinstance(cause, skiplora_fx.ConfigError) for cause in causes)


def test_the_logs_show_sites_rejections_and_regions(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            from lora_modules import Around, batch
            model = Around(lambda layer, x: layer.base(layer(x)) + layer(layer(x)))
            model.layer.base.bias.requires_grad_()
            model.compile(backend="skiplora")
            model(batch()).sum().backward()
        """)
    )
    # What Inductor finds in its cache runs no pass.
    done = run(script, TORCH_LOGS="+skiplora_fx", TORCHINDUCTOR_FX_GRAPH_CACHE="0")
    for line in (
        "find_lora: 3 sites",
        "site 0: layer r=4 at add",
        "rejected: layer.base.bias: it is a single weight",
        "fold_gates: 3 gates, 3 with a backward",
        "runs if s2",
        "runs if s0 and any of s1, s2",
        "add_13: else add_9 if any of s1, s2, mm_15 if s0, zeros",
    ):
        assert line in done.stderr, done.stderr


@pytest.mark.parametrize("decision", [pytest.param("current", marks=pytest.mark.slow), "previous"])
def test_a_second_process_finds_the_compiled_graphs_in_the_cache(decision: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
            import copy, json, math, torch, skiplora_fx
            from torch._dynamo.utils import counters
            from lora_modules import Around, batch
            torch.manual_seed(0)
            model, x = Around(lambda layer, x: layer(layer(x).relu())), batch()
            eager = copy.deepcopy(model)
            eager(x).sum().backward()
            options = {{"threshold": math.inf, "decision": "{decision}", "warmup_steps": 0, "probe_every": 0}}
            model.compile(backend="skiplora", options=options)
            steps = []
            for threshold in (math.inf, math.inf, 0.0, 0.0):
                model.zero_grad()
                if steps:
                    skiplora_fx.set_threshold(model, threshold)
                model(x).sum().backward()
                sites = skiplora_fx.sites(model)
                open = not any(site.skipped for site in sites)
                for name, part in model.layer.named_parameters():
                    if part.requires_grad:
                        wanted = eager.layer.get_parameter(name).grad
                        torch.testing.assert_close(part.grad, wanted if open else torch.zeros_like(wanted))
                gradients = [part.grad.tolist() for part in model.parameters() if part.requires_grad]
                steps.append([open, str(sites), skiplora_fx.report(model), gradients])
            print(json.dumps([counters["aot_autograd"]["autograd_cache_hit"], steps]))
        """)
    )
    found = [json.loads(run(script, TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache")).stdout) for _ in range(2)]
    (no_hit, first), (hit, second) = found
    assert (no_hit, hit) == (0, 1)
    assert {opened for opened, *_ in first} == {True, False}
    assert second == first
