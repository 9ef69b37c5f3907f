"""The layers of a model, as they are compiled one by one."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..errors import UsageError


def layers_of(model: nn.Module) -> list[nn.Module]:
    """Return the members of each outermost ``nn.ModuleList`` of several in which something trains.

    Of lists in lists, as where stages hold blocks, the members of the inner ones: nobody calls a list.

    Raises:
        UsageError: there is none.
    """
    found = list(_layers(model))
    if not found:
        raise UsageError(
            f"by_layer=True: {type(model).__name__} has no nn.ModuleList of several modules in which something trains. "
            "Leave it out, or compile parts by hand: part.compile(backend='skiplora', options=...)."
        )
    return found


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        members = list(_members(child)) if isinstance(child, nn.ModuleList) else []
        if len(members) < 2:
            yield from _layers(child)
        elif any(parameter.requires_grad for parameter in child.parameters()):
            yield from members


def _members(modules: nn.ModuleList) -> Iterator[nn.Module]:
    for member in modules:
        if isinstance(member, nn.ModuleList):
            yield from _members(member)
        else:
            yield member
