"""docs/compatibility.md says what test_usage.py shows. ``ACCEPT=1`` writes the table anew."""

from __future__ import annotations

import os
from pathlib import Path

import test_usage
from usages import USAGES

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"
HEAD = "| with a compiled model | what becomes of it |\n|---|---|\n"


def table() -> str:
    return HEAD + "".join(f"| {usage.what} | {usage.becomes} |\n" for usage in USAGES)


def test_the_page_has_a_row_for_each_test() -> None:
    before, head, after = PAGE.read_text().partition(HEAD)
    _, blank, rest = after.partition("\n\n")
    if os.environ.get("ACCEPT"):
        PAGE.write_text(before + table() + "\n" + rest)
    assert head, f"{PAGE} has no table that begins with\n{HEAD}"
    assert blank
    assert PAGE.read_text() == before + table() + "\n" + rest, "the table is out of date: ACCEPT=1 writes it anew"


def test_every_test_has_one_row() -> None:
    tests = [name for name, value in vars(test_usage).items() if name.startswith("test_") and callable(value)]
    assert [usage.test for usage in USAGES] == tests
    assert len({usage.what for usage in USAGES}) == len(USAGES)
