"""The page: one HTML file that shows a comparison, opens from disk and fetches nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

from ..logged_run import Run
from ..visible import visible
from ..whole_file import whole_file
from .graph_diff import GraphDiff
from .page_data import page_data

_STYLES = ("vendor/diff2html.min.css", "style.css")
_LIBRARIES = ("vendor/dagre.min.js", "vendor/diff2html.min.js", "vendor/svg-pan-zoom.min.js")
_LICENCES = ("dagre", "graphlib", "diff2html", "diff", "hogan", "svg-pan-zoom", "uplot")
_SCRIPTS = (
    "elements.js",
    "data.js",
    "tabs.js",
    "table.js",
    "drawing.js",
    "pan_zoom.js",
    "record.js",
    "hunk_drawing.js",
    "text_diff.js",
    "changes.js",
    "conditions.js",
    "summary.js",
    "globs.js",
    "sites.js",
    "modules.js",
    "backward.js",
    "gates.js",
    "regions.js",
    "what_if.js",
)
"""In this order: each may use what those before it declare."""
_TIMELINE = (("vendor/uPlot.min.css",), ("vendor/uPlot.iife.min.js",), ("heat_map.js", "timeline.js"))
"""Styles, libraries and scripts that only a page with a run needs."""


def write_page(found: GraphDiff, path: str | Path, run: Run | None = None) -> None:
    """Write a page.

    Args:
        found: what it shows.
        path: the file, which is replaced whole or not at all.
        run: of which it has a timeline, if given.

    Raises:
        FileError: the file cannot be written.
    """
    page = page_html(found, run)
    with whole_file(path) as file:
        file.write(page.encode("utf-8", "backslashreplace"))


def page_html(found: GraphDiff, run: Run | None = None) -> str:
    """Return a page. Texts of the model are data in it, never markup; its scripts are known by their hashes."""
    styles, libraries, scripts = _TIMELINE if run is not None else ((), (), ())
    code = [_part(name) for name in (*_LIBRARIES, *libraries, *_SCRIPTS, *scripts, "start.js")]
    names = dict.fromkeys(visible(snapshot.model) for snapshot in found.snapshots)
    held = {
        "policy": _policy(code),
        "title": html.escape(f"{' and '.join(names)}: skiplora diff"),
        "styles": "\n".join(_part(name) for name in (*styles, *_STYLES)),
        "licences": html.escape("\n\n".join(_part(f"vendor/{name}.LICENSE") for name in _LICENCES)),
        "data": embedded(page_data(found, run)),
        "scripts": "\n".join(f"<script>{text}</script>" for text in code),
    }
    return re.sub(r"<!-- (\w+) -->|/\* (styles) \*/", lambda place: held[place[1] or place[2]], _part("page.html"))


def embedded(data: Any) -> str:
    """Return ``data`` as JSON that no HTML parser takes for anything else."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # of ASCII only: U+2028 is escaped with the rest
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _policy(scripts: Iterable[str]) -> str:
    """Return a content security policy: these scripts and no other, and no network."""
    hashes = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{known}'" for known in hashes)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def _part(name: str) -> str:
    return resources.files(__package__).joinpath("page", *name.split("/")).read_text(encoding="utf-8")
