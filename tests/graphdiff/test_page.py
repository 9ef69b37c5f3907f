"""One HTML file that holds everything, fetches nothing, and takes no text of a model for markup."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snapshots import node, stage, whole
from step_logs import written

from skiplora_fx import FileError
from skiplora_fx.graphdiff import GraphDiff, compare, stages_of
from skiplora_fx.graphdiff.page import embedded, page_html

EVIL = "</script><img src=x onerror=alert(1)><!-- \u2028 & <script>"


class Parsed(HTMLParser):
    """What an HTML parser makes of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.tags[-1] if self.tags else "", []).append(data)


def differing(name: str) -> GraphDiff:
    """Return a comparison of two models that are called ``name``, as are their modules and operators."""
    before = stage(node("x", "x"), node("y", name, "x", module=name), node("output", "output", "y"))
    after = stage(node("x", "x"), node("y", "cos", "x", module=name), node("output", "output", "y"))
    return compare(*(replace(whole([one]), model=name) for one in (before, after)))


@given(st.text() | st.sampled_from([EVIL, "]]>", "-->", "\ud800"]))
def test_embedded_text_is_json_without_markup(text: str) -> None:
    found = embedded({"text": text})
    assert json.loads(found) == {"text": text}
    assert found.isascii()
    assert not set(found) & set("<>&")


def test_a_name_that_is_markup_changes_nothing_of_the_page() -> None:
    plain, evil = (Parsed(page_html(differing(name))) for name in ("Model", EVIL))
    assert evil.tags == plain.tags
    assert "img" not in evil.tags
    assert evil.texts["title"][0].startswith("</script><img src=x onerror=alert(1)><!-- ")


@pytest.mark.parametrize("has_log", [False, True])
def test_scripts_are_those_that_the_policy_knows_and_nothing_is_fetched(tmp_path: Path, has_log: bool) -> None:
    log = written(tmp_path / "log.jsonl") if has_log else None
    differing("Model").to_html(tmp_path / "page.html", log)
    text = (tmp_path / "page.html").read_text()
    parsed = Parsed(text)
    assert not {name for name, _ in parsed.attributes} & {"src", "href", "srcset", "data", "action"}
    (policy,) = (value for _, value in parsed.attributes if value.startswith("default-src"))
    scripts = [part.partition("</script>")[0] for part in text.split("<script>")[1:]]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert all(f"'sha256-{known}'" in policy for known in hashes)
    assert policy.count("sha256-") == len(scripts)
    assert ("uPlot" in "".join(scripts).partition("function buildTimeline")[0]) == has_log


def test_a_page_of_a_graph_without_anything_is_written(tmp_path: Path) -> None:
    stages_of(whole([])).to_html(tmp_path / "page.html")
    assert Parsed((tmp_path / "page.html").read_text()).tags[0] == "html"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"no/page\.html cannot be written: No such file or directory"):
        differing("Model").to_html(tmp_path / "no" / "page.html")
