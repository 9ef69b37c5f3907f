"""What the page computes of a backward is what Python computes, and what dies is grey."""

from __future__ import annotations

import pytest
from conftest import EVIL, Page
from selenium.webdriver.common.by import By

from skiplora_fx.graphdiff.what_if import WhatIf

pytestmark = pytest.mark.browser

MASKS = (
    [True, True, True, True],
    [False, True, True, True],
    [False, False, True, True],
    [True, False, False, True],
    [False, False, False, False],
)


def shown(page: Page) -> tuple[int, int, str, str]:
    facts = page.one(".facts")
    flops, total, running = (facts.get_attribute(f"data-{name}") for name in ("flops", "total", "running"))
    return int(flops), int(total), running, page.one("#share").text


def expected(found: WhatIf) -> tuple[int, int, str, str]:
    runs = "".join(str(int(open)) for graph in found.graphs for open in graph.regions.values())
    return found.flops, found.total, runs, f"{100 * found.share:.1f} %"


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: "".join("sO"[open] for open in mask))
def test_the_numbers_are_those_of_python(page: Page, mask: list[bool]) -> None:
    page.show("what-if")
    for gate, open in zip(page.all(".gate"), mask, strict=True):
        if not open:
            gate.click()
    assert [gate.get_attribute("aria-pressed") == "true" for gate in page.all(".gate")] == mask
    assert shown(page) == expected(page.found.what_if(mask))


def test_globs_mean_what_they_mean_in_python(page: Page) -> None:
    page.show("what-if")
    globs = page.one("#globs")
    for glob in ("*.0.*", "*.[!1].parts.?ther", "*<img*", "*1.parts.o[st]her"):
        globs.clear()
        globs.send_keys(glob)
        page.one("#what-if button", "open all").click()
        page.one("#what-if aside .bar button", "shut").click()
        assert shown(page) == expected(page.found.what_if({glob: False}))


def test_a_glob_that_matches_nothing_shuts_nothing(page: Page) -> None:
    page.show("what-if")
    for glob in ("layers", "*[z-a]*", "["):
        page.one("#globs").clear()
        page.one("#globs").send_keys(glob)
        page.one("#what-if aside .bar button", "shut").click()
        assert "match 0 sites" in page.one("#what-if aside").text
        assert shown(page) == expected(page.found.what_if({"*": True}))


def test_the_depth_shuts_the_lowest_blocks(page: Page) -> None:
    page.show("what-if")
    page.press("n")
    assert page.one("output[for=depth]").text == "1 of 2"
    assert shown(page) == expected(page.found.what_if({"layers.0.*": False}))
    page.press("n")
    assert shown(page) == expected(page.found.what_if({"*": False}))
    page.press("p", "p")
    assert shown(page) == expected(page.found.what_if({"*": True}))


def test_what_does_not_run_is_grey_and_its_conds_are_closed(page: Page) -> None:
    page.show("what-if")
    lower = page.one(".box.module[data-element='m:layers.0']")
    assert "dead" not in lower.get_attribute("class")
    page.press("n")
    assert "dead" in lower.get_attribute("class")
    assert "dead" not in page.one(".box.module[data-element='m:layers.1']").get_attribute("class")
    states = [row.find_elements(By.TAG_NAME, "td")[1].text for row in page.all(".conds tbody tr")]
    running = shown(page)[2]
    assert states == [["closed", "runs"][int(one)] for one in running]
    assert 0 < states.count("closed") < len(states)


def test_a_module_opens_down_to_its_nodes_and_closes(page: Page) -> None:
    page.show("what-if")
    closed = len(page.all("#what-if .box"))
    for module in ("layers.1", "layers.1.parts", f"layers.1.parts.{EVIL}", f"layers.1.parts.{EVIL}.base"):
        page.press("f")  # all of it in view
        page.one(f".box.module[data-element='m:{module}']").click()
    page.press("f")
    page.one(".box.leaf", "aten.mm").click()
    assert "aten.mm" in page.one(".node-told").text
    page.one(".frame-title", "layers.1").click()
    assert len(page.all("#what-if .box")) == closed
