"""Which module's forward is running now."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from ._torch_compat import is_compiled_wrapper

_RESUMED = "torch_dynamo_resume_in_"
"""Before the name of a function whose rest Dynamo runs after a graph break."""


def outermost(holds: Callable[[nn.Module], bool]) -> nn.Module | None:
    """Return the outermost module whose ``forward`` is running and for which ``holds`` is true, or None.

    Where each layer is compiled by itself, that is the model. Wrappers that only lengthen names do not count.
    """
    found = None
    for module in _running():
        if not _is_wrapper(module) and holds(module):
            found = module
    return found


def model_of(parameter: Tensor) -> nn.Module | None:
    """Return the outermost module whose ``forward`` is running and that holds ``parameter``."""
    return outermost(lambda module: any(held is parameter for held in module.parameters()))


def owner_of(parameter: Tensor, model: nn.Module) -> nn.Module | None:
    """Return the module in ``model`` whose own parameter this is."""
    owners = (m for m in model.modules() if any(held is parameter for held in m.parameters(recurse=False)))
    return next(owners, None)


def _running() -> Iterator[nn.Module]:
    """Yield the modules whose ``forward`` is running, innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self") if frame.f_code.co_name.removeprefix(_RESUMED)[:7] == "forward" else None
        if isinstance(owner, nn.Module):
            yield owner
        frame = frame.f_back


def _is_wrapper(module: nn.Module) -> bool:
    return is_compiled_wrapper(module) or isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel))
