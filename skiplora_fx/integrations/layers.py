"""The layers of a model, as they are compiled one by one."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..errors import UsageError


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the members of each outermost ``nn.ModuleList`` of several in which something trains.

    Raises:
        UsageError: there is none.
    """
    found = [layer for layers in _stacks(model) for layer in layers]
    if not found:
        raise UsageError(
            f"by_layer=True: {type(model).__name__} has no nn.ModuleList of several modules in which something trains. "
            "Leave it out, or compile parts by hand: part.compile(backend='skiplora', options=...)."
        )
    return found


def _stacks(module: nn.Module) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if not isinstance(child, nn.ModuleList) or len(child) < 2:
            yield from _stacks(child)
        elif any(parameter.requires_grad for parameter in child.parameters()):
            yield child
