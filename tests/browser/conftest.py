"""One page of one tiny model, and a browser without a network to look at it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_modules import WIDE, Linear, batch
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from torch import Tensor, nn

import skiplora_fx
from skiplora_fx.graphdiff import GraphDiff, stages_of
from skiplora_fx.graphdiff.files import parse_snapshot, snapshot_json
from skiplora_fx.graphdiff.what_if import site_names
from skiplora_fx.step_log import StepLog

EVIL = "</script><img src=x onerror=alert(1)>"
DYNAMOS = "script.img.src.x.onerror.alert.1"
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,800",
)


class Block(nn.Module):
    """Two adapters and a residual; the name of one is markup."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({EVIL: Linear(), "other": Linear(rank=2)})

    def forward(self, x: Tensor) -> Tensor:
        return x + self.parts["other"](torch.relu(self.parts[EVIL](x)))


class Model(nn.Module):
    """Two blocks, and a head that trains and is no adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(WIDE, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@dataclass(frozen=True)
class Page:
    """A page in the browser.

    Attributes:
        found: what it shows.
        driver: of the browser.
    """

    found: GraphDiff
    driver: webdriver.Chrome

    def all(self, selector: str) -> list[WebElement]:
        """Return the elements that match and are not hidden."""
        found: list[WebElement] = self.run(
            "[...document.querySelectorAll(arguments[0])].filter((element) => element.checkVisibility())", selector
        )
        return found

    def one(self, selector: str, text: str = "") -> WebElement:
        """Return the first of them that holds the text."""
        found = [element for element in self.all(selector) if text in str(element.get_attribute("textContent"))]
        assert found, f"nothing that is shown matches {selector} and holds {text!r}"
        return found[0]

    def show(self, tab: str) -> None:
        """Click on a tab."""
        self.one(f"#tab-{tab}").click()

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            self.driver.find_element(By.TAG_NAME, "body").send_keys(key)

    def run(self, script: str, *arguments: Any) -> Any:
        """Return what a script returns."""
        return self.driver.execute_script(f"return {script}", *arguments)


@pytest.fixture(scope="session")
def found() -> GraphDiff:
    torch.manual_seed(0)
    text = snapshot_json(skiplora_fx.diff(Model(), batch()).snapshots[0])
    # Dynamo takes signs out of the paths of modules; a file may hold any
    return stages_of(parse_snapshot(json.loads(text.replace(DYNAMOS, EVIL))))


@pytest.fixture(scope="session")
def file(found: GraphDiff, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    log = StepLog(folder / "log.jsonl")
    for step in range(20):
        rows = [(name, 0.01 * (step + 1), 0.1, step > 9) for name in site_names(found.snapshots[0])]
        log.step(step, rows, grad_norm=1.0, backward_seconds=0.01)
        log.note(step, {"loss": 3.0 - 0.1 * step})
    log.close()
    found.to_html(folder / "page.html", folder / "log.jsonl")
    return folder / "page.html"


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    browser, service = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or service is None:
        pytest.fail("chromium and chromedriver are not on the PATH; make test-browser installs them", pytrace=False)
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options, Service(service))
    started.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    started.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield started
    started.quit()


@pytest.fixture
def page(found: GraphDiff, file: Path, driver: webdriver.Chrome) -> Iterator[Page]:
    """The page as it opens; afterwards the console holds no error."""
    driver.get("about:blank")
    driver.get_log("browser")
    driver.get(file.as_uri())
    yield Page(found, driver)
    assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
