"""Where Inductor calls the passes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import fx

from . import _torch_compat, gate, passes, stand_in
from ._torch_compat import (
    CustomGraphPass,
    CustomPartitionerFn,
    donate_nothing,
    get_hash_for_files,
    global_inductor_option,
    is_inductor_option,
    min_cut_partition,
    writes_other_than_python,
)
from .config import SkipLoraConfig
from .failures import Failures
from .passes import Pipeline
from .watching import DEBUG_DIR

_REORDERS = ("triton.cudagraphs", "aten_distributed_optimizations.enable_overlap_scheduling")
"""Options with which memory is not given back: a CUDA graph would not repeat it, the other goes by data alone."""


def with_hooks(
    inductor: dict[str, Any], pipeline: Pipeline, config: SkipLoraConfig, failures: Failures
) -> dict[str, Any]:
    """Return Inductor's options with the pipeline before whatever passes the user put in the same places."""
    # What the passes do depends on these options alone; thresholds and policies are none of the graph's.
    gates = pipeline.gated and pipeline.gated.gates
    key: str | None = repr((config.scope, config.decision, config.disable_passes, gates, pipeline.inputs))
    theirs = _option(inductor, "custom_partitioner_fn")
    if pipeline.counts or DEBUG_DIR in os.environ:
        key = None  # what comes from a cache runs no pass
    if theirs is not None and theirs.uuid() is None:
        key = None  # Inductor asks its passes whether they allow a cache, but not the partitioner
    in_python = not writes_other_than_python(inductor)
    reorders = any(_option(inductor, name) for name in _REORDERS if is_inductor_option(name))
    hooks = {
        "joint_custom_pre_pass": _Hook(failures.noting("fold_gates", pipeline.rewrite_joint), key),
        "post_grad_custom_pre_pass": _Hook(failures.noting("predicate_backward", _rewriting_backward(pipeline)), key),
    }
    last: list[_Hook] = []
    hooked = {name: _in_a_row(inductor, name, before=[hook]) for name, hook in hooks.items()}
    if pipeline.releases and in_python and not reorders:
        hooked["custom_partitioner_fn"] = _Partitioner(theirs, pipeline.rewrite_partitioned, key)
        last.append(_Hook(pipeline.settle_forward, key))
    if config.outline_layers and in_python:
        last.append(_Hook(pipeline.outline, "outline_layers"))
    if last:
        hooked["post_grad_custom_post_pass"] = _in_a_row(inductor, "post_grad_custom_post_pass", after=last)
    return {**inductor, **hooked}


def _option(inductor: dict[str, Any], name: str) -> Any:
    return inductor.get(name, global_inductor_option(name))


def _rewriting_backward(pipeline: Pipeline) -> Callable[[fx.Graph], None]:
    def rewrite(graph: fx.Graph) -> None:
        pipeline.rewrite_backward(graph)
        donate_nothing()  # before Inductor looks; without a cond too, as the backend has torch allow retain_graph

    return rewrite


def _in_a_row(inductor: dict[str, Any], name: str, *, before: Sequence[_Hook] = (), after: Sequence[_Hook] = ()) -> Any:
    """Return what the user put in a place with hooks before or after it."""
    theirs = _option(inductor, name)
    listed = list(theirs) if isinstance(theirs, (list, tuple)) else [theirs] if theirs is not None else []
    hooks = [*before, *listed, *after]
    return hooks[0] if len(hooks) == 1 else _InARow(hooks)


class _Hook(CustomGraphPass):
    """A step of the pipeline in the form in which Inductor takes one.

    Args:
        rewrite: edits a graph in place.
        key: what the result depends on beside the graph and :data:`_SOURCES`, for Inductor's caches; None keeps the
            graph out of them. Kernels are found again all the same.
    """

    def __init__(self, rewrite: Callable[[fx.Graph], None], key: str | None) -> None:
        self._rewrite = rewrite
        self._key = key

    def __call__(self, graph: fx.Graph) -> None:
        self._rewrite(graph)

    def uuid(self) -> Any:
        return None if self._key is None else get_hash_for_files(_SOURCES, extra=self._key)


class _Partitioner(CustomPartitionerFn):
    """Cuts a joint graph as it would have been cut, and shows both halves.

    Args:
        theirs: the user's partitioner; None for Inductor's own.
        rewrite: takes the two halves, and how many of the forward's outputs are the user's; edits them in place.
        key: as of :class:`_Hook`.
    """

    def __init__(
        self, theirs: CustomPartitionerFn | None, rewrite: Callable[[fx.Graph, fx.Graph, int], None], key: str | None
    ) -> None:
        self._theirs = theirs
        self._rewrite = rewrite
        self._key = key

    def __call__(
        self, gm: fx.GraphModule, joint_inputs: Sequence[Any], **kwargs: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        cut = min_cut_partition if self._theirs is None else self._theirs
        forward, backward = cut(gm, joint_inputs, **kwargs)
        self._rewrite(forward.graph, backward.graph, kwargs["num_fwd_outputs"])
        forward.recompile()
        backward.recompile()
        return forward, backward

    def uuid(self) -> Any:
        """Return a key made of the user's as well; None keeps a graph out of the caches."""
        if self._key is None:
            return None
        theirs = None if self._theirs is None else self._theirs.uuid()
        return get_hash_for_files(_SOURCES, extra=self._key), theirs

    # Inductor copies its options, and its caches pickle this one for their key beside asking for its own.
    def __deepcopy__(self, memo: dict[int, Any]) -> _Partitioner:
        return self

    def __reduce__(self) -> Any:
        return _Partitioner, (self._theirs, _nothing_more, self._key)


def _nothing_more(forward: fx.Graph, backward: fx.Graph, outputs: int) -> None:
    pass


class _InARow(CustomGraphPass):
    """Several passes as one, as torch 2.11 takes no list of them."""

    def __init__(self, rewrites: Sequence[Callable[[fx.Graph], None]]) -> None:
        self._rewrites = tuple(rewrites)

    def __call__(self, graph: fx.Graph) -> None:
        for rewrite in self._rewrites:
            rewrite(graph)

    def uuid(self) -> Any:
        """Return a key made of theirs, or None, which keeps a graph out of the caches, if one has none."""
        keys = tuple(each.uuid() if isinstance(each, CustomGraphPass) else None for each in self._rewrites)
        return keys if all(keys) else None


_SOURCES = (
    __file__,
    _torch_compat.__file__,
    gate.__file__,
    stand_in.__file__,
    *sorted(str(path) for path in Path(passes.__file__).parent.glob("*.py")),
)
"""All that has a say in what becomes of a graph: what an older version left in Inductor's caches is not taken."""
