"""The timeline: what it says of a cell is what the log says."""

from __future__ import annotations

import pytest
from conftest import Page
from selenium.webdriver import ActionChains

pytestmark = pytest.mark.browser

COLOURS = """((column) => {
    const canvas = document.querySelector('.heat canvas');
    const outer = canvas.getBoundingClientRect();
    const cells = document.querySelector('.heat .u-over').getBoundingClientRect();
    const scale = canvas.width / outer.width;
    const wide = cells.width / 20;
    const corner = [cells.left - outer.left + wide * column + 2, cells.top - outer.top + 5];
    const place = [...corner, wide - 4, 20].map((value) => Math.round(value * scale));
    const { data } = canvas.getContext('2d').getImageData(...place);
    const colours = new Set();
    for (let at = 0; at < data.length; at += 4) {
        colours.add(data.slice(at, at + 3).join());
    }
    return [...colours];
})(arguments[0])"""
"""The colours inside the cell of the first site in a column."""


def point_at(page: Page, across: float, down: float) -> str:
    """Point at a share of the plot's width and height; return what is told."""
    over = page.one(".heat .u-over")
    width, height = over.size["width"], over.size["height"]
    x, y = round((across - 0.5) * width), round((down - 0.5) * height)
    ActionChains(page.driver).move_to_element_with_offset(over, x, y).perform()
    return page.one("#hovered").text


def test_a_cell_says_its_site_step_ratio_and_whether_it_was_shut(page: Page) -> None:
    page.show("timeline")
    assert point_at(page, 2.5 / 20, 0.5 / 4).endswith(" · step 2 · M 0.03 · shut")
    assert point_at(page, 15.5 / 20, 3.5 / 4) == "layers.1.parts.other · step 15 · M 0.16 · open"


def test_cells_have_the_colour_of_their_ratio_and_marks_where_shut(page: Page) -> None:
    page.show("timeline")
    shut, earlier, later = (page.run(COLOURS, column) for column in (3, 12, 18))
    assert len(shut) > 1
    assert len(earlier) == len(later) == 1
    assert earlier != later


def test_the_loss_is_drawn_below(page: Page) -> None:
    page.show("timeline")
    assert len(page.all(".loss canvas")) == 1


def test_steps_are_marked_at_whole_numbers_only(page: Page) -> None:
    page.show("timeline")
    marks = page.run(
        """((made) => {
            const plot = new uPlot(
                { width: 800, height: 100, scales: { x: { time: false } }, axes: [stepAxis(null)], series: [{}, {}] },
                [[-0.5, 0.5], [1, 2]], made);
            return new Promise((done) => requestAnimationFrame(() => done(plot.axes[0]._splits)));
        })(document.createElement('div'))"""
    )
    assert marks == [0]
