"""What is done to the gradients of gated adapters before an optimizer reads them, and how large they are."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ._torch_compat import foreach_norm
from .host_copy import HostCopy
from .live_site import LiveSite
from .ranks import copies_among, local_part
from .registry import leave_to_read
from .shared_step import SharedSteps


def drop_gradients(sites: Sequence[LiveSite]) -> None:
    """Set the gradients of what was shut in every backward of the step to None."""
    kept = {id(parameter) for site in sites if site.opens_in_step for parameter in site.parameters()}
    for site in sites:
        for parameter in site.parameters() if site.backwards_in_step else ():
            if id(parameter) not in kept:
                parameter.grad = None


def measure_gradients(sites: Sequence[LiveSite]) -> None:
    """Begin to copy each site's gradient norm to the host; the gradients are not held on to."""
    by_device: dict[torch.device, list[tuple[LiveSite, Tensor]]] = defaultdict(list)
    for site in sites:
        for parameter in site.parameters():
            if parameter.grad is not None:
                by_device[parameter.grad.device].append((site, parameter.grad))
    copies = [
        ([site for site, _ in found], HostCopy(torch.stack([n.float() for n in foreach_norm([g for _, g in found])])))
        for found in by_device.values()
    ]

    def read() -> None:
        norms: dict[LiveSite, list[float]] = {site: [] for site in sites}
        for owners, copy in copies:
            for site, norm in zip(owners, copy.tolist(), strict=True):
                norms[site].append(norm)
        for site, parts in norms.items():
            site.gradient_norm = math.hypot(*parts)

    if copies:
        leave_to_read(read)


def measure_shards(sites: Sequence[LiveSite], shared: SharedSteps) -> None:
    """Measure each site's gradient norm over all ranks, of which each has a part. Every rank has to call it.

    Waits for the device. Where ranks do not share their steps, no rank knows more than its own part: the norms are NaN.
    """
    squares: dict[LiveSite, float] = {}
    for site in sites:
        grads = [parameter.grad for parameter in site.parameters() if parameter.grad is not None]
        norms = foreach_norm([local_part(grad) for grad in grads]) if grads else []
        squares[site] = sum(
            float(norm) ** 2 / copies_among(grad, shared.ranks.size) for norm, grad in zip(norms, grads, strict=True)
        )
    for site, total in shared.add_up(squares).items():
        site.gradient_norm = math.sqrt(total)


def total_norm(sites: Iterable[LiveSite]) -> float:
    """Return the L2 norm of the gradients of several sites at once."""
    return math.hypot(*(site.gradient_norm for site in sites))
