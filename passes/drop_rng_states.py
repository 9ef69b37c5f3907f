"""Run without a saved state of the random generator what draws nothing from it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .._torch_compat import OpOverload
from .operators import call_draws, name_of


def drop_rng_states(graph: fx.Graph) -> None:
    """Replace each call from a saved state of the generator by the call itself, if that draws nothing.

    Activation checkpointing repeats in this way every operator that may draw, such as attention, with or without a
    dropout.

    In:
        A backward graph as the partitioner cut it.
    Out:
        The same graph, edited. Its placeholders stay, those that hold a state too.
    Terms:
        *call from a saved state*: ``run_with_rng_state(state, operator, ...)``, or on a GPU
        ``graphsafe_run_with_rng_state(operator, ..., rng_state=state)``. Both put the generator's own state back
        behind it. The second advances the state that it is given, which has to keep up with the forward's: so what
        draws stays as it is, and always runs.
    """
    for node in list(graph.nodes):
        call = _called(node)
        if call is not None and not call_draws(*call):
            meta = dict(node.meta)
            if "val" not in meta:  # the partitioner notes none of what it writes
                meta["val"] = _fake_result(*call)
            with graph.inserting_before(node):
                bare = graph.call_function(*call)
            bare.meta = meta
            node.replace_all_uses_with(bare)
            graph.erase_node(node)


def _fake_result(operator: OpOverload, args: Any, kwargs: Any) -> Any:
    args, kwargs = fx.map_arg((args, kwargs), lambda source: source.meta["val"])
    with torch.no_grad():
        return operator(*args, **kwargs)


def _called(node: fx.Node) -> tuple[OpOverload, tuple[Any, ...], dict[str, Any]] | None:
    """Return the operator that a node calls from a saved state, and its arguments; None of any other node."""
    if node.op != "call_function" or name_of(node) not in ("run_with_rng_state", "graphsafe_run_with_rng_state"):
        return None
    operator, *args = node.args[1:] if name_of(node) == "run_with_rng_state" else node.args
    kwargs = {name: value for name, value in node.kwargs.items() if name != "rng_state"}
    return (operator, tuple(args), kwargs) if isinstance(operator, OpOverload) else None
