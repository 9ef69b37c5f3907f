"""Policies in a model that trains: asked once a step, over all graphs, by the costs of the compiled graphs."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import models
import pytest
import torch
from lora_modules import Linear, batch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from two_layers import Broken, Two, compiled, sgd, skipped, step

import skiplora_fx
from skiplora_fx import ConfigError, UsageError
from skiplora_fx._torch_compat import dynamo_counters
from skiplora_fx.live import live_sites
from skiplora_fx.policy import POLICIES, Observation, with_run


class Recording:
    """Opens everything and keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def decide(self, observation: Observation) -> list[float]:
        self.seen.append(observation)
        return [0.0] * len(observation.sites)


class Stack(nn.Module):
    """Adapted layers in a row, in one graph."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear() for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def test_a_policy_is_asked_once_for_each_step_over_two_graphs() -> None:
    policy = Recording()
    model = compiled(Broken(), policy=policy)
    for _ in range(3):
        step(model)
    model(batch())
    by_step = {seen.step: [site.name for site in seen.sites] for seen in policy.seen}
    assert by_step == {step: ["lower", "upper"] for step in range(4)}
    assert [seen.step for seen in policy.seen] == [0, 0, 1, 2, 3]  # the first forward met the upper layer later


def test_what_a_policy_is_shown() -> None:
    policy = Recording()
    model = compiled(Two(), policy=policy, threshold={"lower": 0.3, "upper": 0.7})
    ratios = []
    for _ in range(3):
        step(model)
        ratios.append([site.ratio for site in skiplora_fx.sites(model)])
    model(batch())
    last = policy.seen[-1]
    assert [site.threshold for site in last.sites] == [0.3, 0.7]
    assert [site.ratio for site in last.sites] == ratios[-1]
    assert [site.backwards for site in last.sites] == [3, 3]
    for position, site in enumerate(last.sites):
        mean, variance = ratios[0][position], 0.0
        for found in ratios[1:]:
            difference = found[position] - mean
            mean, variance = mean + 0.1 * difference, 0.9 * (variance + 0.1 * difference**2)
        assert (site.mean, site.variance) == pytest.approx((mean, variance))


def test_steps_since_a_gate_was_open() -> None:
    class Lower(Recording):
        def decide(self, observation: Observation) -> list[float]:
            super().decide(observation)
            return [math.inf, 0.0]

    policy = Lower()
    model = compiled(Stack(2), policy=policy)
    for _ in range(4):
        step(model)
    assert [site.since_open for site in policy.seen[-1].sites] == [3, 0]


@pytest.mark.parametrize("policy", ["prefix", "random", "cyclic"])
def test_no_mask_recompiles(policy: str) -> None:
    torch._dynamo.reset()
    model = compiled(Stack(), policy=policy)
    step(model)
    before = dynamo_counters["stats"]["unique_graphs"]
    masks = set()
    for _ in range(12):
        step(model)
        masks.add(tuple(skipped(model)))
    assert len(masks) > 1
    assert dynamo_counters["stats"]["unique_graphs"] == before


def test_budget_keeps_to_the_costs_of_the_compiled_graph() -> None:
    model = compiled(Stack(), policy="budget", policy_kwargs={"target": 0.5, "every": 1})
    step(model)
    assert skipped(model) == [False] * 4  # nothing is known yet
    step(model)
    step(model)
    (graph,) = skiplora_fx.explain(model, batch()).graphs
    assert sum(skipped(model)) >= 2
    found = [site.saves for site in graph.sites]
    controller_costs = costs_of(model)
    assert controller_costs.total == graph.backward
    assert controller_costs.alone == found
    assert controller_costs.under([[not shut for shut in skipped(model)]])[0] <= 0.5 * graph.backward


def costs_of(model: nn.Module) -> Any:
    """Return what the model's policy is told of costs."""
    (controller,) = {site.controller for site in live_sites(model)}
    observation, _ = controller._observe(0)
    return observation.costs


def test_a_policy_is_told_what_each_site_saves() -> None:
    class Costly(Recording):
        needs_costs = True

    policy = Costly()
    model = compiled(Broken(), policy=policy)
    step(model)
    assert policy.seen[-1].costs is None
    model(batch())
    costs = policy.seen[-1].costs
    assert costs is not None
    assert sum(site.adds for site in policy.seen[-1].sites) == costs.total - costs.under([[False, False]])[0]
    assert all(site.saves > 0 for site in policy.seen[-1].sites)


def test_a_policy_that_answers_wrongly_is_named() -> None:
    class TooFew(Recording):
        def decide(self, observation: Observation) -> list[float]:
            return [0.0]

    class Negative(Recording):
        def decide(self, observation: Observation) -> list[float]:
            return [0.0, -1.0][: len(observation.sites)]

    with pytest.raises(ConfigError, match=r"policy TooFew: decide\(\) returned 1 thresholds for 2 sites"):
        step(compiled(policy=TooFew()))
    with pytest.raises(ConfigError, match=r"policy Negative: decide\(\) returned -1.0 for upper; it must be"):
        step(compiled(policy=Negative()))


def test_one_policy_object_serves_one_model() -> None:
    policy = Recording()
    first = compiled(policy=policy)
    step(first)
    with pytest.raises(UsageError, match="policy Recording decides for another model already"):
        step(compiled(policy=policy))


def test_thresholds_of_a_policy_are_reported_and_not_set() -> None:
    model = compiled(policy="freeze")
    step(model)
    assert [site.threshold for site in skiplora_fx.sites(model)] == [math.inf, 0.0]
    with pytest.raises(UsageError, match="the policy Freeze sets the thresholds of lower itself"):
        skiplora_fx.set_threshold(model, 0.1)


class CheckpointedStack(Stack):
    """The same under activation checkpointing outside of what is compiled: each layer's forward runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False).tanh()
        return x


def test_a_recompute_counts_nothing_and_decides_nothing_anew() -> None:
    options = {
        "threshold": 0.0,
        "warmup_steps": 0,
        "probe_every": 0,
        "policy": "random",
        "policy_kwargs": {"rate": 0.5},
    }
    torch.manual_seed(0)
    plain, recomputed = Stack(), CheckpointedStack()
    recomputed.load_state_dict(plain.state_dict())
    for model in (plain, recomputed):
        for layer in model.layers:
            layer.compile(backend="skiplora", options=options)
    found = []
    for model in (plain, recomputed):
        calls = 0
        for seed in range(5):
            torch.manual_seed(seed)
            model.zero_grad()
            model(batch().requires_grad_()).sum().backward()
            calls += 1
        states = skiplora_fx.sites(model)
        assert {state.backwards for state in states} == {calls}
        found.append([(state.ratio, state.skipped, state.skip_rate) for state in states])
        found.append([parameter.grad for parameter in model.parameters() if parameter.requires_grad])
    assert found[0] == found[2]
    torch.testing.assert_close(found[1], found[3])


def test_evaluation_in_between_changes_nothing() -> None:
    def run(evaluate: bool) -> list[list[bool]]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = compiled(Stack(), policy="quantile", policy_kwargs={"window": 4})
        found = []
        for seed in range(6):
            torch.manual_seed(seed)
            step(model)
            found.append(skipped(model))
            if evaluate:
                model.eval()
                with torch.no_grad():
                    model(batch())
                model(batch())
                model.train()
        return found

    assert run(True) == run(False)


def llama(**options: Any) -> nn.Module:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = models.with_lora(models.llama(2), models.QV).train()
    model.compile(backend="skiplora", options={"warmup_steps": 0, "probe_every": 0, **options})
    return model


def forward(model: nn.Module) -> None:
    model.zero_grad()
    model(**models.tokens()).loss.backward()


def test_adapters_that_are_switched_have_histories_of_their_own() -> None:
    model: Any = llama(policy="freeze")
    model.add_adapter("other", model.peft_config["default"])
    forward(model)
    model.set_adapter("other")
    forward(model)
    forward(model)
    states = {(state.adapter, state.backwards, state.skipped) for state in skiplora_fx.sites(model)}
    assert states == {("other", 2, True), ("other", 2, False)}
    with model.disable_adapter():
        model(**models.tokens())
    model.set_adapter("default")
    forward(model)
    states = {(state.adapter, state.backwards, state.skipped) for state in skiplora_fx.sites(model)}
    assert states == {("default", 2, True), ("default", 2, False)}


def test_merging_leaves_nothing_gated() -> None:
    model: Any = llama(policy="prefix")
    forward(model)
    logits = model.eval()(**models.tokens()).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**models.tokens()).logits, logits, atol=1e-4, rtol=1e-4)
    assert skiplora_fx.sites(merged) == []


@pytest.mark.parametrize("options", [{"policy": "quantile", "policy_kwargs": {"window": 3}}, {"policy": "progressive"}])
def test_a_resumed_run_decides_as_the_whole_one(options: Mapping[str, Any]) -> None:
    options = {**options, "decision": "previous", "warmup_steps": 1, "probe_every": 3}

    def run(model: nn.Module, attachment: Any, optimizer: Any, seeds: range) -> list[Any]:
        found = []
        for seed in seeds:
            torch.manual_seed(seed)
            optimizer.zero_grad()
            model(batch()).sum().backward()
            optimizer.step()
            found.append([(site.ratio, site.skipped, site.threshold) for site in skiplora_fx.sites(model)])
        return found

    def fresh() -> tuple[nn.Module, Any, Any]:
        torch.manual_seed(0)
        model = compiled(Stack(), **options)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        return model, skiplora_fx.attach(model, optimizer), optimizer

    whole = run(*fresh(), range(8))
    first = fresh()
    assert run(*first, range(4)) == whole[:4]
    model, attachment, optimizer = fresh()
    model.load_state_dict(first[0].state_dict())
    optimizer.load_state_dict(first[2].state_dict())
    attachment.load_state_dict(first[1].state_dict())
    assert run(model, attachment, optimizer, range(4, 8)) == whole[4:]


def test_a_state_of_another_policy_is_refused() -> None:
    model = compiled(policy="quantile")
    attachment = skiplora_fx.attach(model, sgd(model))
    step(model)
    state = attachment.state_dict()
    other = compiled(policy="prefix")
    other_attachment = skiplora_fx.attach(other, sgd(other))
    step(other)
    with pytest.raises(ConfigError, match="made under policy Quantile, and this run has Prefix"):
        other_attachment.load_state_dict(state)
    with pytest.raises(ConfigError, match=r"this is not what Attachment.state_dict\(\) of this version returns"):
        other_attachment.load_state_dict({"steps": 3})


class Bare:
    """Shuts everything; an object of its own for each graph."""

    def decide(self, observation: Observation) -> list[float]:
        return [math.inf] * len(observation.sites)


LEVELS = {
    "export": lambda model, x: torch.export.export(model, (x,)),
    "symbolic_trace": lambda model, x: torch.fx.symbolic_trace(model),
    "make_fx": lambda model, x: make_fx(lambda x: model(x))(x),
}


@pytest.mark.parametrize("level", LEVELS)
def test_a_budget_under_apply_has_the_costs_that_the_backend_has(level: str) -> None:
    model, x = Stack().train(), batch()
    options: Any = {"policy": "budget", "policy_kwargs": {"target": 0.5, "every": 1}, "warmup_steps": 0}
    gated = skiplora_fx.apply(LEVELS[level](model, x), x, **options)
    costs = costs_of(gated)
    (graph,) = skiplora_fx.explain(model, x).graphs
    assert (costs.total, costs.alone) == (graph.backward, [site.saves for site in graph.sites])
    for _ in range(3):
        gated(x).sum().backward()
    opens = [not site.skipped for site in skiplora_fx.sites(gated)]
    assert costs.under([opens])[0] <= 0.5 * costs.total


@pytest.mark.parametrize("policy", sorted(set(POLICIES) - {"threshold", "budget"}))
def test_policies_under_apply(policy: str) -> None:
    model, x = Stack().train(), batch()
    options = {"policy": policy, "policy_kwargs": with_run(policy, {}, steps=3)}
    gated = skiplora_fx.apply(model, x, **options, warmup_steps=0, probe_every=0)
    for _ in range(3):
        gated(x).sum().backward()
    assert len(skiplora_fx.sites(gated)) == 4
    if policy == "freeze":
        assert skipped(gated) == [True, True, False, False]


def test_a_copy_of_a_gated_graph_has_a_policy_of_its_own() -> None:
    model, x = Stack().train(), batch()
    gated = skiplora_fx.apply(model, x, policy=Bare(), warmup_steps=0, probe_every=0)
    other = copy.deepcopy(gated)
    policies = []
    for graph in (gated, other):
        graph(x).sum().backward()
        (controller,) = {site.controller for site in live_sites(graph)}
        policies.append(controller.policy)
        assert skipped(graph) == [True] * 4
    assert policies[0] is not policies[1]
