"""The measure of ``benchmarks/memory.py``."""

from __future__ import annotations

import torch
from memory import peak_of

MIB = 2**20


def test_a_peak_is_what_is_held_at_once() -> None:
    def run() -> None:
        first = torch.empty(MIB, dtype=torch.uint8)
        second = torch.empty(2 * MIB, dtype=torch.uint8)
        del first, second
        torch.empty(MIB, dtype=torch.uint8)

    assert peak_of(run, "cpu") == 3 * MIB


def test_a_peak_is_seen_in_compiled_code() -> None:
    x = torch.rand(512, 512)
    run = torch.compile(lambda x: (x @ x) @ x, backend="inductor")
    run(x)
    assert peak_of(lambda: run(x), "cpu") == 2 * x.nbytes
