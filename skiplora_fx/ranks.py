"""The processes of a run that decide together."""

from __future__ import annotations

import math
import sys
import weakref
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor

from ._torch_compat import gloo_between
from .errors import UsageError


def several(group: dist.ProcessGroup | None = None) -> bool:
    """Return whether this is one of several processes of a group; None stands for the default group."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def is_first(group: dist.ProcessGroup | None = None) -> bool:
    """Return whether this process is the first of its group, or runs by itself."""
    return not several(group) or dist.get_rank(group) == 0


def is_sharded(tensor: Tensor) -> bool:
    """Return whether each rank has a part of a tensor, as ``fully_shard`` and tensor parallelism leave it."""
    module = sys.modules.get("torch.distributed.tensor")  # slow to import, and there is none where nobody has
    return module is not None and isinstance(tensor, module.DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """Return what this rank has of a tensor."""
    return cast(Tensor, tensor.to_local()) if is_sharded(tensor) else tensor


def copies_among(tensor: Tensor, ranks: int) -> int:
    """Return on how many of so many ranks the same part of a tensor lies as on this one."""
    if not is_sharded(tensor):
        return ranks
    mesh, placements = tensor.device_mesh, tensor.placements
    divided = (mesh.size(dim) for dim, placement in enumerate(placements) if placement.is_shard())
    return ranks // math.prod(divided)


class Ranks:
    """Exchanges numbers between the processes of a group, on the host.

    They have a gloo group of their own, made at the first exchange: it takes tensors of the CPU whatever the training
    communicates with, no exchange waits for a device's queue, and none can be taken for one of the training's.

    Args:
        group: whose processes; None for all.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._members = group

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return several(self._members)

    @property
    def size(self) -> int:
        """How many there are."""
        return dist.get_world_size(self._members)

    def add_up(self, numbers: Tensor) -> Tensor:
        """Return the sum over all processes, float64 on the CPU, bit for bit the same in each. Each has to call it.

        Args:
            numbers: of the same shape everywhere.
        """
        self._group().allreduce([numbers]).wait()
        return numbers

    def gather(self, numbers: Tensor) -> list[Tensor]:
        """Return what each process has given. Each has to call it.

        Args:
            numbers: of the same shape everywhere, on the CPU.
        """
        found = [numbers.clone() for _ in range(self.size)]
        self._group().allgather([found], [numbers]).wait()
        return found

    def _group(self) -> Any:
        if not dist.is_gloo_available():
            raise UsageError(
                "sync='mean' exchanges ratios through gloo, and this torch is built without it. Set sync='none', with "
                "which each process decides for itself."
            )
        made = _made.setdefault(dist.group.WORLD, {})
        members = tuple(dist.get_process_group_ranks(self._members))
        if members not in made:
            made[members] = gloo_between(members)
        return made[members]


# By default group, and then by members. Whoever attaches again takes the one that there is: the processes of a group
# find each other by its members, and would find those of one that has been destroyed.
_made: weakref.WeakKeyDictionary[dist.ProcessGroup, dict[tuple[int, ...], Any]] = weakref.WeakKeyDictionary()
