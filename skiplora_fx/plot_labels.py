"""What the rows of a picture are called."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

_ROWS = 48
"""The most rows that are labelled one by one; of more, each block is."""
_LONGEST = 40
"""Characters of a label; of longer ones the middle is left out."""


def row_labels(names: Sequence[str]) -> list[tuple[float, str]]:
    """Return labels of rows, without what all names begin with.

    Where there are too many rows it is blocks that are labelled, at their middle.

    Args:
        names: of the sites, at least one.
    """
    parts = [name.removesuffix(" [default]").split(".") for name in names]
    common = 0
    while all(len(part) > common + 1 for part in parts) and len({part[common] for part in parts}) == 1:
        common += 1
    labels = [".".join(part[common:]) for part in parts]
    if len(names) <= _ROWS:
        return [(row, plain(label)) for row, label in enumerate(labels)]
    numbers = [next((part for part in label.split(".") if part.isdigit()), plain(label)) for label in labels]
    blocks = [(number, [row for row, _ in rows]) for number, rows in groupby(enumerate(numbers), key=itemgetter(1))]
    shown = blocks[:: math.ceil(len(blocks) / _ROWS)]
    return [((rows[0] + rows[-1]) / 2, number) for number, rows in shown]


def plain(text: str, longest: int = _LONGEST) -> str:
    """Return a text on one line, of characters that every format of a picture can hold, and not too long."""
    shown = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)
    if len(shown) <= longest:
        return shown
    kept = (longest - 1) // 2
    return f"{shown[:kept]}…{shown[-kept:]}"
