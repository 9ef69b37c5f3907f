"""How long an eager step of a graph gated by ``skiplora_fx.apply`` takes, against the eager model it was traced from.

Rows: the model as it is; the gated graph with every gate open, the lower half shut, all shut; the model with its
lower half frozen, which is what the second could at best be. Interleaved, medians, one process.

    python benchmarks/apply.py --layers 8 --width 512 --rounds 20
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable

import torch
from peft import LoraConfig, get_peft_model
from tabulate import tabulate
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import skiplora_fx


class Loss(nn.Module):
    """The model as a function of its tokens, with tensors only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(input_ids=tokens, labels=tokens).loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()

    torch.manual_seed(0)
    model = build(options.layers, options.width)
    tokens = torch.randint(0, 1000, (1, options.length))
    gated = skiplora_fx.apply(
        torch.export.export(model, (tokens,)), tokens, threshold=0.0, warmup_steps=0, probe_every=0
    )
    names = [site.name for site in skiplora_fx.sites(gated)]
    lower = names[: len(names) // 2]
    rows = {
        "eager": lambda: step(model, tokens),
        "gated, all open": lambda: step(shut(gated, names, []), tokens),
        "gated, lower half shut": lambda: step(shut(gated, names, lower), tokens),
        "eager, lower half frozen": (lambda frozen: lambda: step(frozen, tokens))(freeze(model, lower)),
        "gated, all shut": lambda: step(shut(gated, names, names), tokens),
    }
    print(table(measure(rows, options.rounds)))


def build(layers: int, width: int) -> nn.Module:
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        use_cache=False,
    )
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=8, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return Loss(model).train()


def freeze(model: nn.Module, names: list[str]) -> nn.Module:
    frozen = copy.deepcopy(model)
    for name in names:
        frozen.get_submodule(name).requires_grad_(False)
    return frozen


def shut(gated: nn.Module, names: list[str], chosen: list[str]) -> nn.Module:
    for name in names:
        skiplora_fx.set_threshold(gated, math.inf if name in chosen else 0.0, sites=name)
    return gated


def step(model: nn.Module, tokens: Tensor) -> tuple[float, float]:
    """Return the seconds of a forward and of its backward."""
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    loss = model(tokens)
    middle = time.perf_counter()
    if loss.requires_grad:
        loss.backward()
    return middle - start, time.perf_counter() - middle


def measure(rows: dict[str, Callable[[], tuple[float, float]]], rounds: int) -> dict[str, tuple[float, float]]:
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for number in range(rounds + 2):
        for name, run in rows.items():
            sample = run()
            if number >= 2:  # the first two warm up
                samples[name].append(sample)
    return {name: tuple(map(statistics.median, zip(*taken, strict=True))) for name, taken in samples.items()}


def table(medians: dict[str, tuple[float, float]]) -> str:
    forward, backward = medians["eager"]
    rows = [
        (name, f"{1000 * f:.1f} ms", f"{f / forward:.2f}x", f"{1000 * b:.1f} ms", f"{b / backward:.2f}x")
        for name, (f, b) in medians.items()
    ]
    return tabulate(rows, headers=["", "forward", "of eager", "backward", "of eager"])


if __name__ == "__main__":
    main()
