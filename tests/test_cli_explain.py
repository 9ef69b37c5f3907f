"""``skiplora explain`` builds a model from its config alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from skiplora_fx.cli import main

SHELL = [sys.executable, "-m", "skiplora_fx.cli", "explain"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    models.llama(2).config.save_pretrained(path)
    return str(path)


def shell(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SHELL, *arguments], capture_output=True, text=True, check=False)


def test_the_command_reads_no_weights(folder: str) -> None:
    assert {path.name for path in Path(folder).iterdir()} <= {"config.json", "generation_config.json"}
    done = shell(folder, "--r", "2", "--length", "8", "--json")
    assert done.returncode == 0, done.stderr
    (graph,) = json.loads(done.stdout)["graphs"]
    assert [site["name"].rsplit(".", 1)[1] for site in graph["sites"]] == ["q_proj", "v_proj"] * 2
    assert {(site["rank"], site["shape"][1]) for site in graph["sites"]} == {(2, 8)}


def vit() -> nn.Module:
    return ViTForImageClassification(
        ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, image_size=32)
    )


def saved(config: Any, path: Path, architecture: str) -> str:
    config.architectures = [architecture]
    config.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(
    ("build", "architecture", "options", "sites"),
    [
        (models.gpt2, "GPT2LMHeadModel", [], {"c_attn": 2}),
        (models.t5, "T5ForConditionalGeneration", [], {"q": 6, "v": 6}),
        (models.bert, "BertForSequenceClassification", [], {"query": 2, "value": 2}),
        (models.bert, "BertForMaskedLM", ["--layers", "1"], {"query": 1, "value": 1}),
        (vit, "ViTForImageClassification", ["--target-modules", "q_proj"], {"q_proj": 1}),
    ],
)
def test_the_task_and_the_adapted_modules_are_those_of_the_config(
    build: Any, architecture: str, options: list[str], sites: dict[str, int], tmp_path: Path, capsys: Any
) -> None:
    source = saved(build().config, tmp_path, architecture)
    capsys.readouterr()
    assert main(["explain", source, "--length", "8", "--batch", "2", "--json", *options]) == 0
    out, err = capsys.readouterr()
    found = [site["name"].rsplit(".", 1)[1] for graph in json.loads(out)["graphs"] for site in graph["sites"]]
    assert Counter(found) == sites
    assert err == ""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--target-modules", "nonsense"], ["PEFT finds none of nonsense", "q_proj"]),
        (["--target-modules", "input_layernorm"], ["PEFT cannot adapt input_layernorm", "LlamaRMSNorm"]),
        (["--device", "nodevice"], ["device 'nodevice' cannot be used", "Give meta, cpu"]),
        (["--dtype", "int8"], ["dtype 'int8'", "bfloat16"]),
        (["--dtype", "float17"], ["dtype 'float17'", "bfloat16"]),
    ],
)
def test_a_bad_option_is_one_paragraph(folder: str, options: list[str], told: list[str], capsys: Any) -> None:
    assert main(["explain", folder, *options]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("skiplora explain: ")
    assert len(err.splitlines()) == 1
    assert all(text in err for text in told)


@pytest.mark.parametrize("option", ["--r", "--batch", "--length", "--layers"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_count_is_at_least_1(option: str, value: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["explain", "a-model", f"{option}={value}"])
    assert raised.value.code == 2
    assert f"argument {option}: must be a whole number of at least 1, got '{value}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ('{"model_type":', "not a valid JSON file"),
        ('{"hidden_size": 4}', "model_type"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "hidden_size"),
        ('{"model_type": "encodec", "architectures": ["EncodecModel"]}', "transformers has no causal language model"),
        ('{"model_type": "vit", "num_hidden_layers": 1}', "PEFT does not know which modules"),
        ('{"model_type": "llama", "num_hidden_layers": 1, "hidden_act": "no"}', "transformers cannot build a model"),
    ],
)
def test_a_bad_config_is_one_paragraph(config: str, told: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.json").write_text(config)
    assert main(["explain", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert told in err
    assert len(err.splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_the_machine_lacks(folder: str, capsys: Any) -> None:
    assert main(["explain", folder, "--device", "cuda"]) == 1
    assert "device 'cuda' cannot be used" in capsys.readouterr().err
