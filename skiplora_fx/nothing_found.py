"""What a user is told where nothing can be gated."""

from __future__ import annotations

from .site import Findings


class NoLoRAWarning(UserWarning):
    """A model or a graph was given in which no adapter can be gated."""


def cut_apart(findings: Findings) -> str:
    """Return what is not gated in a piece of a graph that DDPOptimizer has cut, and how not to have it cut."""
    return (
        "torch.compile cuts the graphs of a DistributedDataParallel into pieces, one for each of its buckets, and an "
        "edge may lie inside an adapter, whose halves cannot be gated. Trained, but not gated, in the first such piece:"
        f"{_listed(findings)}\nHeads and norms that train are no halves. TORCH_LOGS=+skiplora_fx tells of every piece. "
        "Larger buckets (bucket_cap_mb) make fewer edges. torch._dynamo.config.optimize_ddp = "
        "False, before the first forward, makes none; gradients are then exchanged after the backward, not during it."
    )


def nothing_found(findings: Findings) -> str:
    """Return what was looked for, and why what trains is not it."""
    looked_for = (
        "skiplora found no LoRA adapter that it can gate, so the model runs as it would without. It looked for a "
        "low-rank branch, at least a part of it trained, that joins another path by an addition."
    )
    if not findings.rejections:
        return f"{looked_for} Nothing trains here: is requires_grad set on the adapter's parameters?"
    return f"{looked_for} Trained, but not gated:{_listed(findings)}"


def _listed(findings: Findings) -> str:
    shown = [f"\n  {rejection.name}: {rejection.reason}" for rejection in findings.rejections[:5]]
    rest = len(findings.rejections) - len(shown)
    return "".join(shown) + (f"\n  … and {rest} more" if rest else "")
