"""``SKIPLORA_DEBUG_DIR``: every stage of every compile as files, with a page that lists them."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator
from pathlib import Path

from .exports import dot, model_explorer, model_explorer_mapping, model_explorer_node_data
from .files import dump, snapshot_json
from .graph_diff import WITHIN, Transition, stages_of
from .page import page_html
from .records import Snapshot, StageRecord
from .stages import STAGES
from .text import node_line

_KEPT = ("captured", "gated", "forward", "predicated")
"""Stages at which the snapshot is written: where a compile may pause or end."""
_OF_ALL_STAGES = {"page.html": "all of it, to look at", "snapshot.json": "every stage, for skiplora diff"}


class DebugDir:
    """Writes one graph into a folder of its own below ``root``, and lists all such folders in ``root/index.html``.

    Raises (in :meth:`write`):
        OSError: something cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder: Path | None = None

    def write(self, snapshot: Snapshot, name: str) -> None:
        """Write what has come with the stage called ``name`` of the snapshot's one graph."""
        folder = self._folder = self._folder or _new_folder(self._root)
        (graph,) = snapshot.graphs
        stage = graph.stage(name)
        assert stage is not None
        number = list(STAGES).index(name)
        _replace(folder / f"{number}_{name}.txt", _text(stage))
        _replace(folder / f"{number}_{name}.model_explorer.json", dump(model_explorer(stage)))
        if name in {after for _, after in WITHIN}:
            (transition,) = stages_of(snapshot).only(stage=name).transitions
            _write_transition(folder / f"{number}_{name}", transition)
        if name in _KEPT:
            _replace(folder / "snapshot.json", snapshot_json(snapshot))
        if name == "predicated":
            _replace(folder / "page.html", page_html(stages_of(snapshot)))
        _replace(self._root / "index.html", _index(self._root))


def _write_transition(start: Path, transition: Transition) -> None:
    _replace(start.with_suffix(".diff"), transition.text())
    _replace(start.with_suffix(".dot"), dot(transition))
    _replace(start.with_suffix(".mapping.json"), dump(model_explorer_mapping(transition)))
    _replace(start.with_suffix(".node_data.json"), dump(model_explorer_node_data(transition)))


def _new_folder(root: Path) -> Path:
    """Make the next folder of this process: several ranks may share the root."""
    number = 0
    while True:
        folder = root / f"process_{os.getpid()}_graph_{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def _replace(path: Path, text: str) -> None:
    """Write a file in one go, as another process may be reading it or writing the same."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")
    part.replace(path)


def _text(stage: StageRecord) -> str:
    return "\n".join(map(node_line, stage.nodes))


def _index(root: Path) -> str:
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    return "\n".join([_HEAD, *(line for folder in folders for line in _entries(folder))])


def _entries(folder: Path) -> Iterator[str]:
    name = html.escape(folder.name)
    yield f"<h2>{name}</h2><ul>"
    for file in sorted(folder.iterdir()):
        if not file.name.startswith("."):
            told = _OF_ALL_STAGES.get(file.name) or STAGES.get(file.name.partition("_")[2].partition(".")[0], "")
            link = html.escape(file.name)
            yield f'<li><a href="{name}/{link}">{link}</a> {html.escape(told)}</li>'
    yield "</ul>"


_HEAD = """<!doctype html>
<meta charset="utf-8">
<title>skiplora_fx: stages</title>
<style>body { font-family: sans-serif; margin: 2em } li { margin: 0.2em }</style>
<h1>What skiplora_fx compiled</h1>
<p>One folder for each graph. Of each stage there is text and a graph for Model Explorer; where a pass has made one
stage of another also a unified diff, the hunks for Graphviz (.dot), and Model Explorer's mapping and node data.
page.html shows all of it, if the graph has gates.</p>"""
