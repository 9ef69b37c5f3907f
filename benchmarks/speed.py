"""How much time does skipping save, and how near is that to the limit?

Compares, in one process and in interleaved rounds, the forward and the backward of one PEFT Llama

    skiplora        this backend, its gates forced open or shut
    oracle          torch.compile, with exactly the skipped adapters frozen: what skipping could save
    inductor        torch.compile as it is: the oracle where nothing is skipped
    eager detach    no compiler, ``.detach()`` behind a Python ``if``: what a user would write
    eager           no compiler, nothing skipped
    skiplora merged, skiplora outlined    this backend with merge_siblings=True, with outline_layers=True
    skiplora by layer, oracle by layer, inductor by layer    each layer compiled by itself, and what is around them not;
                    this backend with decision="previous"

under masks such as: nothing skipped, the lower half of the layers skipped, a random 60 % of the adapters skipped.
Prints a table of medians, and writes it to a JSON file if asked, with every sample. Ratios are taken within a round, so
that a slow moment of the machine hits both sides. All runners share the frozen weights.

    python benchmarks/speed.py --preset llama-2-7b --targets all --arms skiplora oracle inductor "eager detach" eager
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import PeftModel
from speed_parts.arguments import add_shape, described, parse
from speed_parts.masks import MASKS, shut_sites
from speed_parts.models import build, sites_of
from speed_parts.rows import HEADERS, Row, cells, machine, rows, write_report
from speed_parts.runners import BY_LAYER, VARIANTS, Runner, Sample, detached, eager, force, frozen, gated
from tabulate import tabulate
from torch import Tensor
from torch._inductor.utils import fresh_cache

ARMS = (*VARIANTS, "oracle", f"oracle{BY_LAYER}", "inductor", f"inductor{BY_LAYER}", "eager detach", "eager")
USUAL_ARMS = ("skiplora", "oracle", "eager detach")
USUAL_MASKS = ("nothing", "lower half", "random 60 %")


def main() -> None:
    """Run the benchmark."""
    args = _arguments()
    _start_compiler(args)
    torch.manual_seed(args.seed)
    model, batch = build(args)
    shape = described(args, len(sites_of(model)))
    print(f"{shape}; {machine(args.device)}; medians of {args.rounds} interleaved rounds\n", flush=True)
    found = list(Bench(model, batch, args).rows())
    print(tabulate([cells(row) for row in found], headers=HEADERS, tablefmt="github", disable_numparse=True))
    write_report(args, found)


class Bench:
    """Measures every arm under every mask. What serves more than one mask is compiled once."""

    def __init__(self, model: PeftModel, batch: dict[str, Tensor], args: argparse.Namespace) -> None:
        self._model = model
        self._batch = batch
        self._args = args
        self._names = sites_of(model)
        self._kept: dict[str, Runner] = {}

    def rows(self) -> Iterator[Row]:
        """Yield the rows of each mask in turn."""
        torch.compiler.reset()
        # Each oracle is one more graph of the same code; the limit is meant for models that never settle.
        with torch._dynamo.config.patch(recompile_limit=8 + 2 * len(MASKS)):
            for mask in self._args.masks:
                yield from rows(mask, self._measure(shut_sites(mask, self._names, self._args.seed)))
                gc.collect()

    def _measure(self, shut: set[str]) -> dict[Runner, list[Sample]]:
        samples: dict[Runner, list[Sample]] = {runner: [] for runner in self._runners(shut)}
        order = list(samples)
        for index in range(self._args.rounds):
            for runner in order[index % len(order) :] + order[: index % len(order)]:
                samples[runner].append(runner.step())
        return samples

    def _runners(self, shut: set[str]) -> Iterator[Runner]:
        """Yield what runs under a mask, compiled and warm."""
        arms = self._args.arms
        for arm in VARIANTS:
            if arm in arms:
                yield self._gated(arm, shut)
        has_backward = len(shut) < len(self._names)
        if shut and has_backward and "oracle" in arms:
            yield self._warm(frozen(self._model, shut, self._batch))
        if not shut or not has_backward or "oracle" not in arms or "inductor" in arms:
            yield self._keep("inductor", lambda: frozen(self._model, set(), self._batch))
        if shut and has_backward and f"oracle{BY_LAYER}" in arms:
            yield self._warm(frozen(self._model, shut, self._batch, by_layer=True))
        if f"inductor{BY_LAYER}" in arms:
            yield self._keep(f"inductor{BY_LAYER}", lambda: frozen(self._model, set(), self._batch, by_layer=True))
        if "eager detach" in arms:
            yield self._warm(detached(self._model, shut, self._args.scope, self._batch))
        if "eager" in arms:
            yield self._keep("eager", lambda: eager(self._model, self._batch))

    def _gated(self, arm: str, shut: set[str]) -> Runner:
        runner = self._keep(arm, lambda: gated(arm, self._model, self._batch, self._args, VARIANTS[arm]))
        force(runner, shut)
        runner.step()
        return runner

    def _keep(self, name: str, make: Callable[[], Runner]) -> Runner:
        if name not in self._kept:
            self._kept[name] = self._warm(make())
        return self._kept[name]

    def _warm(self, runner: Runner) -> Runner:
        runner.warm_up(self._args.warmup)
        return runner


def _start_compiler(args: argparse.Namespace) -> None:
    """Compile one such layer, so that the first runner does not pay for what a process does only once."""
    one_layer = argparse.Namespace(**{**vars(args), "layers": 1})
    model, batch = build(one_layer)
    model.compile(backend="inductor")
    with fresh_cache():
        model(**batch).loss.backward()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape(parser)
    add: Callable[..., Any] = parser.add_argument
    add("--masks", nargs="+", choices=MASKS, default=list(USUAL_MASKS), help="what is skipped (default: %(default)s)")
    add("--arms", nargs="+", choices=ARMS, default=list(USUAL_ARMS), help="what is compared (default: %(default)s)")
    add("--rounds", type=int, default=30, help="timed rounds (default: %(default)s)")
    add("--warmup", type=int, default=3, help="untimed steps of each runner (default: %(default)s)")
    add("--no-eager", dest="eager", action="store_false", help="leave out what is not compiled")
    add("--json", metavar="FILE", help="write medians, ratios, samples and arguments there")
    args = parse(parser)
    if not args.eager:
        args.arms = [arm for arm in args.arms if not arm.startswith("eager")]
    return args


if __name__ == "__main__":
    main()
