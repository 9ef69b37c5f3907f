"""What a user is told where nothing can be gated."""

from __future__ import annotations

from .site import Findings


class NoLoRAWarning(UserWarning):
    """A model or a graph was given in which no adapter can be gated."""


def nothing_found(findings: Findings) -> str:
    """Return what was looked for, and why what trains is not it."""
    shown = [f"\n  {rejection.name}: {rejection.reason}" for rejection in findings.rejections[:5]]
    rest = len(findings.rejections) - len(shown)
    looked_for = (
        "skiplora found no LoRA adapter that it can gate, so the model runs as it would without. It looked for a "
        "low-rank branch, at least a part of it trained, that joins another path by an addition."
    )
    if not shown:
        return f"{looked_for} Nothing trains here: is requires_grad set on the adapter's parameters?"
    return f"{looked_for} Trained, but not gated:" + "".join(shown) + (f"\n  … and {rest} more" if rest else "")
