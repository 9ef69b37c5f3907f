"""The log of all trials of ``quality.py``: a row for each arm and setting, failures too.

    python benchmarks/tried.py

Reads the folders of results and trains nothing. Writes ``tried.md`` beside them: the settings, then each idea with what
it scored in them, at length 1 or the longest that there is.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from quality_parts.arms import ARMS
from quality_parts.curves import FULL, Point
from quality_parts.report import FORMS, points_of, ratio, said, table
from quality_parts.settings import Settings
from quality_parts.store import Store

SHOWN = ("steps", "batch", "tokens", "test_rows", "learning_rate", "threshold")
"""Settings in which the trials differ."""

HEADERS = (
    "idea",
    "arm",
    "setting",
    "seeds",
    "backward",
    "time",
    "accuracy, against full LoRA",
    "loss, against full LoRA",
    "accuracy, against fewer steps",
    "loss, against fewer steps",
    "by accuracy",
    "by loss",
)


def main() -> None:
    """Write the log."""
    args = _arguments()
    text = log_of(args.results)
    (args.results / "tried.md").write_text(text + "\n")
    print(text)


def log_of(results: Path) -> str:
    """Return the log of all folders of runs in a folder, as Markdown.

    Raises:
        FileNotFoundError: there are none.
    """
    stores = {str(path.parent.relative_to(results)): path.parent for path in sorted(results.rglob("settings.json"))}
    if not stores:
        raise FileNotFoundError(f"no settings.json in {results} or below it: quality.py writes one for each task")
    opened = {name: Store.found(folder) for name, folder in stores.items()}
    found = {name: longest(points_of(store)) for name, store in opened.items()}
    settings = table(["setting", *SHOWN], [_setting(name, store.settings) for name, store in opened.items()])
    return f"{settings}\n\n{table(HEADERS, list(_rows(found)))}"


def longest(points: Iterable[Point]) -> dict[str, Point]:
    """Return a point for each arm, at length 1 if it is there, else at the longest."""
    ranked = sorted(points, key=lambda point: (point.length == 1, point.length))
    return {point.arm: point for point in ranked}


def _setting(name: str, settings: Settings) -> list[str]:
    return [name, *(f"{asdict(settings)[field]:g}" for field in SHOWN)]


def _rows(found: Mapping[str, Mapping[str, Point]]) -> Iterator[list[str]]:
    for arm, trial in ARMS.items():
        idea = trial.what
        for setting, points in found.items():
            if arm != FULL and arm in points:
                yield [idea, arm, setting, *_cells(points[arm])]
                idea = ""


def _cells(point: Point) -> list[str]:
    return [
        str(len(point.seeds)),
        ratio(point.backward),
        ratio(point.time),
        said(point.beside_full["accuracy"], f"+{FORMS['accuracy']}"),
        said(point.beside_full["loss"], f"+{FORMS['loss']}"),
        said(point.gains["accuracy"], f"+{FORMS['accuracy']}"),
        said(point.gains["loss"], f"+{FORMS['loss']}"),
        *point.verdicts.values(),
    ]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    results = Path(__file__).parent / "results" / "quality"
    parser.add_argument("--results", type=Path, default=results, help="the folder of results (default: %(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
