"""What fuzzing has found and is not mended yet; each test fails until it is."""

from __future__ import annotations

import oracle
import pytest
import torch
from drawn_models import BlockSpec, InPlace, ModelSpec, Rows, Twice
from test_fuzz import loss_of, tokens


@pytest.mark.slow
@pytest.mark.xfail(strict=True, raises=AssertionError, reason="norm.weight's gradient is wrong under Inductor")
def test_a_trained_norm_below_a_layer_that_is_written_into() -> None:
    blocks = (
        BlockSpec(Rows, True, True, False),
        BlockSpec(Twice, True, True, False),
        BlockSpec(Twice, False, False, False),
        BlockSpec(InPlace, True, True, False),
    )
    trained = ("blocks.3.norm.weight", "blocks.0.second.bias", "blocks.0.second.weight")
    spec = ModelSpec(8, blocks, ("blocks.2.first", "head"), 2, (), trained, torch.float64, torch.float64)
    eager, compiled = spec.build(), spec.build()
    options = {"scope": "layer", "threshold": 0.0, "warmup_steps": 0, "probe_every": 0, "strict": True}
    compiled.compile(backend="skiplora", dynamic=False, options=options)
    found, expected = (
        oracle.gradients(model, lambda model=model: loss_of(model, tokens(5))) for model in (compiled, eager)
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
