"""Tests that share what takes long to make are marked as a group, and run on one worker, which makes it once."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("together")
def test_the_mark_reaches_who_sends_tests_to_workers(request: pytest.FixtureRequest) -> None:
    """Where it does not, nothing fails: each worker makes what is shared anew."""
    if not request.config.getoption("loadgroup", False):
        pytest.skip("run without --dist loadgroup")
    assert request.node.nodeid.endswith("@together")
