"""The layers of a model that are alike, as they are compiled one by one."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..errors import UsageError


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the members of each outermost ``nn.ModuleList`` whose members are of one class, where something trains.

    Raises:
        UsageError: there is none.
    """
    found = [layer for layers in _stacks(model) for layer in layers]
    if not any(parameter.requires_grad for layer in found for parameter in layer.parameters()):
        raise UsageError(
            f"by_layer=True: {type(model).__name__} has no nn.ModuleList of modules of one class in which something "
            "trains. Leave it out, or compile parts by hand: part.compile(backend='skiplora', options=...)."
        )
    return found


def _stacks(module: nn.Module) -> Iterator[nn.ModuleList]:
    for child in module.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1 and len({type(member) for member in child}) == 1:
            yield child
        else:
            yield from _stacks(child)
