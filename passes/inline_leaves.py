"""Write the modules that symbolic_trace leaves whole as the functions they call, so that their weights can be seen."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn
from torch.nn.utils import parametrize

from .._torch_compat import has_hooks


def inline_leaves(gm: fx.GraphModule) -> None:
    """Inline calls of torch's own modules, in place.

    In:
        A graph from ``symbolic_trace``; any other has no such calls.
    Out:
        The same graph. A call stays where the module's forward cannot be traced by itself, does something else in
        training mode than in eval mode (dropout, batch norm: the graph is to follow ``train()`` and ``eval()``), or
        is not all that a call runs (hooks, parametrizations), or where it is called with more than one input. So do
        modules that are not torch's: whoever traced the graph asked for them to be left whole.
    """
    graphs: dict[nn.Module, fx.Graph | None] = {}
    for node in gm.graph.find_nodes(op="call_module"):
        module = gm.get_submodule(str(node.target))
        if module not in graphs:
            graphs[module] = _graph_of(module)
        inner = graphs[module]
        if inner is not None and len(node.args) == 1 and not node.kwargs:
            _inline(gm.graph, node, inner)


class _Tracer(fx.Tracer):
    """Looks into everything, and computes nothing from buffers while it does."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return False


def _graph_of(module: nn.Module) -> fx.Graph | None:
    """Return what a module's forward computes, or None if that is not to be inlined."""
    if not type(module).__module__.startswith("torch.nn.modules."):
        return None
    if any(has_hooks(part) or parametrize.is_parametrized(part) for part in module.modules()):
        return None
    modes = [_trace(module, training) for training in (True, False)]
    if modes[0] is None or modes[1] is None or str(modes[0]) != str(modes[1]):
        return None
    return modes[0] if _reads_only_what_is_there(modes[0], module) else None


class _Call(nn.Module):
    """A module called with one input: what has a default is then no input of the trace."""

    def __init__(self, called: nn.Module) -> None:
        super().__init__()
        self.called = called

    def forward(self, x: Any) -> Any:
        return self.called(x)


def _trace(module: nn.Module, training: bool) -> fx.Graph | None:
    alike = copy.copy(module)  # of the mode that is asked for; it shares all else
    alike.training = training
    try:
        return _Tracer().trace(_Call(alike))
    except Exception:  # whatever its Python says to proxies
        return None


def _reads_only_what_is_there(graph: fx.Graph, module: nn.Module) -> bool:
    names = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    return all(_path_of(node) in names for node in graph.find_nodes(op="get_attr"))


def _path_of(attribute: fx.Node) -> str:
    return str(attribute.target).removeprefix("called.")


def _inline(graph: fx.Graph, call: fx.Node, inner: fx.Graph) -> None:
    values: dict[fx.Node, Any] = dict(zip(inner.find_nodes(op="placeholder"), call.args, strict=True))
    with graph.inserting_before(call):
        for node in inner.nodes:
            if node.op not in ("placeholder", "output"):
                values[node] = graph.node_copy(node, values.__getitem__)
                values[node].meta = {name: kept for name, kept in call.meta.items() if name not in _VALUES}
            if node.op == "get_attr":
                values[node].target = f"{call.target}.{_path_of(node)}"
    (result,) = inner.output_node().args
    inlined = fx.node.map_arg(result, values.__getitem__)
    assert isinstance(inlined, fx.Node)
    inlined.meta.update(call.meta)
    call.replace_all_uses_with(inlined)
    graph.erase_node(call)


_VALUES = ("val", "example_value", "tensor_meta")
