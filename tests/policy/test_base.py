"""What a policy sees, and policies by name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from sights import observed, shut

from skiplora_fx import ConfigError, SkipLoraConfig
from skiplora_fx.policy import POLICIES, Observation, Prefix, SiteHistory, make_policy, with_run


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("base_model.model.model.layers.11.self_attn.q_proj", "base_model.model.model.layers.11"),
        ("model.layers.3.mlp.experts.7.w1", "model.layers.3"),
        ("transformer.h.0.attn.c_attn", "transformer.h.0"),
        ("encoder.block.1.layer.0.SelfAttention.q", "encoder.block.1"),
        ("0", "0"),
        ("conv2d_1.proj", "conv2d_1.proj"),
        ("lm_head", "lm_head"),
        ("", ""),
    ],
)
def test_the_block_of_a_site(name: str, block: str) -> None:
    assert SiteHistory(name).block == block


def test_blocks_keep_the_order_of_the_forward() -> None:
    names = ["embed", "layers.0.q", "layers.0.v", "layers.1.q", "head", "layers.1.v"]
    assert Observation(0, tuple(map(SiteHistory, names))).blocks() == [[0], [1, 2], [3, 5], [4]]


def test_impacts_are_means_over_a_block_and_equal_while_one_is_unknown() -> None:
    sites = [SiteHistory("l.0.a", mean=1.0), SiteHistory("l.0.b", mean=3.0), SiteHistory("l.1.a", mean=5.0)]
    assert Observation(0, tuple(sites)).impacts() == [2.0, 5.0]
    assert Observation(0, (*sites, SiteHistory("l.1.b"))).impacts() == [1.0, 1.0]


def test_adapters_of_one_layer_have_ids_of_their_own() -> None:
    assert SiteHistory("q_proj", "first").id != SiteHistory("q_proj", "second").id != SiteHistory("q_proj").id


@pytest.mark.parametrize("name", POLICIES)
def test_every_name_makes_a_policy_that_decides(name: str) -> None:
    policy = make_policy(name, with_run(name, {}, steps=8))
    for step in range(3):
        thresholds = policy.decide(observed(step))
        assert len(thresholds) == 8
        assert all(threshold >= 0 for threshold in thresholds)
    policy.load_state_dict(policy.state_dict())
    assert policy.decide(observed(2)) == thresholds


@pytest.mark.parametrize("name", POLICIES)
def test_no_site_is_no_trouble(name: str) -> None:
    assert list(make_policy(name, with_run(name, {}, steps=8)).decide(Observation(0, ()))) == []


def test_options_reach_the_policy() -> None:
    policy = make_policy("prefix", {"share": 0.9, "seed": 4})
    assert isinstance(policy, Prefix)
    assert (policy.share, policy.seed) == (0.9, 4)


def test_the_length_of_the_run_completes_what_was_not_said() -> None:
    assert with_run("schedule", {"last": 0.5}, steps=8) == {"last": 0.5, "steps": 8}
    assert with_run("schedule", {"steps": 3}, steps=8, begin=2) == {"steps": 3, "begin": 2}
    assert [with_run(policy, {}, steps=8, begin=2) for policy in ("prefix", Own(), "no policy")] == [{}] * 3


def test_a_schedule_begins_after_the_warm_up() -> None:
    config = SkipLoraConfig(policy="schedule", policy_kwargs={"steps": 8}, warmup_steps=3)
    assert config.make_policy().begin == 3
    assert replace(config, policy_kwargs={"steps": 8, "begin": 1}).make_policy().begin == 1
    with pytest.raises(ConfigError, match="the warm-up's end unless it is given, must lie before steps=8"):
        replace(config, warmup_steps=8)


class Own:
    def decide(self, observation: Observation) -> list[float]:
        return [math.inf] * len(observation.sites)


def test_an_own_policy_is_taken_as_it_is() -> None:
    own = Own()
    assert make_policy(own, {}) is own
    assert shut(make_policy(own, {}).decide(observed())) == "#" * 8


@pytest.mark.parametrize(
    ("policy", "kwargs", "message"),
    [
        ("prefixes", {}, "policy must be one of 'threshold', 'quantile', 'prefix'"),
        (Own, {}, "or an object with a method decide(observation), got <class"),
        (3, {}, "or an object with a method decide(observation), got 3"),
        (Own(), {"share": 1}, "policy_kwargs is for policies given by name; Own is an object already"),
        ("prefix", {"depth": 1}, "policy 'prefix' has no option 'depth'; it takes share, least, seed"),
        ("threshold", {"share": 1}, "policy 'threshold' has no option 'share'; it takes none"),
        ("prefix", {"share": 1.5}, "policy Prefix: share must be a number from 0 to 1, got 1.5"),
        ("prefix", {"share": True}, "share must be a number from 0 to 1, got True"),
        ("prefix", {"seed": -1}, "policy Prefix: seed must be a whole number >= 0, got -1"),
        ("freeze", {"share": math.nan}, "policy Freeze: share must be a number from 0 to 1, got nan"),
        ("quantile", {"window": 0}, "policy Quantile: window must be a whole number >= 1, got 0"),
        ("quantile", {"share": "half"}, "policy Quantile: share must be a number from 0 to 1, got 'half'"),
        ("multirate", {"every": 2.5}, "policy Multirate: every must be a whole number >= 1, got 2.5"),
        ("schedule", {}, "policy Schedule: give steps, the number of optimizer steps of the run"),
        ("schedule", {"steps": -1}, "policy Schedule: steps must be a whole number >= 0, got -1"),
        ("schedule", {"steps": 5, "begin": 5}, "must lie before steps=5, got 5"),
        ("schedule", {"steps": 5, "last": 1.1}, "policy Schedule: last must be a number from 0 to 1, got 1.1"),
        ("progressive", {"bound": 0}, "policy Progressive: bound must be a number above 0, got 0"),
        ("progressive", {"deepest": 2}, "policy Progressive: deepest must be a number from 0 to 1, got 2"),
        ("budget", {"target": -0.1}, "policy Budget: target must be a number from 0 to 1, got -0.1"),
        ("random", {"rate": 2}, "policy RandomBlocks: rate must be a number from 0 to 1, got 2"),
        ("cyclic", {"hold": 0}, "policy CyclicBlocks: hold must be a whole number >= 1, got 0"),
    ],
)
def test_mistakes_are_named_before_anything_is_compiled(policy: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        SkipLoraConfig.from_options({"policy": policy, "policy_kwargs": kwargs})
    assert message in str(error.value)
