"""What is added up is the same on every rank, bit for bit, among all of them and within a group."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from processes import run
from torch import Tensor

from skiplora_fx.ranks import Ranks

pytestmark = pytest.mark.xdist_group("ranks")  # all tests look at one run

PAIRS = ([0, 1], [2, 3])


def awkward(rank: int) -> Tensor:
    """Return numbers of very different size, whose sum depends on its order."""
    return torch.randn(1001, generator=torch.Generator().manual_seed(rank), dtype=torch.float64).exp().pow(9)


def sums() -> tuple[list[Tensor], Tensor]:
    """Return the sum over all ranks, as each of them has it, and that over this rank's group."""
    dist.new_group([0])  # that one rank belongs to more groups than another makes no difference
    rank, everyone = dist.get_rank(), Ranks()
    groups = [dist.new_group(pair) for pair in PAIRS]
    paired = Ranks(groups[rank // 2]).add_up(awkward(rank))
    return everyone.gather(everyone.add_up(awkward(rank))), paired


@pytest.fixture(scope="module")
def ranks() -> list[tuple[list[Tensor], Tensor]]:
    return run(sums, ranks=4)


def test_all_ranks_have_the_same_sum(ranks: list[tuple[list[Tensor], Tensor]]) -> None:
    for totals, _ in ranks:
        assert all(torch.equal(total, totals[0]) for total in totals)
    torch.testing.assert_close(ranks[0][0][0], torch.stack([awkward(rank) for rank in range(4)]).sum(0))


def test_a_group_adds_up_its_own(ranks: list[tuple[list[Tensor], Tensor]]) -> None:
    for pair in PAIRS:
        for rank in pair:
            assert torch.equal(ranks[rank][1], awkward(pair[0]) + awkward(pair[1]))
