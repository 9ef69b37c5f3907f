"""Every mistake is named before anything is compiled, with what would have been right."""

from __future__ import annotations

import math
from typing import Any

import pytest

from skiplora_fx import ConfigError, SkipLoraConfig
from skiplora_fx.config import CHOICES, match_sites

NAMES = ["model.layers.0.q_proj", "model.layers.0.v_proj", "model.layers.1.q_proj"]


def made(**options: Any) -> SkipLoraConfig:
    return SkipLoraConfig.from_options(options)


def test_defaults() -> None:
    config = SkipLoraConfig.from_options(None)
    assert (config.threshold, config.scope, config.policy) == (0.05, "adapter", "threshold")
    assert (config.warmup_steps, config.probe_every, config.decision) == (100, 50, "current")
    assert (config.sync, config.merge_siblings) == ("mean", False)
    assert (config.skipped_grad, config.disable_passes, dict(config.inductor)) == ("zero", (), {})


@pytest.mark.parametrize("value", [0, 0.5, math.inf])
def test_thresholds_that_are_allowed(value: float) -> None:
    assert made(threshold=value).threshold == value
    assert made(threshold={"*.q_proj": value}).threshold == {"*.q_proj": value}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": "0.1"}, "threshold must be a number >= 0, got '0.1' (str)"),
        ({"threshold": None}, "threshold must be a number >= 0, got None (NoneType)"),
        ({"threshold": True}, "threshold must be a number >= 0, got True (bool)"),
        ({"threshold": -1}, "threshold must be a number >= 0 (0 never skips, inf always), got -1"),
        ({"threshold": math.nan}, "threshold must be a number >= 0 (0 never skips, inf always), got nan"),
        ({"threshold": {}}, "threshold is an empty dict: give a number, or {glob over site names: number}"),
        ({"threshold": {3: 0.1}}, "threshold keys must be globs over site names, got 3"),
        ({"threshold": {"*": -2}}, "threshold['*'] must be a number >= 0 (0 never skips, inf always), got -2"),
        ({"scope": "block"}, "scope must be one of 'adapter', 'layer', 'input', got 'block'"),
        ({"policy": "none"}, "policy must be one of"),
        ({"decision": "next"}, "decision must be one of"),
        ({"skipped_grad": "nan"}, "skipped_grad must be one of"),
        ({"merge_siblings": "auto"}, "merge_siblings must be True or False, got 'auto'"),
        ({"sync": "max"}, "sync must be one of 'mean', 'none', got 'max'"),
        ({"warmup_steps": -1}, "warmup_steps must be a whole number >= 0 (0 switches it off), got -1"),
        ({"warmup_steps": 1.5}, "warmup_steps must be a whole number >= 0 (0 switches it off), got 1.5"),
        ({"probe_every": True}, "probe_every must be a whole number >= 0 (0 switches it off), got True"),
        ({"disable_passes": "fold_gates"}, "disable_passes must be a list of pass names, got 'fold_gates'"),
        ({"disable_passes": 1}, "disable_passes must be a list of pass names, got 1"),
        (
            {"disable_passes": ["find_lora"]},
            "disable_passes: 'find_lora' is not one of insert_gates, fold_gates, release_saved, predicate_backward, "
            "share_branches, release_operands",
        ),
        (
            {"disable_passes": ["fold_gates"]},
            "disable_passes: predicate_backward needs fold_gates, so disable both or neither",
        ),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(**options)
    assert message in str(error.value)


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_lists_what_is_allowed(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(**{name: "?"})
    assert all(repr(word) in str(error.value) for word in CHOICES[name])
    needed = {"input": {"decision": "previous"}}
    assert all(getattr(made(**{name: word}, **needed.get(word, {})), name) == word for word in CHOICES[name])


def test_the_input_scope_says_what_it_needs() -> None:
    with pytest.raises(ConfigError, match="Add decision='previous'"):
        made(scope="input")
    with pytest.raises(ConfigError, match="Leave skipped_grad out"):
        made(scope="input", decision="previous", skipped_grad="none")
    with pytest.raises(ConfigError, match="Leave merge_siblings out"):
        made(scope="input", decision="previous", merge_siblings=True)


@pytest.mark.parametrize("only", ["*.q_proj", 1, [1]])
def test_only_is_a_list_of_globs(only: Any) -> None:
    with pytest.raises(ConfigError, match="only must be a list of globs"):
        made(only=only)


@pytest.mark.parametrize(
    ("wrong", "right"), [("treshold", "threshold"), ("warmup_step", "warmup_steps"), ("disable_pass", "disable_passes")]
)
def test_an_unknown_option_is_met_with_the_closest(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError) as error:
        made(**{wrong: 1})
    message = str(error.value)
    assert message.startswith(f"unknown option {wrong!r}: neither an option of skiplora (threshold, scope, ")
    assert message.endswith(f"Did you mean {right!r}?")


def test_an_option_that_is_like_none_gets_no_guess() -> None:
    with pytest.raises(ConfigError) as error:
        made(xyzzy=1)
    assert str(error.value).endswith("nor of Inductor.")


def test_the_rest_goes_to_inductor() -> None:
    config = made(threshold=0.2, max_autotune=True, epilogue_fusion=False)
    assert dict(config.inductor) == {"max_autotune": True, "epilogue_fusion": False}
    assert config.threshold == 0.2


def test_equal_options_make_equal_configurations() -> None:
    assert made(threshold={"*": 1}) == made(threshold={"*": 1.0})
    assert made(threshold=0.1) != made(threshold=0.2)


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(AttributeError):
        made().threshold = 0.2


def test_the_first_glob_that_matches_wins() -> None:
    config = made(threshold={"*.layers.0.*": 0.1, "*.q_proj": 0.2})
    assert [config.threshold_of(name) for name in NAMES] == [0.1, 0.1, 0.2]


def test_what_no_glob_matches_is_never_skipped() -> None:
    assert made(threshold={"*.q_proj": 0.2}).threshold_of("model.layers.0.v_proj") == 0.0


def test_globs_tell_upper_from_lower_case() -> None:
    assert made(threshold={"*.Q_PROJ": 0.2}).threshold_of(NAMES[0]) == 0.0


def test_one_number_is_for_all() -> None:
    assert made(threshold=3).threshold_of("anything") == 3.0


def test_a_glob_that_matches_no_site_lists_the_sites() -> None:
    made(threshold={"*.q_proj": 0.1, "*": 0.2}).check_globs(NAMES)
    with pytest.raises(ConfigError) as error:
        made(threshold={"*": 0.1, "*.k_proj": 0.2}).check_globs(NAMES)
    assert str(error.value) == "no site matches the glob '*.k_proj'. The sites are:\n  " + "\n  ".join(sorted(NAMES))


def test_a_long_list_of_sites_is_cut() -> None:
    with pytest.raises(ConfigError, match=r"layer\.19\n  … and 5 more$"):
        match_sites("x", [f"layer.{number:02}" for number in range(25)])


def test_no_sites_at_all() -> None:
    with pytest.raises(ConfigError, match=r"\(none\)"):
        match_sites("*", [])


def test_matches_come_in_the_order_of_the_names() -> None:
    assert match_sites("*.q_proj", NAMES) == [NAMES[0], NAMES[2]]
