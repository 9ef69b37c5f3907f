"""The hunks of the page: drawn on both sides, as text, and walked through by keys."""

from __future__ import annotations

import pytest
from conftest import EVIL, Page

pytestmark = pytest.mark.browser


def names(page: Page, side: str) -> list[str]:
    return [str(box.get_attribute("data-node")) for box in page.all(f".pane.{side} .box")]


def transforms(page: Page) -> list[str]:
    return [str(part.get_attribute("transform")) for part in page.all(".pair .svg-pan-zoom_viewport")]


def place(page: Page) -> tuple[str, str, str]:
    current = page.one(".shapes button[aria-current=true]")
    stage = page.one(".stages [aria-pressed=true]").text
    return stage, str(current.get_attribute("data-shape")), page.one(".workspace").text


def test_both_sides_are_drawn_and_alike_hunks_are_folded(page: Page) -> None:
    page.show("changes")
    assert page.one(".shapes button").text.startswith("×4")
    before, after = (names(page, side) for side in ("before", "after"))
    assert set(before) < set(after)
    assert len(page.all(".pane.after .box.added")) == len(after) - len(before)


def test_a_click_on_a_node_shows_its_record_with_what_differs(page: Page) -> None:
    page.show("changes")
    page.press("f")
    page.one(".pane.after .box", "skiplora.gate").click()
    assert "skiplora.gate" in page.one(".record").text
    assert page.all(".record tr.differs") == []
    page.one(".pane.before .box.rewired").click()
    (differing,) = page.all(".record tr.differs")
    assert differing.text.startswith("call")
    assert "gate_default" in differing.text


def test_both_sides_are_zoomed_and_panned_together(page: Page) -> None:
    page.show("changes")
    first = transforms(page)
    page.press("+")
    page.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    zoomed = transforms(page)
    assert zoomed[0] == zoomed[1]
    assert zoomed[0] != first[0] == first[1]


def test_keys_go_through_the_changes(page: Page) -> None:
    page.show("changes")
    first = place(page)
    page.press("n")
    second = place(page)
    assert second[:2] == (first[0], "1")
    page.press("p")
    assert place(page) == first
    page.press("p")
    assert place(page) == first
    page.press("j")
    assert page.one(".place").text == "2 of 4 alike"
    page.press("k", "k")
    assert page.one(".place").text == "4 of 4 alike"
    shapes = len(page.all(".shapes button"))
    page.press(*"n" * shapes)
    assert page.one(".stages [aria-pressed=true]").text.startswith("joint → folded")


def test_a_hunk_as_text_has_the_lines_of_its_nodes(page: Page) -> None:
    page.show("changes")
    page.press("t")
    added = [line.text for line in page.all(".diff .d2h-ins .d2h-code-line-ctn")]
    assert any(line.startswith("gate_default = skiplora.gate(") for line in added)
    (removed,) = page.all(".diff .d2h-del .d2h-code-line-ctn")
    assert f"layers.0.parts.{EVIL}" in removed.text


def test_a_site_leads_to_what_was_done_there(page: Page) -> None:
    page.show("sites")
    page.one("#sites tbody tr", "layers.1.parts.other").click()
    assert page.one(".shape-title").text.endswith("1.parts.other")
    assert page.one(".place").text == "4 of 4 alike"


@pytest.mark.parametrize("width", [700, 1280])
def test_no_box_is_cut_off_at_one_edge_while_the_other_has_room(page: Page, width: int) -> None:
    page.driver.set_window_size(width, 800)
    page.show("changes")
    page.driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    left, right = page.run(
        """(([pane, drawn]) => [drawn.left - pane.left, pane.right - drawn.right])(
            ['.pane.after', '.pane.after .ground'].map((part) => document.querySelector(part).getBoundingClientRect())
        )"""
    )
    page.driver.set_window_size(1280, 800)
    assert (left < 1) == (right < 1)
