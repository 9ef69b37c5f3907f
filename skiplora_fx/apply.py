"""The pass on any traced graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ._torch_compat import fake_propagate, flatten_inputs, has_hooks, has_pytree_inputs, is_compiled_wrapper
from .config import SkipLoraConfig
from .eager import CALLS, GateRuntime
from .errors import ConfigError, UsageError, reason_of
from .live_site import Slot
from .nothing_found import NoLoRAWarning, nothing_found
from .passes import Pipeline
from .passes.attach_runtime import attach_runtime
from .passes.copying import GraphCopy
from .passes.dataflow import value_of
from .passes.insert_truncations import insert_truncations
from .passes.parameters import Lifted
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
        options: as in ``model.compile(backend="skiplora", options=...)``, without those of Inductor.

    Returns:
        A gated copy, which takes and returns what the graph does. If nothing in it can be gated, a plain copy.

    Raises:
        UsageError: not a graph or module; no shapes are known; the graph does not run on these inputs.
        ConfigError: an option is unknown or out of range, or a threshold's glob matches no site.
    """
    config = _config(options)
    original = _traced(graph_module, example_inputs)
    copy = GraphCopy.of(original)
    gm = copy.gm
    gm.graph._codegen = original.graph._codegen
    gm.train(original.training)
    _inline_leaves(gm)
    _note_shapes(gm, example_inputs)
    lifted, inputs = _lifted(gm, example_inputs)

    original_output = _wrap_output(gm.graph)
    pipeline = Pipeline(config.scope, config.disable_passes, held=config.decision == "previous")
    findings = pipeline.rewrite_dynamo(gm, lifted)
    if pipeline.gated is None:
        if not findings.sites:
            warnings.warn(nothing_found(findings), NoLoRAWarning, stacklevel=2)
        gm.graph.output_node().args = (original_output,)
        gm.recompile()
        return gm
    trained = list(dict.fromkeys(node for site in findings.sites for node in site.trained))
    carried = {node: position for position, node in enumerate(trained)}
    runtime = GateRuntime([Slot.of(site, carried) for site in findings.sites], config)
    gated = attach_runtime(pipeline.gated, runtime, CALLS, original.graph)
    insert_truncations(gated, lifted, CALLS.gate, CALLS.truncate)
    gated.train(original.training)
    _bind(gated, runtime, findings, inputs, config)
    return gated


def _config(options: dict[str, Any]) -> SkipLoraConfig:
    config = SkipLoraConfig.from_options(options)
    if config.inductor:
        names = ", ".join(map(repr, config.inductor))
        raise ConfigError(
            f"apply: {names} would go to Inductor, which apply does not run. Give it to torch.compile(result, "
            'backend="inductor", options={...}) instead.'
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


_LEAVES: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Linear: F.linear,
    nn.Embedding: F.embedding,
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}


def _inline_leaves(gm: fx.GraphModule) -> None:
    """Write calls of linears, convolutions and embeddings, which symbolic_trace leaves whole, as functions."""
    for node in gm.graph.find_nodes(op="call_module"):
        module = gm.get_submodule(str(node.target))
        function = _LEAVES.get(type(module))
        if function is None or has_hooks(module) or getattr(module, "padding_mode", "zeros") != "zeros":
            continue
        with gm.graph.inserting_before(node):
            weight = gm.graph.get_attr(f"{node.target}.weight")
            bias = gm.graph.get_attr(f"{node.target}.bias") if getattr(module, "bias", None) is not None else None
            call = gm.graph.call_function(function, (*node.args, weight, *_arguments(module, bias)), dict(node.kwargs))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        gm.graph.erase_node(node)


def _arguments(module: Any, bias: fx.Node | None) -> tuple[Any, ...]:
    if isinstance(module, nn.Linear):
        return (bias,)
    if isinstance(module, nn.Embedding):
        return module.padding_idx, module.max_norm, module.norm_type, module.scale_grad_by_freq, module.sparse
    return bias, module.stride, module.padding, module.dilation, module.groups


def _note_shapes(gm: fx.GraphModule, examples: Sequence[Any]) -> None:
    gm.recompile()
    if examples:
        _check_number(gm, examples)
        try:
            fake_propagate(gm, examples)
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
    needed = sum(not node.args for node in inputs)  # of the others a default is known
    given = len(flatten_inputs(examples)) if has_pytree_inputs(gm) else len(examples)
    if not needed <= given <= len(inputs):
        names = ", ".join(str(node.target) for node in inputs)
        raise UsageError(
            f"apply: the graph takes {len(inputs)} inputs ({names}), but there are {given} example inputs "
            f"({_shapes(examples)}). Give what the graph is called with."
        )


def _shapes(examples: Sequence[Any]) -> str:
    return ", ".join(str(list(value.shape)) if isinstance(value, Tensor) else _type(value) for value in examples)


def _lifted(gm: fx.GraphModule, examples: Sequence[Any]) -> tuple[dict[str, Lifted], dict[str, Tensor]]:
    """Return the placeholders that hold parameters, by name, and what tensors were given for all of them.

    A placeholder holds a parameter if its example is an ``nn.Parameter``, or comes in one container with one, as
    in ``{**named_parameters, **named_buffers}``. Where a graph has no other parameters at all, a leaf that
    requires a gradient is one too.
    """
    placeholders = [node.name for node in gm.graph.find_nodes(op="placeholder")]
    leaves = flatten_inputs(examples)
    if len(leaves) != len(placeholders):
        return {}, {}
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
