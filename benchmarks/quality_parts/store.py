"""A folder of results: one JSON for each run, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from .run import Run
from .settings import Settings

Kind = TypeVar("Kind")
"""A dataclass."""


class SettingsError(ValueError):
    """The folder holds runs that were made with other settings, or of another task."""


class Store(Generic[Kind]):
    """The results of one task.

    Args:
        folder: where they are kept; made if it is not there.
        settings: that all of its runs share.

    Raises:
        SettingsError: the folder's runs were made with others.
    """

    def __init__(self, folder: Path, settings: Kind) -> None:
        self.folder = folder
        self.settings = settings
        folder.mkdir(parents=True, exist_ok=True)
        kept = self.read("settings")
        if kept is None:
            self.write("settings", asdict(settings))
        elif kept != asdict(settings):
            other = {name: value for name, value in kept.items() if value != asdict(settings).get(name)}
            raise SettingsError(f"the runs in {folder} were made with {other}. Give the same, or another --results.")

    @staticmethod
    def found(folder: Path) -> Store[Settings]:
        """Open a folder that is there, with the settings that it was made with.

        Raises:
            FileNotFoundError: it holds none.
        """
        return Store(folder, Settings(**json.loads((folder / "settings.json").read_text())))

    def check_task(self, digest: str) -> None:
        """Refuse to mix runs of tasks that differ, and remember the first one's digest.

        Args:
            digest: see :meth:`~quality_parts.tasks.Task.digest`.

        Raises:
            SettingsError: the folder's runs are of another model or of other rows, or do not say of which.
        """
        kept = self.read("task")
        if kept is None:
            if self.names() - {"settings"}:
                raise SettingsError(
                    f"the runs in {self.folder} are older than the digest by which another model or other data would "
                    "be told. Add none to them: give another --results."
                )
            self.write("task", {"sha256": digest})
        elif kept["sha256"] != digest:
            raise SettingsError(
                f"the runs in {self.folder} were made with another model or other data (SHA-256 {kept['sha256'][:12]}, "
                f"now {digest[:12]}). Give the same --model_name and --data, or another --results."
            )

    def has(self, arm: str, length: float, seed: int) -> bool:
        """Return whether a run is there."""
        return self._path(_name(arm, length, seed)).exists()

    def add(self, run: Run) -> None:
        """Keep a run."""
        self.write(_name(run.arm, run.length, run.seed), run.to_json())

    def names(self) -> set[str]:
        """Return under which names something is there."""
        return {path.stem for path in self.folder.glob("*.json")}

    def runs(self) -> list[Run]:
        """Return all runs that are there."""
        return list(self._runs())

    def _runs(self) -> Iterator[Run]:
        for path in sorted(self.folder.glob("run-*.json")):
            yield Run(**json.loads(path.read_text()))

    def read(self, name: str) -> Any:
        """Return what was written under a name, or None."""
        return _read(self._path(name))

    def write(self, name: str, content: object) -> None:
        """Write a file, whole or not at all."""
        path = self._path(name)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content) + "\n")
        os.replace(partial, path)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def kept_settings(folder: Path) -> dict[str, Any] | None:
    """Return the settings of the runs in a folder of results; None if it holds none."""
    return _read(folder / "settings.json")


def _read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _name(arm: str, length: float, seed: int) -> str:
    return f"run-{arm}-{length:g}-{seed}"
