"""How much time does skipping save, and how near is that to the limit?

Compares, in one process and in interleaved rounds, the forward and the backward of one PEFT Llama

    inductor        torch.compile as it is
    oracle          the same, compiled with exactly the skipped adapters frozen: what skipping could save
    eager detach    no compiler, ``.detach()`` behind a Python ``if``: what a user would write
    skiplora        this backend, its gates forced open or shut
    skiplora merged the same with merge_siblings=True, if asked for

for three masks: nothing skipped, the lower half of the layers skipped, a random 60 % of the adapters skipped.
Prints a table of medians, and writes it to a JSON file if asked, with every sample. Ratios are taken within a round, so
that a slow moment of the machine hits both sides.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from tabulate import tabulate
from torch import Tensor, nn
from torch._inductor.utils import fresh_cache
from transformers import LlamaConfig, LlamaForCausalLM

import skiplora_fx

TARGETS = {"qv": ["q_proj", "v_proj"], "mlp": ["gate_proj", "up_proj", "down_proj"], "all": "all-linear"}
MASKS = ("nothing", "lower half", "random 60 %")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Sample:
    """Seconds of one step."""

    forward: float
    backward: float


@dataclass(frozen=True)
class Row:
    """One line of the table: a runner under a mask, in medians over the rounds, seconds."""

    skipped: str
    runner: str
    compile_s: float | None
    forward_s: float
    backward_s: float
    forward_ratio: float
    backward_ratio: float
    against: str
    samples: list[Sample]


class Runner:
    """A model and how to run it; compiled runners compile at the first step."""

    def __init__(self, name: str, model: nn.Module, batch: dict[str, Tensor]) -> None:
        self.name = name
        self.model = model
        self.samples: list[Sample] = []
        self.compile_s: float | None = None
        self._batch = batch

    def step(self) -> Sample:
        """Run a forward and a backward; return the time of each."""
        self.model.zero_grad(set_to_none=True)
        start = _now()
        loss = self.model(**self._batch).loss
        middle = _now()
        if loss.requires_grad:  # nothing does when every adapter is detached eagerly
            loss.backward()
        return Sample(middle - start, _now() - middle)

    def warm_up(self, steps: int) -> None:
        """Run ``steps`` untimed; the first of them compiles, with nothing on disk from an earlier compile."""
        with fresh_cache():
            start = _now()
            self.step()
            self.compile_s = _now() - start
        for _ in range(steps - 1):
            self.step()


def main() -> None:
    """Run the benchmark."""
    args = _arguments()
    _start_compiler(args)
    torch.manual_seed(args.seed)
    model, batch = build(args)
    names = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    print(_headline(args, len(names)), flush=True)
    rows = [row for mask in args.masks for row in measure(mask, names, model, batch, args)]
    print(tabulate([_cells(row) for row in rows], headers=_HEADERS, tablefmt="github", disable_numparse=True))
    if args.json:
        report = {
            "arguments": {k: str(v) for k, v in vars(args).items()},
            "machine": _machine(args.device),
            "rows": rows,
        }
        Path(args.json).write_text(json.dumps(report, default=asdict, indent=1) + "\n")


def build(args: argparse.Namespace) -> tuple[PeftModel, dict[str, Tensor]]:
    """Return a Llama with adapters that are not zero, and a batch of random tokens for it."""
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=args.dim,
        intermediate_size=args.dim * 11 // 4,
        num_hidden_layers=args.layers,
        num_attention_heads=max(1, args.dim // 64),
        num_key_value_heads=max(1, args.dim // 64),
        max_position_embeddings=args.length,
        use_cache=False,
    )
    base = LlamaForCausalLM(config).to(DTYPES[args.dtype])
    lora = LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=TARGETS[args.targets])
    model = get_peft_model(base, lora).to(args.device).train()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    ids = torch.randint(1024, (args.batch, args.length), device=args.device)
    return model, {"input_ids": ids, "labels": ids}


def measure(
    mask: str, names: list[str], model: PeftModel, batch: dict[str, Tensor], args: argparse.Namespace
) -> Iterator[Row]:
    """Measure every runner under one mask, and yield the table's rows for it."""
    shut = shut_sites(mask, names, args.seed)
    torch.compiler.reset()
    runners = [_skiplora(model, shut, batch, args), _frozen(model, shut, batch)]
    if args.merged:
        runners.append(_skiplora(model, shut, batch, args, merged=True))
    if args.eager:
        runners.append(_eager(model, shut, args.scope, batch))
    for runner in runners:
        runner.warm_up(args.warmup)
    for runner in runners:
        if shut and runner.name.startswith("skiplora"):
            _force(runner.model, shut)
            runner.step()
    for index in range(args.rounds):
        for runner in runners[index % len(runners) :] + runners[: index % len(runners)]:
            runner.samples.append(runner.step())
    yield from _rows(mask, runners)
    del runners
    gc.collect()


def _start_compiler(args: argparse.Namespace) -> None:
    """Compile one such layer, so that the first runner does not pay for what a process does only once."""
    one_layer = argparse.Namespace(**{**vars(args), "layers": 1})
    model, batch = build(one_layer)
    model.compile(backend="inductor")
    with fresh_cache():
        model(**batch).loss.backward()


def shut_sites(mask: str, names: list[str], seed: int) -> set[str]:
    """Return the sites that ``mask`` skips."""
    if mask == "nothing":
        return set()
    if mask == "lower half":
        return set(names[: len(names) // 2])
    return set(random.Random(seed).sample(names, round(0.6 * len(names))))


def _skiplora(
    model: PeftModel, shut: set[str], batch: dict[str, Tensor], args: argparse.Namespace, merged: bool = False
) -> Runner:
    gated = copy.deepcopy(model)
    options = {"threshold": 0.0, "warmup_steps": 0, "probe_every": 0, "scope": args.scope}
    gated.compile(backend="skiplora", options={**options, "merge_siblings": merged})
    return Runner("skiplora merged" if merged else "skiplora", gated, batch)


def _force(model: nn.Module, shut: set[str]) -> None:
    for name in shut:
        skiplora_fx.set_threshold(model, math.inf, name)


def _frozen(model: PeftModel, shut: set[str], batch: dict[str, Tensor]) -> Runner:
    frozen = copy.deepcopy(model)
    for name, module in frozen.named_modules():
        if name in shut:
            module.requires_grad_(False)
    frozen.compile(backend="inductor")
    return Runner("oracle" if shut else "inductor", frozen, batch)


def _eager(model: PeftModel, shut: set[str], scope: str, batch: dict[str, Tensor]) -> Runner:
    eager = copy.deepcopy(model)
    for name, module in eager.named_modules():
        if name in shut:
            detached = module if scope == "layer" else module.lora_B["default"]
            detached.register_forward_hook(lambda module, inputs, output: output.detach())
    return Runner("eager detach", eager, batch)


def _rows(mask: str, runners: list[Runner]) -> Iterator[Row]:
    reference = runners[1]
    for runner in runners:
        yield Row(
            mask,
            runner.name,
            None if runner.name == "eager detach" else runner.compile_s,
            statistics.median(sample.forward for sample in runner.samples),
            statistics.median(sample.backward for sample in runner.samples),
            _ratio(runner, reference, lambda sample: sample.forward),
            _ratio(runner, reference, lambda sample: sample.backward),
            reference.name,
            runner.samples,
        )


def _ratio(runner: Runner, reference: Runner, part: Callable[[Sample], float]) -> float:
    pairs = zip(runner.samples, reference.samples, strict=True)
    return statistics.median(part(mine) / part(theirs) for mine, theirs in pairs)


_HEADERS = ["skipped", "runner", "compile s", "forward ms", "backward ms", "fwd ratio", "bwd ratio", "ratio to"]


def _cells(row: Row) -> list[str]:
    return [
        row.skipped,
        row.runner,
        "" if row.compile_s is None else f"{row.compile_s:.1f}",
        f"{1e3 * row.forward_s:.1f}",
        f"{1e3 * row.backward_s:.1f}",
        f"{row.forward_ratio:.2f}",
        f"{row.backward_ratio:.2f}",
        row.against,
    ]


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def _headline(args: argparse.Namespace, adapters: int) -> str:
    return (
        f"Llama, {args.layers} layers, {args.dim} wide, {args.batch} x {args.length} tokens, {args.dtype}, "
        f"{adapters} adapters of rank {args.rank} on {args.targets}, scope {args.scope}; {_machine(args.device)}; "
        f"medians of {args.rounds} interleaved rounds\n"
    )


def _machine(device: str) -> str:
    on_gpu = torch.device(device).type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--layers", type=int, default=8, help="decoder layers (default: %(default)s)")
    add("--dim", type=int, default=256, help="hidden size, a multiple of 64 (default: %(default)s)")
    add("--batch", type=int, default=4, help="sequences in a batch (default: %(default)s)")
    add("--length", type=int, default=128, help="tokens in a sequence (default: %(default)s)")
    add("--rank", type=int, default=8, help="rank of the adapters (default: %(default)s)")
    add("--targets", choices=TARGETS, default="qv", help="which linears are adapted (default: %(default)s)")
    add("--scope", choices=("adapter", "layer"), default="adapter", help="what a gate detaches (default: %(default)s)")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="of the base model (default: %(default)s)")
    add("--masks", nargs="+", choices=MASKS, default=list(MASKS), help="what is skipped (default: all three)")
    add("--rounds", type=int, default=30, help="timed rounds (default: %(default)s)")
    add("--warmup", type=int, default=3, help="untimed steps of each runner (default: %(default)s)")
    add("--no-eager", dest="eager", action="store_false", help="leave eager detach out")
    add("--merged", action="store_true", help="also with merge_siblings=True")
    add("--seed", type=int, default=0, help="of weights, tokens and the random mask (default: %(default)s)")
    add("--json", metavar="FILE", help="write medians, ratios, samples and arguments there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
