"""What the forward saved for regions that will not run is given back, and nobody reads what stands in for it."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import models
import oracle
import pytest
import torch
from aten import masks
from lora_modules import WIDE, peft
from memory import peak_of
from partitioner import Counting
from torch import Tensor, nn

import skiplora_fx
from skiplora_fx._torch_compat import dynamo_counters
from skiplora_fx.errors import UsageError
from skiplora_fx.stand_in import let_storage_go, stand_in

MIB = 2**20
AT_ONCE = {"decision": "previous", "warmup_steps": 0, "probe_every": 0, "strict": True}


def build(targets: Any = models.QV, checkpointing: bool = False, layers: int = 2) -> nn.Module:
    torch.manual_seed(0)
    model = models.with_lora(models.llama(layers), targets)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def ratios(model: nn.Module) -> dict[str, torch.Tensor]:
    return {f"M of {site.name}": torch.tensor(site.ratio) for site in skiplora_fx.sites(model)}


def loss_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**batch).logits.square().mean()


@pytest.fixture
def poisoned() -> Iterator[torch.UntypedStorage]:
    """Have memory that is no number stand in."""
    storage = stand_in(torch.device("cpu"), 4 * MIB)
    storage.fill_(0xFF)
    yield storage
    assert bytes(storage[:16]) == b"\xff" * 16, "somebody has written there"


def test_others_keep_what_one_lets_go() -> None:
    value = torch.arange(6.0).view(2, 3)
    other = value.t()
    held = stand_in(value.device, MIB)
    let_storage_go(value, MIB)
    assert value.untyped_storage().data_ptr() == held.data_ptr()
    assert value.shape == (2, 3)
    assert other.tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]


def test_what_stands_in_is_as_large_as_it_has_to_be() -> None:
    """Sizes that are known only when a graph runs are in no plan."""
    small, large = torch.empty(4), torch.empty(MIB, dtype=torch.uint8)
    for value in (small, large):
        let_storage_go(value, 16)
    assert large.untyped_storage().nbytes() >= MIB
    assert large.fill_(1).sum() == MIB
    assert small.untyped_storage().data_ptr() != large.untyped_storage().data_ptr()


def test_what_stands_in_is_one_and_goes_with_the_last_that_has_it() -> None:
    def run() -> None:
        values = [torch.empty(MIB, dtype=torch.uint8) for _ in range(4)]
        for value in values:
            let_storage_go(value, MIB)
        assert len({value.untyped_storage().data_ptr() for value in values}) == 1
        del value, values
        torch.empty(5 * MIB, dtype=torch.uint8)

    assert peak_of(run, "cpu") == 5 * MIB


@pytest.mark.parametrize(
    ("targets", "checkpointing", "scope"),
    [
        (models.QV, False, "adapter"),
        (models.ALL_LINEAR, False, "layer"),
        (models.QV, False, "input"),
        (models.ALL_LINEAR, True, "adapter"),
        pytest.param(models.ALL_LINEAR, False, "adapter", marks=pytest.mark.slow),
        pytest.param(models.QV, False, "layer", marks=pytest.mark.slow),
        pytest.param(models.ALL_LINEAR, False, "input", marks=pytest.mark.slow),
        pytest.param(models.ALL_LINEAR, True, "layer", marks=pytest.mark.slow),
        pytest.param(models.ALL_LINEAR, True, "input", marks=pytest.mark.slow),
    ],
)
def test_no_gradient_sees_what_stands_in(
    targets: Any, checkpointing: bool, scope: str, poisoned: torch.UntypedStorage
) -> None:
    eager, compiled, batch = build(targets, checkpointing), build(targets, checkpointing), models.tokens(2, 16)
    sites = list(oracle.adapted_layers(eager))
    compiled.compile(backend="skiplora", options={**AT_ONCE, "scope": scope, "threshold": 0.0})
    half = len(sites) // 2
    generator = torch.Generator().manual_seed(1)
    random = [(torch.rand(len(sites), generator=generator) < 0.5).tolist() for _ in range(4)]
    oracle.gradients(compiled, lambda: loss_of(compiled, batch))
    measured = ratios(compiled)
    for opens in ([False] * half + [True] * (len(sites) - half), [True] * len(sites), [False] * len(sites), *random):
        mask = dict(zip(sites, opens, strict=True))
        for name, open in mask.items():
            skiplora_fx.set_threshold(compiled, 0.0 if open else math.inf, sites=name)
        for _ in range(2):
            found = oracle.gradients(compiled, lambda: loss_of(compiled, batch))
            found |= ratios(compiled)
        with oracle.detached(eager, scope, mask):
            expected = oracle.gradients(eager, lambda: loss_of(eager, batch))
        expected |= measured
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


class ThreeLinears(nn.Module):
    """Two of one input, and one of their product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(WIDE, WIDE) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.third(self.first(x).relu() * self.second(x))


SITES_OF_THREE = ["first", "second", "third"]


class Exact:
    """A small model under the backend, and the same one eager."""

    def __init__(
        self, poisoned: torch.UntypedStorage, scope: str = "adapter", dtype: Any = torch.float32, dropout: float = 0.0
    ) -> None:
        torch.manual_seed(0)
        self.eager = peft(ThreeLinears(), SITES_OF_THREE, lora_dropout=dropout).to(dtype)
        self.compiled = copy.deepcopy(self.eager)
        self._scope, self._dtype, self._poisoned = scope, dtype, poisoned

    def compile(self, dynamic: bool | None = None, **options: Any) -> None:
        options = {**AT_ONCE, "scope": self._scope, "threshold": 0.0, **options}
        self.compiled.compile(backend="skiplora", dynamic=dynamic, options=options)

    def check(self, rows: int = 48, tolerance: float = 1e-5) -> None:
        """Compare the gradients under every mask; ``tolerance`` is relative to the largest of each gradient."""
        x = torch.randn(rows, WIDE, generator=torch.Generator().manual_seed(rows)).to(self._dtype)
        self._run(self.compiled, x)
        for opens in masks(3):
            mask = {site.name: open for site, open in zip(skiplora_fx.sites(self.compiled), opens, strict=True)}
            for name, open in mask.items():
                skiplora_fx.set_threshold(self.compiled, 0.0 if open else math.inf, sites=name)
            self._run(self.compiled, x)
            found, stands_in = self._run(self.compiled, x)
            if len(set(opens)) == 1:  # some may leave nothing: what siblings share is read while one is open
                assert stands_in is not opens[0]
            with oracle.detached(self.eager, self._scope, mask):
                wanted, _ = self._run(self.eager, x)
            for name, want in wanted.items():
                torch.testing.assert_close(found[name], want, rtol=0, atol=tolerance * max(float(want.abs().max()), 1))

    def _run(self, model: nn.Module, x: Tensor) -> tuple[oracle.Gradients, bool]:
        """Return the gradients of a step, and whether something stands in for what the forward has saved."""
        torch.manual_seed(1)
        output = model(x)
        saved = getattr(output.grad_fn, "saved_tensors", ())
        stands_in = self._poisoned.data_ptr() in [value.untyped_storage().data_ptr() for value in saved]
        return oracle.gradients(model, output.square().mean), stands_in


@pytest.mark.slow
def test_with_dropout(poisoned: torch.UntypedStorage) -> None:
    pair = Exact(poisoned, dropout=0.5)
    pair.compile(fallback_random=True)  # so that Inductor draws what eager does
    pair.check()


@pytest.mark.slow
def test_in_bfloat16(poisoned: torch.UntypedStorage) -> None:
    pair = Exact(poisoned, "layer", dtype=torch.bfloat16)
    pair.compile()
    pair.check(tolerance=5e-2)


@pytest.mark.slow
def test_with_siblings_merged(poisoned: torch.UntypedStorage) -> None:
    pair = Exact(poisoned)
    pair.compile(merge_siblings=True)
    pair.check()


@pytest.mark.slow
def test_with_sizes_that_vary(poisoned: torch.UntypedStorage) -> None:
    pair = Exact(poisoned)
    pair.compile(dynamic=True)
    before = dynamo_counters["stats"]["unique_graphs"]
    pair.check(48)
    pair.check(96)
    assert dynamo_counters["stats"]["unique_graphs"] == before + 1


def test_with_the_users_own_partitioner(poisoned: torch.UntypedStorage) -> None:
    pair, theirs = Exact(poisoned), Counting()
    pair.compile(custom_partitioner_fn=theirs)
    pair.check()
    assert theirs.cut == 1


@pytest.mark.parametrize("hooks", [nullcontext, torch.autograd.graph.save_on_cpu])
def test_a_graph_that_is_kept_and_hooks_on_what_is_saved(hooks: Any, poisoned: torch.UntypedStorage) -> None:
    model, batch = build(), models.tokens(2, 16)
    model.compile(backend="skiplora", options={**AT_ONCE, "threshold": {"*.layers.0.*": math.inf, "*": 0.0}})
    once = [oracle.gradients(model, lambda: loss_of(model, batch)) for _ in range(2)][1]
    model.zero_grad()
    with hooks():
        loss = loss_of(model, batch)
    loss.backward(retain_graph=True)
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, 2 * once[name])


def test_a_backward_that_was_not_predicated_is_refused() -> None:
    """As compiled autograd has it, which takes the backward as it was before the backend saw it."""
    value, opens = torch.ones(4), torch.tensor([False, True])
    read = torch.ops.skiplora.evaluate_conditions(opens, "", "0")
    torch.ops.skiplora.let_go([value], read, opens, [0], 16, [], [])
    with pytest.raises(UsageError, match="release_saved"):
        torch.ops.skiplora.gate_backward(torch.ones(4), opens, [0])
    torch.ops.skiplora.gate_backward(torch.ones(4), opens.clone(), [0])


def peaks(options: dict[str, Any], checkpointing: bool = False) -> tuple[int, int]:
    """Return the peak of a step with every gate open, and with the lower half shut, bytes."""
    torch.compiler.reset()
    model, batch = build(models.ALL_LINEAR, checkpointing, layers=4), models.tokens(8, 48)
    model.compile(backend="skiplora", options={**AT_ONCE, "threshold": 0.0, **options})

    def step() -> None:
        loss_of(model, batch).backward()

    def settled() -> int:
        for _ in range(3):
            step()
        model.zero_grad(set_to_none=True)
        return peak_of(step, "cpu")

    open = settled()
    skiplora_fx.set_threshold(model, math.inf, sites="*.layers.[01].*")
    return open, settled()


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[int, int]]:
    """Return a folder of Inductor's caches, and the peaks of what has been compiled into it."""
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        return folder, peaks({})


@pytest.mark.xdist_group("memory given back")
def test_memory_is_given_back(cached: tuple[Path, tuple[int, int]]) -> None:
    open, shut = cached[1]
    kept_open, kept_shut = peaks({"disable_passes": ["release_saved"]})
    assert open == kept_open
    assert shut < 0.75 * kept_shut


@pytest.mark.xdist_group("memory given back")
def test_a_compile_from_caches_gives_it_back_too(
    cached: tuple[Path, tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = cached
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
    hits = torch._dynamo.utils.counters["aot_autograd"]["autograd_cache_hit"]
    assert peaks({}) == first
    assert torch._dynamo.utils.counters["aot_autograd"]["autograd_cache_hit"] > hits
