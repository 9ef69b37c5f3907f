"""How much memory does a step take, and how near is that to the limit?

Measures the peak of one forward and backward of the PEFT Llama of ``speed.py``, above what is held before it (weights
and batch), for

    inductor        torch.compile as it is
    oracle          the same, compiled with exactly the skipped adapters frozen
    skiplora        this backend, decision="current" and "previous", its gates forced open or shut

Nothing is timed, and the figures are the same in each run: on CUDA they are the allocator's peak; on the CPU its events
as ``torch.profiler`` records them, in compiled code too, summed up.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import speed
import torch
from peft.tuners.lora import LoraLayer
from tabulate import tabulate
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import skiplora_fx

MASKS = ("nothing", "lower half")
DECISIONS = ("current", "previous")


@dataclass(frozen=True)
class Row:
    """One line of the table: a runner's peak under a mask, bytes, and its ratio to the reference's."""

    skipped: str
    runner: str
    peak: int
    ratio: float
    against: str


def main() -> None:
    """Run the benchmark."""
    args = _arguments()
    torch.manual_seed(args.seed)
    model, batch = speed.build(args)
    if args.checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    sites = [name for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    print(_headline(args, len(sites)), flush=True)
    rows = measure(model, batch, sites, args)
    cells = [[row.skipped, row.runner, f"{row.peak / 2**20:.2f}", f"{row.ratio:.3f}", row.against] for row in rows]
    headers = ["skipped", "runner", "peak MiB", "ratio", "ratio to"]
    print(tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True))
    if args.json:
        report = {"arguments": {name: str(value) for name, value in vars(args).items()}, "rows": rows}
        Path(args.json).write_text(json.dumps(report, default=asdict, indent=1) + "\n")


def measure(model: nn.Module, batch: dict[str, Tensor], sites: list[str], args: argparse.Namespace) -> list[Row]:
    """Return a row for each mask and runner."""
    masks = {mask: speed.shut_sites(mask, sites, args.seed) for mask in args.masks}
    references = {mask: peak_of_frozen(model, batch, shut, args.device) for mask, shut in masks.items()}
    names = {mask: "oracle" if shut else "inductor" for mask, shut in masks.items()}
    rows = [Row(mask, names[mask], peak, 1.0, names[mask]) for mask, peak in references.items()]
    for decision in args.decisions:
        for mask, peak in peaks_of_gated(model, batch, masks, decision, args).items():
            rows.append(Row(mask, f"skiplora, {decision}", peak, peak / references[mask], names[mask]))
    return sorted(rows, key=lambda row: args.masks.index(row.skipped))


def peak_of_frozen(model: nn.Module, batch: dict[str, Tensor], shut: Iterable[str], device: str) -> int:
    """Return the peak of Inductor's step with the sites ``shut`` frozen, bytes."""
    torch.compiler.reset()
    frozen = copy.deepcopy(model)
    for name in shut:
        frozen.get_submodule(name).requires_grad_(False)
    frozen.compile(backend="inductor")
    return _settled_peak(frozen, batch, device)


def peaks_of_gated(
    model: nn.Module, batch: dict[str, Tensor], masks: dict[str, set[str]], decision: str, args: argparse.Namespace
) -> dict[str, int]:
    """Return the peak of this backend's step under each mask, bytes."""
    torch.compiler.reset()
    gated = copy.deepcopy(model)
    options = {"threshold": 0.0, "warmup_steps": 0, "probe_every": 0, "scope": args.scope, "decision": decision}
    gated.compile(backend="skiplora", options=options)
    peaks = {}
    step(gated, batch)
    for mask, shut in masks.items():
        skiplora_fx.set_threshold(gated, 0.0)
        for name in shut:
            skiplora_fx.set_threshold(gated, math.inf, name)
        peaks[mask] = _settled_peak(gated, batch, args.device)
    return peaks


def step(model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Run a forward and a backward."""
    model(**batch).loss.backward()


def _settled_peak(model: nn.Module, batch: dict[str, Tensor], device: str) -> int:
    # The first steps compile, and what the last step found decides the next where decisions are held.
    for _ in range(3):
        step(model, batch)
        model.zero_grad(set_to_none=True)
    return peak_of(lambda: step(model, batch), device)


def peak_of(run: Callable[[], Any], device: str) -> int:
    """Return the most that ``run`` holds at once above what is held before it, bytes."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    return max(accumulate(_changes(profiled), initial=0))


def _changes(profiled: profile) -> list[int]:
    """Return what each event of the CPU's allocator added to what is held, in order, bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "trace.json")
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [event["args"] for event in events if event.get("name") == "[memory]"]
    return [change["Bytes"] for change in sorted(changes, key=lambda change: change["Ev Idx"])]


def _headline(args: argparse.Namespace, adapters: int) -> str:
    return (
        f"Llama, {args.layers} layers, {args.dim} wide, {args.batch} x {args.length} tokens, {args.dtype}, "
        f"{adapters} adapters of rank {args.rank} on {args.targets}, scope {args.scope}, "
        f"{'with' if args.checkpointing else 'without'} checkpointing; {args.device}, torch {torch.__version__}\n"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--layers", type=int, default=8, help="decoder layers (default: %(default)s)")
    add("--dim", type=int, default=256, help="hidden size, a multiple of 64 (default: %(default)s)")
    add("--batch", type=int, default=4, help="sequences in a batch (default: %(default)s)")
    add("--length", type=int, default=128, help="tokens in a sequence (default: %(default)s)")
    add("--rank", type=int, default=8, help="rank of the adapters (default: %(default)s)")
    add("--targets", choices=speed.TARGETS, default="qv", help="which linears are adapted (default: %(default)s)")
    add("--scope", choices=("adapter", "layer"), default="adapter", help="what a gate detaches (default: %(default)s)")
    add("--checkpointing", action="store_true", help="with activation checkpoints around the layers")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--dtype", choices=speed.DTYPES, default="float32", help="of the base model (default: %(default)s)")
    add("--masks", nargs="+", choices=MASKS, default=list(MASKS), help="what is skipped (default: both)")
    add("--decisions", nargs="+", choices=DECISIONS, default=list(DECISIONS), help="when it is decided (default: both)")
    add("--seed", type=int, default=0, help="of weights and tokens (default: %(default)s)")
    add("--json", metavar="FILE", help="write the figures and arguments there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
