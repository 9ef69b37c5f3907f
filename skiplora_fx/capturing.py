"""One forward of a model under Dynamo, with a backend that only looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._torch_compat import capture_graphs, unwrapped
from .errors import UsageError, compiler_error, reason_of


def module_of(model: Any, caller: str) -> nn.Module:
    """Return the module to call for a model, an ``ExportedProgram``, or what ``torch.compile`` made of one.

    Raises:
        UsageError: it is none of these; ``caller`` is the function that the user called.
    """
    if isinstance(model, torch.export.ExportedProgram):
        return model.module()
    if not isinstance(model, nn.Module):
        raise UsageError(f"{caller} needs a model, a torch.nn.Module, got {type(model).__name__}")
    return unwrapped(model)


def capture(
    model: nn.Module,
    backend: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    on_break: Callable[[str, str], None],
    usage: str,
) -> None:
    """Call ``model`` once with ``backend``; caches, and the state of random numbers, are left as they are found.

    Args:
        model, args, kwargs: what is called.
        backend: as of ``torch.compile``.
        on_break: called with the message and the place of each graph break.
        usage: the user's call, such as ``"explain(model, *args, **kwargs)"``, for errors.

    Raises:
        UsageError: the model does not run on these inputs, or torch cannot compile it.
    """
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
            capture_graphs(model, backend, args, dict(kwargs), on_break)
    except Exception as error:
        name, reason, caller = type(model).__name__, reason_of(error), usage.partition("(")[0]
        if compiler_error(error) is not None:
            raise UsageError(
                f"{caller}: torch.compile fails on {name}, whatever is done with its gates: {reason}."
            ) from error
        raise UsageError(
            f"{caller}: {name} does not run on these inputs: {reason}. Call {usage} with what the model is called with "
            "in training, labels included."
        ) from error


def device_of_what_trains(inputs: Sequence[Any]) -> torch.device:
    """Return the device of the first input that requires a gradient."""
    return next(value.device for value in inputs if isinstance(value, Tensor) and value.requires_grad)
