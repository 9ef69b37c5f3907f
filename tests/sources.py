"""The package's own source, and what each file of it reaches by name."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import skiplora_fx
from skiplora_fx import passes

SOURCES = sorted(path for package in (skiplora_fx, passes) for path in Path(str(package.__file__)).parent.rglob("*.py"))


def parsed(path: Path) -> ast.Module:
    """Return a file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


def reached(tree: ast.Module) -> Iterator[str]:
    """Yield what a module imports, and each name that it reaches through an import, or of Python's own, dotted.

    Imports inside of functions count for the whole module. What comes from the package itself is left out.
    """
    known = {name: name for name in dir(builtins)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            known |= {alias.asname: alias.name for alias in node.names if alias.asname}
            known |= {_first(alias.name): _first(alias.name) for alias in node.names if not alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            paths = {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            yield from paths.values()
            known |= paths
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            first, dot, rest = ast.unparse(node).partition(".")
            if first in known:
                yield f"{known[first]}{dot}{rest}"


def _first(path: str) -> str:
    return path.partition(".")[0]
