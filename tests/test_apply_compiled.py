"""What ``apply`` returns can be compiled by any backend and still gates, in one compile."""

from __future__ import annotations

import math

import pytest
import torch
from lora_modules import Linear, batch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import skiplora_fx


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = Linear(), Linear()

    def forward(self, x: Tensor) -> Tensor:
        return self.high(self.low(x).tanh())


@pytest.mark.parametrize("scope", ["adapter", "layer"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_it_still_gates(backend: str, scope: str) -> None:
    model, x = Two().double(), batch().double()
    options = {"scope": scope, "threshold": 0.0, "warmup_steps": 0, "probe_every": 0}
    gated = skiplora_fx.apply(torch.export.export(model, (x,)), **options)
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(gated, backend=counter)

    def gradients(run: nn.Module, shut: str | None) -> dict[str, Tensor]:
        for name in ("low", "high"):
            skiplora_fx.set_threshold(gated, math.inf if name == shut else 0.0, sites=name)
        model.zero_grad(set_to_none=True)
        run(x).sin().sum().backward()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained.items()}

    for number, shut in enumerate((None, "low", "high", None), 1):
        found = gradients(compiled, shut)
        states = {site.name: site for site in skiplora_fx.sites(gated)}
        assert [states[name].skipped for name in ("low", "high")] == [shut == "low", shut == "high"]
        assert states["low"].backwards == 2 * number - 1  # the eager runs below count too
        torch.testing.assert_close(found, gradients(gated, shut))
    assert counter.frame_count == 1


def test_eval_mode_and_no_grad_count_nothing() -> None:
    model, x = Two(), batch()
    gated = skiplora_fx.apply(model, x, threshold=math.inf, warmup_steps=0, probe_every=0)
    compiled = torch.compile(gated, backend="aot_eager")
    gated.eval()
    compiled(x).sum().backward()
    assert model.low.a.weight.grad.any()
    gated.train()
    with torch.no_grad():
        compiled(x)
    assert [site.backwards for site in skiplora_fx.sites(gated)] == [0, 0]
