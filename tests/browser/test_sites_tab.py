"""The table of sites: searched, filtered and sorted."""

from __future__ import annotations

import pytest
from conftest import Page
from selenium.webdriver.support.ui import Select

pytestmark = pytest.mark.browser


def column(page: Page, title: str) -> list[str]:
    titles = [head.text.rstrip(" ↑↓") for head in page.all("#sites thead th")]
    return [row.text for row in page.all(f"#sites tbody td:nth-child({titles.index(title) + 1})")]


def test_all_that_trains_is_listed(page: Page) -> None:
    page.show("sites")
    assert column(page, "status") == ["gated"] * 4 + ["not gated"] * 2
    assert column(page, "was shut")[:4] == ["50.0 %"] * 4
    assert column(page, "last M")[:4] == ["0.2"] * 4


def test_a_search_keeps_what_has_the_text(page: Page) -> None:
    page.show("sites")
    page.one("#sites input").send_keys("PARTS.OTHER")
    assert column(page, "site") == ["layers.0.parts.other", "layers.1.parts.other"]
    assert page.one("#sites .told").text == "2 of 6 sites"


def test_a_filter_keeps_one_value(page: Page) -> None:
    page.show("sites")
    Select(page.one("#sites select[data-key=status]")).select_by_value("not gated")
    assert column(page, "site") == ["head.weight", "head.bias"]
    assert all(column(page, "reason"))


def test_a_head_sorts_and_sorts_back(page: Page) -> None:
    page.show("sites")
    ranks = ["4", "4", "2", "2", "", ""]
    page.one("#sites thead button", "rank").click()
    assert column(page, "rank") == ranks
    page.one("#sites thead button", "rank").click()
    assert column(page, "rank") == [*reversed(ranks[:4]), "", ""]
