"""``SKIPLORA_DEBUG_DIR`` leaves every stage of a real compile, whatever the caches hold; ``TORCH_TRACE`` the diffs."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import two_layers

from skiplora_fx import watching
from skiplora_fx.graphdiff import read_snapshot, stages_of
from skiplora_fx.graphdiff.stages import STAGES
from skiplora_fx.passes import Pipeline

TESTS = Path(__file__).parents[1]


class Links(HTMLParser):
    """Collects where the links of a page lead."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())


def test_every_stage_of_every_compile_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPLORA_DEBUG_DIR", str(tmp_path / "new" / "dir"))
    for _ in range(2):  # the second would come from Inductor's cache
        torch._dynamo.reset()
        two_layers.step(two_layers.compiled())
    root = tmp_path / "new" / "dir"
    assert len(folders(root)) == 2
    for folder in folders(root):
        assert sorted(path.name for path in folder.glob("*.txt")) == [
            f"{at}_{one}.txt" for at, one in enumerate(STAGES) if one != "merged"
        ]
        found = read_snapshot(folder / "snapshot.json")
        assert [stage.name for stage in found.graphs[0].stages] == [one for one in STAGES if one != "merged"]
        assert [site.name for site in found.graphs[0].sites] == ["lower", "upper"]
        assert stages_of(found).what_if([False, False]).share == 0
        assert '"name":"lower"' in (folder / "page.html").read_text()
        assert "skiplora.gate(" in (folder / "1_gated.diff").read_text()
    links = Links()
    links.feed((root / "index.html").read_text())
    written = {f"{file.parent.name}/{file.name}" for folder in folders(root) for file in folder.iterdir()}
    assert set(links.found) == written


def test_what_is_below_a_graph_has_a_gate_like_a_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPLORA_DEBUG_DIR", str(tmp_path))
    two_layers.step(two_layers.compiled(two_layers.Broken(), scope="layer", decision="previous"))
    graphs = [read_snapshot(folder / "snapshot.json") for folder in folders(tmp_path)]
    upper = next(found for found in graphs if len(found.graphs[0].sites) == 2)
    assert [site.kind for site in upper.graphs[0].sites] == ["linear→linear", "border"]
    assert 0 < stages_of(upper).what_if([True, False]).share < 1
    assert stages_of(upper).what_if([False, True]).share == 0


def test_sizes_that_vary_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIPLORA_DEBUG_DIR", str(tmp_path))
    model = two_layers.Two()
    model.compile(backend="skiplora", dynamic=True, options={"threshold": 0.0})
    two_layers.step(model)
    (folder,) = folders(tmp_path)
    (graph,) = read_snapshot(folder / "snapshot.json").graphs
    for name in ("captured", "predicated"):
        stage = graph.stage(name)
        assert stage is not None
        sizes = [size for node in stage.nodes for tensor in node.tensors for size in tensor.shape]
        assert any(isinstance(size, str) for size in sizes)


def test_a_folder_that_cannot_be_written_stops_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SKIPLORA_DEBUG_DIR", str(tmp_path / "file"))
    told: list[str] = []
    monkeypatch.setattr(
        logging.getLogger("skiplora_fx.graphdiff.watch"), "warning", lambda *words: told.append(words[0])
    )
    model = two_layers.compiled(threshold=0.0)
    two_layers.step(model)
    assert two_layers.has_gradient(model)
    assert len(told) == 1


def test_nobody_pays_who_has_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SKIPLORA_DEBUG_DIR", raising=False)
    monkeypatch.delenv("TORCH_TRACE", raising=False)
    assert watching.watched(Pipeline("adapter")) is watching._trace


def test_the_diffs_are_left_for_tlparse(tmp_path: Path) -> None:
    script = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import two_layers as t; t.step(t.compiled())"
    environment = {**os.environ, "TORCH_TRACE": str(tmp_path), "TORCHINDUCTOR_FX_GRAPH_CACHE": "0"}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True)
    (log,) = tmp_path.iterdir()
    names = re.findall(r'"name": "(skiplora_diff_\w+)"', log.read_text())
    assert names == ["skiplora_diff_gated", "skiplora_diff_folded", "skiplora_diff_predicated"]
