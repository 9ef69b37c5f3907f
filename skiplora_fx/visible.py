"""Text of a model's, such as a name, as a terminal may be shown it."""

from __future__ import annotations


def visible(text: str) -> str:
    """Return ``text`` with what does not print, such as control characters, written out: ``\\x1b``."""
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape", "backslashreplace").decode("ascii")
