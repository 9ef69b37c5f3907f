"""Bad input to ``apply``: each error names what was given and what to do."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lora_modules import WIDE, Linear, batch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import skiplora_fx
from skiplora_fx import ConfigError, NoLoRAWarning, UsageError


class Undecided(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


def traced() -> fx.GraphModule:
    return fx.symbolic_trace(Linear())


def without(name: str) -> fx.GraphModule:
    graph_module = traced()
    delattr(graph_module, name)
    return graph_module


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        pytest.param(
            lambda: skiplora_fx.apply("model"),
            UsageError,
            r"apply needs a torch\.fx\.GraphModule, a torch\.export\.ExportedProgram or a module, got str",
            id="no graph",
        ),
        pytest.param(
            lambda: skiplora_fx.apply(torch.compile(Linear()), batch()),
            UsageError,
            'what torch.compile returned.*Give it the module inside.*backend="skiplora"',
            id="compiled",
        ),
        pytest.param(
            lambda: skiplora_fx.apply(traced(), batch(), merge_siblings=True),
            ConfigError,
            "merge_siblings=True is for graphs that are compiled",
            id="merge_siblings",
        ),
        pytest.param(
            lambda: skiplora_fx.apply(traced()),
            UsageError,
            r"does not know the shapes.*Call skiplora_fx\.apply\(graph_module, \*example_inputs\)",
            id="no shapes",
        ),
        pytest.param(
            lambda: skiplora_fx.apply(Linear()),
            UsageError,
            r"a module \(Linear\) and no example inputs.*Call skiplora_fx\.apply\(module, \*example_inputs\)",
            id="module without inputs",
        ),
        pytest.param(
            lambda: skiplora_fx.apply(traced(), torch.randn(3, WIDE + 1)),
            UsageError,
            r"does not run on these example inputs \(\[3, 17\]\): .*17.*Give what the graph is called with",
            id="wrong shape",
        ),
        pytest.param(
            lambda: skiplora_fx.apply(traced(), torch.ones(3, WIDE, dtype=torch.int64)),
            UsageError,
            r"does not run on these example inputs .*same dtype only, and was given torch\.int64 and torch\.float32",
            id="wrong dtype",
        ),
        pytest.param(
            lambda: skiplora_fx.apply(without("base"), batch()),
            UsageError,
            r"node base \(call_module\) names 'base', which the module does not have",
            id="missing module",
        ),
        pytest.param(
            lambda: pickle.dumps(skiplora_fx.apply(torch.export.export(Linear(), (batch(),)))),
            UsageError,
            r"exported program cannot be pickled, as _guards_fn.*Save the state_dict",
            id="pickled export",
        ),
        pytest.param(
            lambda: skiplora_fx.apply(traced(), batch(), batch()),
            UsageError,
            r"takes 1 inputs \(x\), but there are 2 example inputs \(\[3, 16\], \[3, 16\]\)",
            id="too many inputs",
        ),
        pytest.param(
            lambda: skiplora_fx.apply(make_fx(lambda x, y: x + y)(batch(), batch()), batch()),
            UsageError,
            r"takes 2 inputs \(x_1, y_1\), but there are 1 example inputs \(\[3, 16\]\)",
            id="too few inputs",
        ),
        pytest.param(
            lambda: skiplora_fx.apply(Undecided(), batch()),
            UsageError,
            "torch.export cannot trace Undecided with these inputs.*trace it another way",
            id="control flow",
        ),
        pytest.param(
            lambda: skiplora_fx.apply(traced(), batch(), treshold=0.1), ConfigError, "treshold", id="misspelt option"
        ),
        pytest.param(
            lambda: skiplora_fx.apply(traced(), batch(), max_autotune=True),
            ConfigError,
            "'max_autotune' would go to Inductor, which apply does not run",
            id="option of Inductor",
        ),
        pytest.param(
            lambda: skiplora_fx.apply(traced(), batch(), threshold={"nothing.*": 0.1}),
            ConfigError,
            r"nothing\.\*",
            id="glob without a site",
        ),
    ],
)
def test_errors(call: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize(
    ("build", "text"),
    [
        pytest.param(lambda: nn.Linear(WIDE, WIDE), "weight: trains, but its output is not added", id="no adapter"),
        pytest.param(lambda: Linear().requires_grad_(False), "Nothing trains here", id="all frozen"),
    ],
)
def test_nothing_to_gate_is_a_warning(build: Callable[[], nn.Module], text: str) -> None:
    model = build()
    with pytest.warns(NoLoRAWarning, match=text):
        gated = skiplora_fx.apply(model, batch(), threshold=math.inf)
    x = batch()
    torch.testing.assert_close(gated(x), model(x))
    assert skiplora_fx.sites(gated) == []
