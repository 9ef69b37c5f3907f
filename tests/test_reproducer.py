"""The script of a report: run in another process, it fails as the graph did, whatever the graph holds."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lora_modules import RANK, WIDE, Around, batch
from torch import Tensor, fx, nn

from skiplora_fx import SkipLoraConfig
from skiplora_fx.reproducer import kinds_of, script_of

TESTS = Path(__file__).parent
RERUN = """
import runpy, sys
sys.path.insert(0, {tests!r})
import torch
from skiplora_fx import passes
def failing(gm, sites, *args, **kwargs):
    values = [node.meta.get("example_value") for node in gm.graph.find_nodes(op="placeholder")]
    sizes = [size for value in values for size in getattr(value, "shape", ())]
    vary = any(isinstance(size, torch.SymInt) for size in sizes)
    raise ZeroDivisionError(f"nothing to share among {{len(sites)}}, sizes {{'vary' if vary else 'are fixed'}}")
insert, passes.insert_gates = passes.insert_gates, failing
try:
    runpy.run_path(sys.argv[1], run_name="__main__")
except Exception as error:
    print(error)
passes.insert_gates = insert
torch._dynamo.reset()
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def rerun(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script where a pass fails, print the error, and run it where none does."""
    (folder / "repro.py").write_text(script)
    (folder / "rerun.py").write_text(RERUN.format(tests=str(TESTS)))
    command = [sys.executable, str(folder / "rerun.py"), str(folder / "repro.py")]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)


def check(script: str, folder: Path, told: str = "nothing to share among 1, sizes are fixed") -> None:
    """Fail unless the script fails as the pass does, and runs to its end if none fails."""
    done = rerun(script, folder)
    assert done.returncode == 0, done.stderr
    assert told in done.stdout


def captured(model: nn.Module, *inputs: Any, dynamic: bool | None = None) -> tuple[fx.GraphModule, list[Any], str]:
    """Return the one graph of a model with the kinds of its inputs, and its script."""
    found: list[tuple[fx.GraphModule, list[Any], str]] = []

    def backend(gm: fx.GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
        found.append((gm, kinds_of(given), script_of(gm, kinds_of(given), SkipLoraConfig())))
        return gm.forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend, dynamic=dynamic)(*inputs)
    (only,) = found
    return only


def odd(layer: Any, x: Tensor) -> Any:
    y = layer(x).clamp(max=math.inf).to(torch.device("cpu"), torch.float32, memory_format=torch.preserve_format)
    return y + torch.full((1,), math.nan, device=y.device).nan_to_num(), doubled(y)


@torch.compiler.allow_in_graph
def doubled(x: Tensor) -> Tensor:
    return x * 2


def test_constants_and_functions_that_its_code_names(tmp_path: Path) -> None:
    _, _, script = captured(Around(odd), batch())
    for line in ("device = torch.device", 'inf = float("inf")', 'nan = float("nan")', "import test_reproducer"):
        assert line in script
    check(script, tmp_path)


def test_sizes_that_vary(tmp_path: Path) -> None:
    def forward(layer: Any, x: Tensor) -> Tensor:
        return layer(x) * x.shape[0]

    _, inputs, script = captured(Around(forward), batch(5), dynamic=True)
    assert any(isinstance(value, torch.SymInt) for value in inputs)
    assert "    yield 5" in script
    check(script, tmp_path, "nothing to share among 1, sizes vary")


def graph_by_hand() -> tuple[fx.GraphModule, list[Any]]:
    """Return an adapted linear that reads, beside activation and weights, what Dynamo's graphs rarely hold."""
    graph = fx.Graph()
    names = ("x", "base", "a", "b", "nothing", "eighth", "spread", "many")
    x, base, a, b, nothing, eighth, spread, many = map(graph.placeholder, names)
    functional = nn.functional
    h = graph.call_function(functional.linear, (x, base, nothing))
    low = graph.call_function(functional.linear, (x, a))
    delta = graph.call_function(functional.linear, (low, b))
    y = graph.call_function(torch.add, (h, delta))
    for other in (graph.call_method("to", (eighth, torch.float32)), spread, graph.get_attr("shift"), many):
        y = graph.call_function(torch.add, (y, other))
    graph.output((y,))
    root = nn.Module()
    root.register_buffer("shift", torch.ones(WIDE))
    frozen = nn.Parameter(torch.randn(WIDE, WIDE), requires_grad=False)
    inputs = [
        batch(),
        frozen,
        nn.Parameter(torch.randn(RANK, WIDE)),
        nn.Parameter(torch.randn(WIDE, RANK)),
        None,
        torch.zeros(WIDE).to(torch.float8_e4m3fn),
        torch.randn(1, WIDE).expand(3, WIDE),
        torch.arange(WIDE),
    ]
    return fx.GraphModule(root, graph), inputs


def test_inputs_of_all_kinds(tmp_path: Path) -> None:
    gm, inputs = graph_by_hand()
    script = script_of(gm, kinds_of(inputs), SkipLoraConfig())
    assert "    yield None" in script
    check(script, tmp_path)


def test_what_no_module_holds_is_named(tmp_path: Path) -> None:
    def local(x: Tensor) -> Tensor:
        return x

    gm = fx.GraphModule(nn.Module(), fx.Graph())
    x = gm.graph.placeholder("x")
    gm.graph.output((gm.graph.call_function(local, (x,)),))
    gm.recompile()
    done = rerun(script_of(gm, kinds_of([batch().requires_grad_()]), SkipLoraConfig()), tmp_path)
    assert done.returncode == 1
    assert "local has to be given: it was <function" in done.stderr


def test_options_of_inductor_and_of_the_passes() -> None:
    gm, inputs = graph_by_hand()
    given = {"scope": "layer", "policy": "freeze", "max_autotune": False, "joint_custom_post_pass": print}
    script = script_of(gm, kinds_of(inputs), SkipLoraConfig.from_options(given))
    for part in ("'scope': 'layer'", "'policy': 'freeze'", "'max_autotune': False"):
        assert part in script
    assert "# Left out, as no text makes it again: joint_custom_post_pass=<built-in function print>" in script
