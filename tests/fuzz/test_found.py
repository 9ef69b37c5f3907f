"""What fuzzing has found; each has been mended since."""

from __future__ import annotations

import oracle
import torch
from drawn_models import BlockSpec, InPlace, ModelSpec, Twice
from test_fuzz import loss_of, tokens


def test_what_a_branch_reads_is_still_there_behind_it() -> None:
    """Inductor let a branch overwrite what a trained norm's gradient was still to be computed from."""
    blocks = (BlockSpec(Twice, False, False, False), BlockSpec(InPlace, True, True, False))
    trained = ("blocks.1.norm.weight",)
    spec = ModelSpec(8, blocks, ("blocks.0.first", "head"), 2, (), trained, torch.float64, torch.float64)
    eager, compiled = spec.build(), spec.build()
    options = {"scope": "layer", "threshold": 0.0, "warmup_steps": 0, "probe_every": 0, "strict": True}
    compiled.compile(backend="skiplora", dynamic=False, options=options)
    found, expected = (
        oracle.gradients(model, lambda model=model: loss_of(model, tokens(5))) for model in (compiled, eager)
    )
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
