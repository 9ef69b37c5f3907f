"""Where Inductor calls the passes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import fx

from . import _torch_compat, gate, passes
from ._torch_compat import (
    CustomGraphPass,
    donate_nothing,
    get_hash_for_files,
    global_inductor_option,
    writes_other_than_python,
)
from .config import SkipLoraConfig
from .failures import Failures
from .passes import Pipeline
from .passes.operators import COND
from .watching import DEBUG_DIR


def with_hooks(
    inductor: dict[str, Any], pipeline: Pipeline, config: SkipLoraConfig, failures: Failures
) -> dict[str, Any]:
    """Return Inductor's options with the pipeline before whatever passes the user put in the same places."""
    # What the passes do depends on these options alone; thresholds and policies are none of the graph's.
    gates = pipeline.gated and pipeline.gated.gates
    key = repr((config.scope, config.decision, config.disable_passes, gates, pipeline.inputs))
    hooks = {
        "joint_custom_pre_pass": _Hook(failures.noting("fold_gates", pipeline.rewrite_joint), key),
        "post_grad_custom_pre_pass": _Hook(failures.noting("predicate_backward", _rewriting_backward(pipeline)), key),
    }
    last = {}
    if config.outline_layers and not writes_other_than_python(inductor):
        outlined = _Hook(partial(_outline, pipeline, failures), "outline_layers")
        last["post_grad_custom_post_pass"] = _after(outlined, inductor, "post_grad_custom_post_pass")
    if pipeline.counts or DEBUG_DIR in os.environ:
        inductor = {**inductor, "force_disable_caches": True}  # what comes from a cache runs no pass
    return {**inductor, **{name: _before(hook, inductor, name) for name, hook in hooks.items()}, **last}


def _outline(pipeline: Pipeline, failures: Failures, graph: fx.Graph) -> None:
    try:
        pipeline.outline(graph)
    except Exception as error:
        failures.tolerate("outline_layers", error)


def _rewriting_backward(pipeline: Pipeline) -> Callable[[fx.Graph], None]:
    def rewrite(graph: fx.Graph) -> None:
        pipeline.rewrite_backward(graph)
        if graph.find_nodes(op="call_function", target=COND):
            donate_nothing()

    return rewrite


def _before(hook: _Hook, inductor: dict[str, Any], name: str) -> Any:
    theirs = _theirs(inductor, name)
    return _InARow([hook, *theirs]) if theirs else hook


def _after(hook: _Hook, inductor: dict[str, Any], name: str) -> Any:
    theirs = _theirs(inductor, name)
    return _InARow([*theirs, hook]) if theirs else hook


def _theirs(inductor: dict[str, Any], name: str) -> list[Any]:
    """Return the passes that the user put in a place."""
    found = inductor.get(name, global_inductor_option(name))
    if found is None:
        return []
    return list(found) if isinstance(found, (list, tuple)) else [found]


class _Hook(CustomGraphPass):
    """A step of the pipeline in the form in which Inductor takes one.

    Args:
        rewrite: edits a graph in place.
        key: what the result depends on beside the graph and :data:`_SOURCES`, for Inductor's caches.
    """

    def __init__(self, rewrite: Callable[[fx.Graph], None], key: str) -> None:
        self._rewrite = rewrite
        self._key = key

    def __call__(self, graph: fx.Graph) -> None:
        self._rewrite(graph)

    def uuid(self) -> Any:
        return get_hash_for_files(_SOURCES, extra=self._key)


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
    *sorted(str(path) for path in Path(passes.__file__).parent.glob("*.py")),
)
"""All that has a say in what becomes of a graph: what an older version left in Inductor's caches is not taken."""
