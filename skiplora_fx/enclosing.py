"""Which module's forward is running now."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from ._torch_compat import is_wrapper

_RESUMED = "torch_dynamo_resume_in_"
"""Before the name of a function whose rest Dynamo runs after a graph break."""


def outermost(holds: Callable[[nn.Module], bool]) -> nn.Module | None:
    """Return the outermost module whose ``forward`` is running and for which ``holds`` is true, or None.

    Where each layer is compiled by itself, that is the model. Wrappers that only lengthen names do not count.
    """
    found = None
    for module in _running():
        if not is_wrapper(module) and holds(module):
            found = module
    return found


def model_of(parameter: Tensor, root: nn.Module | None) -> nn.Module | None:
    """Return the outermost module whose ``forward`` is running and that holds ``parameter``.

    Args:
        parameter: of the module in question.
        root: what is returned if it holds the parameter and nobody whose forward is running does: where a training
            loop compiles a function, the function's own frame is all that there is.
    """
    found = outermost(lambda module: _holds(module, parameter))
    return root if found is None and root is not None and _holds(root, parameter) else found


def _holds(module: nn.Module, parameter: Tensor) -> bool:
    return any(held is parameter for held in module.parameters())


def owner_of(parameter: Tensor, model: nn.Module | None) -> weakref.ref[nn.Module] | None:
    """Return the module in ``model`` whose own parameter this is, or None if that is not known."""
    for module in model.modules() if model is not None else ():
        if any(held is parameter for held in module.parameters(recurse=False)):
            return weakref.ref(module)
    return None


def _running() -> Iterator[nn.Module]:
    """Yield the modules whose ``forward`` is running, innermost first."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name.removeprefix(_RESUMED).startswith("forward"):
            # Its first argument, which need not be called self; what Dynamo resumes has several in no order.
            first = frame.f_code.co_varnames[: frame.f_code.co_argcount][:1]
            owners = map(frame.f_locals.get, dict.fromkeys(("self", *first)))
            yield from (owner for owner in owners if isinstance(owner, nn.Module))
        frame = frame.f_back
