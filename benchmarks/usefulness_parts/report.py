"""The tables and the picture."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from quality_parts.estimates import Estimate, estimate
from quality_parts.report import said
from tabulate import tabulate

from .predictors import (
    PREDICTORS,
    Predictor,
    When,
    among_depths,
    among_sites,
    over_the_run,
    per_flop,
    share_error,
    shares,
    whens,
)
from .record import Drops, Probe, Record

Score = Callable[[Record, Predictor, When], float]


def report(folder: Path, records: Sequence[Record], every: int) -> str:
    """Return the tables as Markdown, and write them to ``table.md`` and the picture to ``drops.png`` in the folder.

    Args:
        folder: of results.
        records: of one task, with the same sites and probes at the same steps.
        every: steps between those.
    """
    text = "\n\n".join(
        [
            "Rank correlation with the held-out drop of each site's update alone, over the sites of a step:",
            _sites(records, every),
            "Over the depths of a truncation, for each FLOP that it saves: with what the lowest blocks' updates bring "
            "alone, and with what is lost without them; and by how much the share of it is told wrongly, in the mean:",
            _depths(records, every),
            "Share of a step's held-out drop that is lost without the lowest blocks' updates, and that those bring "
            "alone:",
            _lost(records),
        ]
    )
    (folder / "table.md").write_text(text + "\n")
    draw(records, folder / "drops.png")
    return text


def _sites(records: Sequence[Record], every: int) -> str:
    times = whens(every)
    scores: dict[str, tuple[Score, When]] = {when.what: (partial(among_sites, of=_held_out), when) for when in times}
    scores["own batch, same step"] = (partial(among_sites, of=_own), times[0])
    scores["per FLOP, same step"] = (per_flop, times[0])
    scores["over the run, same step"] = (over_the_run, times[0])
    scores[f"over the run, {times[2].what}"] = (over_the_run, times[2])
    return _table(records, scores)


def _depths(records: Sequence[Record], every: int) -> str:
    now, _, _, old = whens(every)
    scores: dict[str, tuple[Score, When]] = {}
    for name, of in {"alone": _below, "lost": _lost_held_out}.items():
        scores[f"{name}, {now.what}"] = (partial(among_depths, of=of), now)
        scores[f"{name}, {old.what}"] = (partial(among_depths, of=of), old)
        scores[f"{name}, share off by"] = (partial(share_error, of=of), now)
    return _table(records, scores)


def _table(records: Sequence[Record], scores: dict[str, tuple[Score, When]]) -> str:
    rows = [
        [
            predictor.what,
            *(
                said(estimate([of(record, predictor, when) for record in records]), ".2f")
                for of, when in scores.values()
            ),
        ]
        for predictor in PREDICTORS
    ]
    return tabulate(rows, headers=["statistic", *scores], tablefmt="github", disable_numparse=True)


def _lost(records: Sequence[Record]) -> str:
    costs = records[0].costs
    columns = {
        "lost without them": shares(records, _lost_held_out),
        "first third": shares(records, _lost_held_out, 0),
        "second": shares(records, _lost_held_out, 1),
        "last": shares(records, _lost_held_out, 2),
        "own batch": shares(records, _lost_own),
        "they alone": shares(records, _below),
    }
    saved = [flops / costs.backward for flops in costs.truncated()]
    columns["kept for each FLOP of a step"] = [
        _rate(lost, share) for lost, share in zip(columns["lost without them"], saved, strict=True)
    ]
    rows = [
        [str(depth + 1), f"{share:.2f}", *(said(column[depth], ".2f") for column in columns.values())]
        for depth, share in enumerate(saved)
    ]
    headers = ["blocks truncated", "backward FLOPs saved", *columns]
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)


def _rate(lost: Estimate, saved: float) -> Estimate:
    """Return what is kept for each FLOP of a step, as a ratio to full LoRA's.

    Args:
        lost: share of the drop.
        saved: share of the backward, which has as many FLOPs as the forward, give or take what adapters add.
    """
    left = 1 - saved / 2
    return Estimate((1 - lost.mean) / left, lost.error / left)


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw the drop that each block's update brings alone, over the steps, on both batches; means over seeds."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    blocks = len(records[0].costs.blocks())
    for place, (title, of) in enumerate({"held-out rows": _held_out, "the step's own batch": _own}.items()):
        axes = figure.add_subplot(1, 2, place + 1)
        steps = [probe.step for probe in records[0].probes]
        for block in range(blocks):
            drops = [
                statistics.fmean(of(record.probes[number]).block[block] for record in records)
                for number in range(len(steps))
            ]
            axes.plot(steps, drops, color=colormaps["viridis"](block / max(blocks - 1, 1)), label=f"block {block}")
        axes.axhline(0, color="grey", linewidth=0.5)
        axes.set_yscale("symlog", linthresh=1e-4)
        axes.set_xlabel("step")
        axes.set_ylabel("drop of the loss by the block's update alone")
        axes.set_title(title)
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=110)


def _held_out(probe: Probe) -> Drops:
    return probe.held_out


def _own(probe: Probe) -> Drops:
    return probe.own


def _lost_held_out(probe: Probe) -> list[float]:
    return probe.held_out.lost()


def _lost_own(probe: Probe) -> list[float]:
    return probe.own.lost()


def _below(probe: Probe) -> Sequence[float]:
    return probe.held_out.below
