"""The page opens from disk without a network, and nothing in a model's names is taken for markup."""

from __future__ import annotations

import pytest
from conftest import EVIL, Page

pytestmark = pytest.mark.browser

TABS = {
    "summary": "captured → gated",
    "changes": "1 of 4 alike",
    "sites": "not gated",
    "what-if": "of the backward's FLOPs remain",
    "timeline": "M = ‖Δh‖ / ‖h‖ by site · 20 steps",
}


def test_it_fetches_nothing(page: Page) -> None:
    assert page.run("performance.getEntriesByType('resource').length") == 0
    assert page.run("document.documentElement.dataset.ready") is not None


@pytest.mark.parametrize("tab", TABS)
def test_each_tab_shows_what_it_is_for(page: Page, tab: str) -> None:
    page.show(tab)
    (panel,) = page.all("main > section")
    assert panel.get_attribute("id") == tab
    assert TABS[tab] in panel.text


def test_a_name_that_is_markup_is_text_in_every_view(page: Page) -> None:
    page.show("changes")
    page.one("button[data-view=text]").click()
    assert EVIL in page.one(".diff").text
    page.one("button[data-view=all]").click()
    assert EVIL in page.one(".long-diff").text
    page.show("sites")
    assert EVIL in page.one("#sites tbody").text
    page.show("what-if")
    assert EVIL in {gate.get_attribute("title").rpartition(".")[2] for gate in page.all(".gate")}
    page.show("timeline")
    assert page.run("document.images.length") == 0
    assert page.run("document.scripts.length") == page.run("document.querySelectorAll('body > script').length")


def test_the_policy_lets_no_other_script_run(page: Page) -> None:
    page.run("document.body.append(Object.assign(document.createElement('script'), {text: 'window.ran = true'}))")
    assert page.run("window.ran") is None
    (refused,) = page.driver.get_log("browser")
    assert "Content Security Policy" in refused["message"]


def test_a_long_header_widens_no_narrow_page(page: Page) -> None:
    page.driver.set_window_size(900, 800)
    page.run("(document.getElementById('about').textContent = 'a model, and another  →  '.repeat(20))")
    widths = page.run("[document.querySelector('header').offsetWidth, document.body.scrollWidth, innerWidth]")
    page.driver.set_window_size(1280, 800)
    assert len(set(widths)) == 1
