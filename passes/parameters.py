"""The parameters of a graph, whichever way it holds them, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from .._torch_compat import is_constant_name, placeholder_source
from .dataflow import Roots

_SOURCE_PART = re.compile(r"_(?:modules|parameters|buffers)['\"\]]*\[['\"]([^'\"]+)['\"]\]")
_LAST_PART = re.compile(r"_(?:parameters|buffers)['\"\]]*\[")
_OF_A_MODULE = re.compile(r"_modules|^L\['self'\]")  # a buffer, or a tensor that a module keeps without saying so
_STACK_PART = re.compile(r"\[['\"]?([^'\"\]]+)['\"]?\]|\.?(\w+)")


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer of the traced module.

    Attributes:
        node: the placeholder or ``get_attr`` of the root graph that holds it; the first, if several do.
        path: as in ``named_parameters()`` of the traced module; where the trace has lost it, the node's name.
        trained: whether it requires a gradient.
        named: whether ``path`` is a path.
    """

    node: fx.Node
    path: str
    trained: bool
    named: bool


@dataclass(frozen=True)
class Lifted:
    """A parameter that a graph takes as an input without knowing it: what the caller says of a placeholder."""

    path: str
    trained: bool


class Parameters:
    """All parameters and buffers of a root graph.

    Args:
        gm: a graph from Dynamo (parameters are placeholders with a source), or one that holds its parameters
            itself (``get_attr``).
        lifted: what is known of the other placeholders.
    """

    def __init__(self, gm: fx.GraphModule, lifted: Mapping[str, Lifted] | None = None) -> None:
        self._by_node: dict[fx.Node, Parameter] = {}
        first: dict[int, Parameter] = {}
        for node in gm.graph.nodes:
            if node.op == "placeholder":
                found = _of_placeholder(node, lifted or {})
            elif node.op == "get_attr" and (tensor := _attribute(gm, str(node.target))) is not None:
                named = not is_constant_name(str(node.target))
                trained = tensor.requires_grad and tensor.is_leaf
                found = first.setdefault(id(tensor), Parameter(node, str(node.target), trained, named))
            else:
                continue
            if found is not None:
                self._by_node[node] = found

    def __iter__(self) -> Iterator[Parameter]:
        return iter(dict.fromkeys(self._by_node.values()))

    def seeds(self, graph: fx.Graph) -> dict[fx.Node, Roots | None]:
        """Return for each placeholder and ``get_attr`` of the root which parameter it is, None for an activation."""
        sources = [node for node in graph.nodes if node.op in ("placeholder", "get_attr")]
        return {node: self._roots(node) for node in sources}

    def _roots(self, node: fx.Node) -> Roots | None:
        found = self._by_node.get(node)
        if found is not None:
            return (found.node,)
        return () if node.op == "get_attr" else None

    def of(self, roots: Iterable[fx.Node]) -> list[Parameter]:
        """Return the parameters that stand for ``roots``."""
        return [self._by_node[node] for node in roots]

    def trained(self, roots: Iterable[fx.Node]) -> Roots:
        """Return those of ``roots`` that train."""
        return tuple(node for node in roots if self._by_node[node].trained)

    def nodes_of(self, root: fx.Node) -> list[fx.Node]:
        """Return all nodes of the root graph that hold one parameter."""
        return [node for node, parameter in self._by_node.items() if parameter.node is root]


def _of_placeholder(node: fx.Node, lifted: Mapping[str, Lifted]) -> Parameter | None:
    if node.name in lifted:
        known = lifted[node.name]
        return Parameter(node, known.path, known.trained, known.path != node.name)
    value, source = node.meta.get("example_value"), placeholder_source(node) or ""
    if not isinstance(value, Tensor):
        return None
    if not isinstance(value, nn.Parameter) and not _OF_A_MODULE.search(source):
        return None
    named = _LAST_PART.search(source) is not None
    path = ".".join(_SOURCE_PART.findall(source)) if named else node.name
    return Parameter(node, path, value.requires_grad and isinstance(value, nn.Parameter), named)


def _attribute(gm: nn.Module, path: str) -> Tensor | None:
    owner: object = gm
    for part in path.split("."):
        owner = getattr(owner, part, None)
    return owner if isinstance(owner, Tensor) else None


def module_of(node: fx.Node) -> str:
    """Return the path of the module in whose forward a node was traced; empty if that is unknown."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    path = re.sub(r"^L\[['\"]\w+['\"]\]", "", str(list(stack.values())[-1][0]))
    parts = ["".join(match) for match in _STACK_PART.findall(path)]
    return ".".join(part for part in parts if part not in ("__dict__", "_modules", "_orig_mod"))


def label(parameters: Sequence[Parameter], join: fx.Node) -> tuple[str, str]:
    """Return the path of the layer that owns a branch's ``parameters``, and what tells its adapters apart."""
    paths = [parameter.path.split(".") for parameter in parameters if parameter.named]
    if not paths:
        return join.name, ""
    common = 0
    while all(len(path) - 1 > common for path in paths) and len({path[common] for path in paths}) == 1:
        common += 1
    name = _layer(paths, paths[0][:common], module_of(join).split("."))
    rests = {path[len(name) + 1] for path in paths if path[: len(name)] == name and len(path) > len(name) + 1}
    adapter = rests.pop() if len(rests) == 1 else ""
    return ".".join(name), "" if adapter in ("weight", "bias") or adapter.isdigit() else adapter


def _layer(paths: Sequence[list[str]], common: list[str], module: list[str]) -> list[str]:
    """Return the module in whose forward the join lies, where the parameters' common path says less or is too long."""
    owns_some = any(path[: len(module)] == module for path in paths)
    shared_elsewhere = owns_some and len(module) > len(common)
    # Of parameters, such as nn.ParameterDict; or of modules, and the branch has one parameter that nobody shares.
    in_a_container = module != [""] and module in (common[:-1], common[:-2] if len(paths) == 1 else None)
    return module if shared_elsewhere or in_a_container else common
