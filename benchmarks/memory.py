"""How much memory does a step take, and how near is that to the limit?

Measures the peak of one forward and backward of the PEFT Llama of ``speed.py``, above what is held before it (weights
and batch), for

    inductor        torch.compile as it is
    oracle          the same, compiled with exactly the skipped adapters frozen; none where that leaves no backward
    skiplora        this backend, decision="current" and "previous", its gates forced open or shut

Nothing is timed, and the figures are the same in each run: on CUDA they are the allocator's peak; on the CPU its events
as ``torch.profiler`` records them, in compiled code too, summed up.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from speed_parts.arguments import add_shape, described, parse
from speed_parts.masks import MASKS, shut_sites
from speed_parts.models import build, sites_of
from speed_parts.rows import write_report
from speed_parts.runners import VARIANTS, Runner, force, frozen, gated
from tabulate import tabulate
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

USUAL_MASKS = ("nothing", "lower half", "everything")
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
    model, batch = build(args)
    sites = sites_of(model)
    print(f"{described(args, len(sites))}; {args.device}, torch {torch.__version__}\n", flush=True)
    rows = measure(model, batch, sites, args)
    cells = [[row.skipped, row.runner, f"{row.peak / 2**20:.2f}", f"{row.ratio:.3f}", row.against] for row in rows]
    headers = ["skipped", "runner", "peak MiB", "ratio", "ratio to"]
    print(tabulate(cells, headers=headers, tablefmt="github", disable_numparse=True))
    write_report(args, rows)


def measure(model: PeftModel, batch: dict[str, Tensor], sites: list[str], args: argparse.Namespace) -> list[Row]:
    """Return a row for each mask and runner."""
    masks = {mask: shut_sites(mask, sites, args.seed) for mask in args.masks}
    left_frozen = {mask: frozenset(shut if len(shut) < len(sites) else ()) for mask, shut in masks.items()}
    peaks = {shut: peak_of_frozen(model, batch, shut, args.device) for shut in dict.fromkeys(left_frozen.values())}
    references = {mask: peaks[shut] for mask, shut in left_frozen.items()}
    names = {mask: "oracle" if shut else "inductor" for mask, shut in left_frozen.items()}
    rows = [Row(mask, names[mask], peak, 1.0, names[mask]) for mask, peak in references.items()]
    for decision in args.decisions:
        for mask, peak in peaks_of_gated(model, batch, masks, decision, args).items():
            rows.append(Row(mask, f"{args.variant}, {decision}", peak, peak / references[mask], names[mask]))
    return sorted(rows, key=lambda row: args.masks.index(row.skipped))


def peak_of_frozen(model: PeftModel, batch: dict[str, Tensor], shut: Collection[str], device: str) -> int:
    """Return the peak of Inductor's step with the sites ``shut`` frozen, bytes."""
    torch.compiler.reset()
    return settled_peak(frozen(model, shut, batch), device)


def peaks_of_gated(
    model: PeftModel, batch: dict[str, Tensor], masks: dict[str, set[str]], decision: str, args: argparse.Namespace
) -> dict[str, int]:
    """Return the peak of this backend's step under each mask, bytes."""
    torch.compiler.reset()
    variant = VARIANTS[args.variant]
    variant = replace(variant, options={**variant.options, "decision": decision})
    runner = gated("skiplora", model, batch, args, variant)
    runner.step()
    peaks = {}
    for mask, shut in masks.items():
        force(runner, shut)
        peaks[mask] = settled_peak(runner, args.device)
    return peaks


def settled_peak(runner: Runner, device: str) -> int:
    """Return the peak of a runner's step once its steps are alike, bytes."""
    # The first steps compile, and what the last step found decides the next where decisions are held.
    for _ in range(3):
        runner.step()
    runner.model.zero_grad(set_to_none=True)
    return peak_of(runner.step, device)


def peak_of(run: Callable[[], Any], device: str) -> int:
    """Return the most that ``run`` holds at once above what is held before it, bytes."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    add: Callable[..., Any] = parser.add_argument
    add("--masks", nargs="+", choices=MASKS, default=list(USUAL_MASKS), help="what is skipped (default: three)")
    add("--decisions", nargs="+", choices=DECISIONS, default=list(DECISIONS), help="when it is decided (default: both)")
    add("--variant", choices=VARIANTS, default="skiplora", help="of this backend (default: %(default)s)")
    add("--json", metavar="FILE", help="write the figures and arguments there")
    return parse(parser)


if __name__ == "__main__":
    main()
