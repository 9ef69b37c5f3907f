"""Through Inductor: gradients equal eager ``.detach()`` in the same places, for every mask, without a recompile."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import models
import oracle
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import skiplora_fx
from skiplora_fx._torch_compat import dynamo_counters

SHARES_COMPILED = True


@dataclass(frozen=True)
class Case:
    """A model, its batches, and how it is compiled.

    ``tolerance`` bounds the error relative to the largest element of each gradient. 1e-5 is what float32
    leaves after two compilers have ordered the same sums differently. In bfloat16 one rounding is 2**-8,
    and the two accumulate in a different order: 5e-2 is about a dozen of them.
    """

    build: Callable[[], nn.Module]
    batches: tuple[Callable[[], dict[str, Tensor]], ...] = (models.tokens,)
    tolerance: float = 1e-5
    dynamic: bool | None = None
    per_layer: bool = False
    context: Callable[[], contextlib.AbstractContextManager[Any]] = field(default=contextlib.nullcontext)


def checkpointed() -> nn.Module:
    model = models.with_lora(models.llama(2), models.ALL_LINEAR)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def gpt2_with_two_adapters() -> nn.Module:
    """Conv1D bases, two adapters chained on each, with a bias."""
    model = models.with_lora(models.gpt2(2), ["c_attn", "c_proj"], fan_in_fan_out=True, lora_bias=True, use_rslora=True)
    model.add_adapter("second", model.peft_config["default"])
    model.base_model.set_adapter(["default", "second"])
    models.randomise_b(model)
    return model


CASES = {
    "llama q/v": Case(lambda: models.with_lora(models.llama(3))),
    "llama all linears": Case(lambda: models.with_lora(models.llama(2), models.ALL_LINEAR)),
    "llama MLP": Case(lambda: models.with_lora(models.llama(2), models.MLP)),
    "encoder with a trained head": Case(
        lambda: models.with_lora(models.bert(), models.ALL_LINEAR, task_type="SEQ_CLS"), (models.labelled,)
    ),
    "encoder-decoder": Case(lambda: models.with_lora(models.t5(1), ["q", "v"])),
    "GPT-2, two adapters": Case(gpt2_with_two_adapters),
    "checkpointing": Case(checkpointed),
    "per-layer compile": Case(lambda: models.with_lora(models.llama(3)), per_layer=True),
    "dynamic lengths": Case(
        lambda: models.with_lora(models.llama(2)),
        tuple(lambda lengths=lengths: models.padded(lengths) for lengths in ((9, 4), (12, 5, 7), (6, 6))),
        dynamic=True,
    ),
    "autocast": Case(
        lambda: models.with_lora(models.llama(2)),
        tolerance=5e-2,
        context=lambda: torch.autocast("cpu", torch.bfloat16),
    ),
    "bfloat16 base": Case(lambda: models.with_lora(models.llama(2).bfloat16()), tolerance=5e-2),
}

# One scope each at most in every run: which one differs little, and each compile takes its time.
COMPILED = [
    ("llama q/v", "adapter"),
    ("llama q/v", "layer"),
    ("llama all linears", "layer"),
    ("encoder with a trained head", "layer"),
    ("encoder-decoder", "layer"),
    ("GPT-2, two adapters", "adapter"),
    ("checkpointing", "layer"),
    ("per-layer compile", "adapter"),
    ("dynamic lengths", "layer"),
    ("autocast", "adapter"),
]


class Pair:
    """A compiled model, and the same one eager."""

    def __init__(self, case: Case, scope: str) -> None:
        torch.manual_seed(0)
        self.case, self.scope = case, scope
        self.eager = case.build().train()
        self._no_dropout()
        self.model = copy.deepcopy(self.eager)
        self.sites = list(oracle.adapted_layers(self.eager))
        self._compile()
        for batch in case.batches:
            oracle.gradients(self.model, self._run(self.model, batch()))

    def check(self, mask: dict[str, bool], batch: dict[str, Tensor]) -> None:
        """Assert that both give the same gradients under ``mask``."""
        for name, open in mask.items():
            skiplora_fx.set_threshold(self.model, 0.0 if open else math.inf, name)
        found = oracle.gradients(self.model, self._run(self.model, batch))
        with oracle.detached(self.eager, self.scope, mask):
            wanted = oracle.gradients(self.eager, self._run(self.eager, batch))
        for name, want in wanted.items():
            atol = self.case.tolerance * float(want.abs().max())
            torch.testing.assert_close(found[name], want, rtol=self.case.tolerance, atol=atol, msg=_named(name))

    def _run(self, model: nn.Module, batch: dict[str, Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with self.case.context():
                return model(**batch).loss

        return run

    def _compile(self) -> None:
        options = {"scope": self.scope, "threshold": 0.0, "warmup_steps": 0, "probe_every": 0}
        compiled = self.model.base_model.model.model.layers if self.case.per_layer else [self.model]
        for module in compiled:
            module.compile(backend="skiplora", dynamic=self.case.dynamic, options=options)

    def _no_dropout(self) -> None:
        """Switch dropout off: eager and Inductor draw different random numbers."""
        for module in self.eager.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0


def _named(name: str) -> Callable[[str], str]:
    return lambda message: f"{name}: {message}"


OTHERS = [(name, scope) for name in CASES for scope in ("adapter", "layer") if (name, scope) not in COMPILED]


def _on_one_worker(param: tuple[str, str], *marks: pytest.MarkDecorator) -> Any:
    """Return a parameter whose tests run where its pair is, which another worker would compile again."""
    return pytest.param(param, marks=[pytest.mark.xdist_group(f"end to end: {', '.join(param)}"), *marks])


@pytest.fixture(
    scope="module",
    params=[*map(_on_one_worker, COMPILED), *(_on_one_worker(other, pytest.mark.slow) for other in OTHERS)],
    ids=lambda param: f"{param[0]}, {param[1]} scope",
)
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    name, scope = request.param
    torch.compiler.reset()
    yield Pair(CASES[name], scope)
    torch.compiler.reset()


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_gradients_equal_eager_detach(pair: Pair, data: st.DataObject) -> None:
    opens = data.draw(st.lists(st.booleans(), min_size=len(pair.sites), max_size=len(pair.sites)))
    batch = data.draw(st.sampled_from(pair.case.batches))
    pair.check(dict(zip(pair.sites, opens, strict=True)), batch())


@pytest.mark.parametrize("open", [True, False], ids=["all open", "all shut"])
def test_gradients_at_the_extremes(pair: Pair, open: bool) -> None:
    for batch in pair.case.batches:
        pair.check(dict.fromkeys(pair.sites, open), batch())


def test_every_adapter_is_gated(pair: Pair) -> None:
    adapters = [(name, a) for name, layer in oracle.adapted_layers(pair.eager).items() for a in layer.active_adapters]
    assert sorted((site.name, site.adapter) for site in skiplora_fx.sites(pair.model)) == sorted(adapters)


def test_masks_change_without_a_recompile(pair: Pair) -> None:
    for _ in range(2):  # BERT writes into its configuration at the first forward, which compiles it a second time
        pair._run(pair.model, pair.case.batches[0]())().backward()
    before = dynamo_counters["stats"]["unique_graphs"]
    with torch.compiler.set_stance("fail_on_recompile"):
        for shut in pair.sites:
            for name in pair.sites:
                skiplora_fx.set_threshold(pair.model, math.inf if name == shut else 0.0, name)
            pair._run(pair.model, pair.case.batches[0]())().backward()
    assert dynamo_counters["stats"]["unique_graphs"] == before > 0


def test_ratios_equal_those_of_eager_hooks(pair: Pair) -> None:
    # In bfloat16 the norms are those of values that eager and Inductor rounded, to 2**-8, in different places.
    tolerance = 1e-5 if pair.case.tolerance == 1e-5 else 2e-2
    for name in pair.sites:
        skiplora_fx.set_threshold(pair.model, 0.0, name)
    run = pair._run(pair.model, pair.case.batches[0]())
    run().backward()
    wanted = oracle.ratios(pair.eager, pair._run(pair.eager, pair.case.batches[0]()))
    for site in skiplora_fx.sites(pair.model):
        assert site.ratio == pytest.approx(wanted[site.name, site.adapter], rel=tolerance), site.name
