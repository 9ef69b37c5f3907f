"""The pass on any traced graph."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ._torch_compat import fake_propagate, flatten_inputs, has_pytree_inputs, is_compiled_wrapper, take_signature
from .config import SkipLoraConfig
from .eager import CALLS, INPUT_CALLS, GateRuntime
from .eager_costs import eager_costs
from .errors import ConfigError, UsageError, reason_of
from .gated_module import GatedModule
from .live_site import Slot
from .nothing_found import NoLoRAWarning, nothing_found
from .passes import Pipeline
from .passes.attach_runtime import attach_runtime
from .passes.check_dtypes import check_dtypes
from .passes.copying import GraphCopy
from .passes.dataflow import value_of
from .passes.inline_leaves import inline_leaves
from .passes.insert_truncations import insert_truncations
from .passes.parameters import Lifted
from .policy import needs
from .registry import learn_names
from .site import Findings


def apply(graph_module: Any, *example_inputs: Any, **options: Any) -> fx.GraphModule:
    """Gate the LoRA adapters of a traced graph; its eager backward then leaves out what shut gates do not need.

    A shut gate returns no gradient, so autograd runs nothing below it, and what would have been its
    gradients stays None. :func:`~skiplora_fx.sites`, :func:`~skiplora_fx.report`, :func:`~skiplora_fx.set_threshold`
    and :func:`~skiplora_fx.attach` work on the result. It may be given to ``torch.compile`` with any backend; there a
    shut gate gives zeros, and a step is counted for each forward in training mode.

    Args:
        graph_module: a ``torch.fx.GraphModule`` from ``symbolic_trace``, ``make_fx`` or ``torch.export``
            (``.module()``), a ``torch.export.ExportedProgram``, or a module, which is then exported. It is not changed;
            parameters, buffers and submodules are shared with it.
        example_inputs: what the graph is called with: tensors of the right shapes and dtypes. Needed where the graph
            does not know its shapes (``symbolic_trace``), where it takes its parameters as inputs, and for a module.
        options: as in ``model.compile(backend="skiplora", options=...)``, without those of Inductor and
            ``merge_siblings``.

    Returns:
        A gated copy, which takes and returns what the graph does. If nothing in it can be gated, a plain copy.

    Raises:
        UsageError: not a graph or module; no shapes are known; the graph does not run on these inputs, or names a
            module or parameter that is not there.
        ConfigError: an option is unknown or out of range, or a threshold's glob matches no site.
    """
    config = _config(options)
    original = _traced(graph_module, example_inputs)
    _check_attributes(original)
    copy = GraphCopy.of(original)
    gm = copy.gm
    take_signature(gm.graph, original.graph)
    gm.train(original.training)
    inline_leaves(gm)
    _note_shapes(gm, example_inputs)
    lifted, inputs = _lifted(gm, example_inputs)

    original_output = _wrap_output(gm.graph)
    counts = needs(config.make_policy(), "costs")
    pipeline = Pipeline(config.scope, config.disable_passes, held=config.decision == "previous", counts=counts)
    findings = pipeline.rewrite_dynamo(gm, lifted)
    if pipeline.gated is None:
        if not findings.sites:
            warnings.warn(nothing_found(findings), NoLoRAWarning, stacklevel=2)
        gm.graph.output_node().args = (original_output,)
        gm.recompile()
        return gm
    trained = list(dict.fromkeys(node for site in findings.sites for node in site.trained))
    carried = {node: position for position, node in enumerate(trained)}
    flops = eager_costs(pipeline) if counts else None
    runtime = GateRuntime([Slot.of(site, carried) for site in findings.sites], config, flops)
    others_trained = [name for name, parameter in lifted.items() if parameter.trained]
    if config.scope == "input":  # autograd itself runs nothing for what is detached
        gm = attach_runtime(pipeline.gated, runtime, INPUT_CALLS, original.graph, others_trained)
    else:
        gm = attach_runtime(pipeline.gated, runtime, CALLS, original.graph, others_trained)
        insert_truncations(gm, lifted, CALLS.gate, CALLS.truncate)
    gated = GatedModule(gm, gm.graph)
    gated.meta = gm.meta
    gated.train(original.training)
    _bind(gated, runtime, findings, inputs, config)
    return gated


def _config(options: dict[str, Any]) -> SkipLoraConfig:
    config = SkipLoraConfig.from_options(options).in_processes()
    if config.inductor:
        names = ", ".join(map(repr, config.inductor))
        raise ConfigError(
            f"apply: {names} would go to Inductor, which apply does not run. Give it to torch.compile(result, "
            'backend="inductor", options={...}) instead.'
        )
    if config.merge_siblings:
        raise ConfigError(
            "apply: merge_siblings=True is for graphs that are compiled; leave it out, or use "
            'model.compile(backend="skiplora", options={"merge_siblings": True}).'
        )
    return config


def _traced(module: Any, examples: Sequence[Any]) -> fx.GraphModule:
    if isinstance(module, torch.export.ExportedProgram):
        return module.module()
    if isinstance(module, fx.GraphModule):
        return module
    if is_compiled_wrapper(module):
        raise UsageError(
            "apply was given what torch.compile returned, which has no graph of its own. Give it the module inside, or "
            'a graph traced from it; to gate a model that is compiled, use backend="skiplora".'
        )
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"apply needs a torch.fx.GraphModule, a torch.export.ExportedProgram or a module, got {_type(module)}"
        )
    if not examples:
        raise UsageError(
            f"apply was given a module ({_type(module)}) and no example inputs to trace it with. Call "
            "skiplora_fx.apply(module, *example_inputs), or trace it first and give the graph."
        )
    try:
        return torch.export.export(module, tuple(examples)).module()
    except Exception as error:
        raise UsageError(
            f"apply: torch.export cannot trace {_type(module)} with these inputs: {reason_of(error)}. Check the "
            "inputs, or trace it another way (torch.fx.symbolic_trace, make_fx) and give the graph; "
            'model.compile(backend="skiplora") needs no single graph.'
        ) from error


def _type(value: object) -> str:
    return type(value).__name__


def _check_attributes(gm: fx.GraphModule) -> None:
    for node in gm.graph.nodes:
        if node.op in ("get_attr", "call_module") and not _has_attribute(gm, str(node.target)):
            raise UsageError(
                f"apply: the graph's node {node.name} ({node.op}) names {node.target!r}, which the module does not "
                "have. Give the module that the graph belongs to."
            )


def _has_attribute(owner: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(owner, name):
            return False
        owner = getattr(owner, name)
    return True


def _note_shapes(gm: fx.GraphModule, examples: Sequence[Any]) -> None:
    gm.recompile()
    if examples:
        _check_number(gm, examples)
        try:
            fake_propagate(gm, examples)
            check_dtypes(gm.graph)
        except Exception as error:
            raise UsageError(
                f"apply: the graph does not run on these example inputs ({_shapes(examples)}): {reason_of(error)}. "
                "Give what the graph is called with."
            ) from error
    elif not any(isinstance(value_of(node), Tensor) for node in gm.graph.nodes if node.op.startswith("call")):
        raise UsageError(
            "apply: this graph does not know the shapes of its tensors, which torch.fx.symbolic_trace does not note. "
            "Call skiplora_fx.apply(graph_module, *example_inputs) with what the graph is called with."
        )


def _check_number(gm: fx.GraphModule, examples: Sequence[Any]) -> None:
    inputs = gm.graph.find_nodes(op="placeholder")
    starred = [node for node in inputs if _is_starred(node)]
    needed = sum(not node.args for node in inputs) - len(starred)  # of the others a default is known
    most = math.inf if any(not _takes_keywords(node) for node in starred) else len(inputs) - len(starred)
    given = len(flatten_inputs(examples)) if has_pytree_inputs(gm) else len(examples)
    if not needed <= given <= most:
        names = ", ".join(str(node.target) for node in inputs)
        raise UsageError(
            f"apply: the graph takes {len(inputs)} inputs ({names}), but there are {given} example inputs "
            f"({_shapes(examples)}). Give what the graph is called with."
        )


def _is_starred(node: fx.Node) -> bool:
    return str(node.target).startswith("*")


def _takes_keywords(node: fx.Node) -> bool:
    return str(node.target).startswith("**")


def _shapes(examples: Sequence[Any]) -> str:
    return ", ".join(str(list(value.shape)) if isinstance(value, Tensor) else _type(value) for value in examples)


def _lifted(gm: fx.GraphModule, examples: Sequence[Any]) -> tuple[dict[str, Lifted], dict[str, Tensor]]:
    """Return the placeholders that hold parameters, by name, and what tensors were given for all of them.

    A placeholder holds a parameter if its example is an ``nn.Parameter``, or comes in one container with one, as
    in ``{**named_parameters, **named_buffers}``. Where a graph has no other parameters at all, a leaf that
    requires a gradient is one too.
    """
    inputs = [node for node in gm.graph.find_nodes(op="placeholder") if not _is_starred(node)]
    leaves = flatten_inputs(examples)[: len(inputs)]
    if not has_pytree_inputs(gm):
        leaves = [((str(place),), example) for place, example in enumerate(examples[: len(inputs)])]
    placeholders = [node.name for node in inputs[: len(leaves)]]  # for the others their defaults stand
    given = {name: leaf for name, (_, leaf) in zip(placeholders, leaves, strict=True) if isinstance(leaf, Tensor)}
    own = any(parameter.requires_grad for parameter in gm.parameters())
    surely = [isinstance(leaf, nn.Parameter) for _, leaf in leaves]
    if not own and not any(surely):
        surely = [isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_leaf for _, leaf in leaves]
    containers = {path[0] for (path, _), sure in zip(leaves, surely, strict=True) if sure and len(path) > 1}
    lifted = {}
    for name, (path, leaf), sure in zip(placeholders, leaves, surely, strict=True):
        if isinstance(leaf, Tensor) and (sure or path[0] in containers):
            lifted[name] = Lifted(".".join(path[1:]) or name, leaf.requires_grad and leaf.is_leaf)
    return lifted, given


def _wrap_output(graph: fx.Graph) -> Any:
    output = graph.output_node()
    (original,) = output.args
    output.args = ((original,),)
    return original


def _bind(
    gm: fx.GraphModule, runtime: GateRuntime, findings: Findings, inputs: dict[str, Tensor], config: SkipLoraConfig
) -> None:
    """Make the sites known now, where their parameters are, so that thresholds can be set before the first call."""
    learn_names(gm)
    config.check_globs([site.name for site in findings.sites])
    trained = [
        inputs.get(node.name) if node.op == "placeholder" else _attribute(gm, str(node.target))
        for node in dict.fromkeys(node for site in findings.sites for node in site.trained)
    ]
    if all(isinstance(parameter, Tensor) for parameter in trained):
        runtime.bind([parameter for parameter in trained if parameter is not None])


def _attribute(gm: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(gm.get_submodule(owner), name)
