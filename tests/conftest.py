"""What every test runs under."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

# The same examples in each run: a pull request should not fail for what somebody else's has done.
settings.register_profile(
    "tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("tests")
settings.register_profile("fuzz", settings.get_profile("tests"), derandomize=False, print_blob=True)  # `make fuzz`

# Matrices of 4 to 48 rows: handing them to a second thread takes longer than multiplying them.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_compiler(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed, and forget afterwards what was compiled: Dynamo gives up on a code object after eight graphs.

    A module whose tests share what they compile says ``SHARES_COMPILED = True`` and resets by itself.
    """
    torch.manual_seed(0)
    yield
    if not getattr(request.module, "SHARES_COMPILED", False):
        torch._dynamo.reset()
