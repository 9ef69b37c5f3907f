"""What the package must not do, read from its source: docs/security.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import skiplora_fx
from skiplora_fx import passes

SOURCES = sorted(path for package in (skiplora_fx, passes) for path in Path(str(package.__file__)).parent.rglob("*.py"))

UNPICKLES = {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}
TALKS = {"socket", "ssl", "http", "urllib", "requests", "httpx", "aiohttp", "ftplib", "smtplib", "huggingface_hub"}
STARTS = {"subprocess", "multiprocessing"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def called(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_nothing_is_unpickled_fetched_or_started() -> None:
    assert len(SOURCES) > 80
    found = {path.name: wrong for path in SOURCES if (wrong := set(imported(path)) & (UNPICKLES | TALKS | STARTS))}
    assert found == {}


def test_no_text_is_run_but_the_names_that_dynamo_gives_its_inputs() -> None:
    calls = {(path.name, name) for path in SOURCES for name in called(path)}
    assert {(file, name) for file, name in calls if name in ("eval", "exec", "compile", "torch.load", "os.system")} == {
        ("_torch_compat.py", "eval")
    }
