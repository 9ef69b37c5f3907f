"""docs/compatibility.md says what tests/test_compatibility.py shows. ``ACCEPT=1`` writes the table anew."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import test_compatibility as tests

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"
HEAD = "| PEFT | what becomes of it | tested |\n|---|---|---|\n"


def families(names: Any) -> str:
    return f"rejected: {', '.join(sorted(names))}"


def kinds(kind: Any) -> str:
    return f"gated: {' and '.join(sorted({kind} if isinstance(kind, str) else kind))}"


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield the name of each tuner, what becomes of it, and whether a test shows that."""
    exported = {row.id for row in tests.EXPORTED}
    for row in tests.GATED:
        broken = "; ".join(f"upstream break: {mark.kwargs['reason']}" for mark in row.marks)
        by_export = f"; exported, {kinds(row.values[2])}" if broken and row.id in exported else ""
        yield row.id, f"{broken}{by_export}" if broken else kinds(row.values[2]), "yes"
    for name, (outcome, _) in tests.BY_THEMSELVES.items():
        yield name, outcome, "yes"
    for row in (*tests.REJECTED, *tests.REJECTED_IN_A_LANGUAGE_MODEL):
        yield row.id, families(row.values[-1]), "yes"
    for row in tests.IN_NO_GRAPH:
        yield row.id, f"upstream break: {row.values[-1]}; what trains is in no graph", "yes"
    for row in tests.NOTHING:
        yield row.id, "rejected: trains no branch beside a layer", "yes"
    for name, reason in tests.UNTESTED.items():
        yield name, reason, "no"


def table() -> str:
    return HEAD + "".join(f"| {name} | {outcome} | {tested} |\n" for name, outcome, tested in rows())


def test_the_page_has_a_row_for_each_test() -> None:
    before, head, _ = PAGE.read_text().partition(HEAD)
    if os.environ.get("ACCEPT"):
        PAGE.write_text(before + table())
    assert head, f"{PAGE} has no table that begins with\n{HEAD}"
    assert PAGE.read_text() == before + table(), "the table is out of date: ACCEPT=1 writes it anew"
