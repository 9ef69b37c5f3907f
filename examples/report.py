"""The tables at the end: what was skipped, what it did to the loss, what it saved."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean

from judge import Marks
from tabulate import tabulate
from trainer import pace
from tune import Run

from skiplora_fx import SiteState

NUMBERED_LAYER = re.compile(r"(.*?\.(\d+))\.(.+)")
"""A module's path: that of its transformer layer, the layer's number, the module's place in there."""

SETTLED = 3
"""Steps at the beginning that may compile, and belong in no median."""


def layer_table(sites: Sequence[SiteState]) -> str:
    """Return a row for each layer: the last ratio of each of its adapters, τ, and how often they were skipped."""
    if not sites:
        return "None could be gated."
    layers: dict[str, dict[str, SiteState]] = defaultdict(dict)
    for site in sites:
        layer, place = _locate(site.name)
        layers[layer][place] = site
    places = list(dict.fromkeys(place for layer in layers.values() for place in layer))
    rows = [
        [name, *(_ratio(layer.get(place)) for place in places), _thresholds(layer), _skipped(list(layer.values()))]
        for name, layer in zip(_short(list(layers)), layers.values(), strict=True)
    ]
    headers = ["layer", *(f"M {place}" for place in places), "τ", "skipped"]
    table = tabulate(rows, headers, disable_numparse=True, stralign="right")
    return f"{table}\n\nSkipped: {_skipped(sites)} of what the {len(sites)} adapters would have run after the warm-up."


def loss_table(marks: Mapping[str, Marks]) -> str:
    """Return a row for each model: its loss on held-out text, and what else it is marked by."""
    classifies = any(mark.accuracy is not None for mark in marks.values())
    rows = [
        [name, f"{mark.loss:.4f}", f"{mark.accuracy:.1%}" if mark.accuracy is not None else f"{_perplexity(mark):.1f}"]
        for name, mark in marks.items()
    ]
    headers = ["model", "held-out loss", "accuracy" if classifies else "perplexity"]
    return tabulate(rows, headers, disable_numparse=True, colalign=("left", "right", "right"))


def time_table(runs: Sequence[Run], warmup_steps: int) -> str:
    """Return a row for each run: its first step, which compiles, and its medians in the warm-up and after it.

    In the warm-up nothing is skipped: what the backends differ by there is overhead, or other programs' work.
    """
    spans = (slice(SETTLED, warmup_steps), slice(warmup_steps, None))
    medians = [[seconds for span in spans for seconds in pace(run.times[span])] for run in runs]
    rows = [
        [run.backend, f"{run.times[0].gradients - run.times[0].start:.1f} s", *map(_milliseconds, own)]
        for run, own in zip(runs, medians, strict=True)
    ]
    if len(runs) == 2:
        rows.append([f"{runs[0].backend} / {runs[1].backend}", "", *map(_quotient, *medians)])
    headers = ["backend", "first step", "backward\nin warm-up", "step\nin warm-up", "backward\nafter", "step\nafter"]
    return tabulate(rows, headers, disable_numparse=True, colalign=("left", *["right"] * 5))


def _locate(name: str) -> tuple[str, str]:
    found = NUMBERED_LAYER.fullmatch(name)
    return (found[1], found[3]) if found else ("-", name)


def _short(layers: list[str]) -> list[str]:
    """Return the layers' numbers alone, where these tell them apart (in an encoder with a decoder they do not)."""
    numbers = [layer.rpartition(".")[2] for layer in layers]
    return numbers if len(set(numbers)) == len(numbers) else layers


def _ratio(site: SiteState | None) -> str:
    return "" if site is None or math.isnan(site.ratio) else f"{site.ratio:.4f}"


def _thresholds(layer: Mapping[str, SiteState]) -> str:
    return ", ".join(f"{threshold:g}" for threshold in sorted({site.threshold for site in layer.values()}))


def _skipped(sites: Sequence[SiteState]) -> str:
    return f"{fmean(site.skip_rate for site in sites):.0%}"


def _perplexity(mark: Marks) -> float:
    return math.exp(min(mark.loss, 100.0))


def _milliseconds(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{1000 * seconds:.1f} ms"


def _quotient(one: float, other: float) -> str:
    return "-" if math.isnan(one / other) else f"{one / other:.2f}"
