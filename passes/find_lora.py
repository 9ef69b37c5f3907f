"""Find the LoRA adapters of a graph."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .._torch_compat import placeholder_source
from ..site import Findings, Rejection, Site

_ADDS: tuple[Any, ...] = (operator.add, torch.add, "add")
_INPLACE_ADDS: tuple[Any, ...] = (operator.iadd, "add_")
_CASTS: tuple[Any, ...] = ("to", "type", "float", "half", "bfloat16", "double", "type_as", "contiguous")
_SCALES: tuple[Any, ...] = (operator.mul, torch.mul, "mul", operator.truediv, torch.div, "div")
_DROPOUTS: tuple[Any, ...] = (F.dropout, torch.dropout)
_LINEAR = F.linear
_CHECKPOINT = torch.ops.higher_order.tag_activation_checkpoint
_SET_GRAD = torch._C._set_grad_enabled


def find_lora(gm: fx.GraphModule) -> Findings:
    """Find every place where a low-rank branch joins a frozen path by an addition.

    In:
        A graph as Dynamo hands it to a backend: torch-level operators, parameters as placeholders,
        ``meta["example_value"]`` on each node. Bodies of ``tag_activation_checkpoint`` are searched too.
        The graph is not changed.
    Out:
        :class:`~skiplora_fx.site.Findings`: the sites in the order in which the forward runs them, and a
        :class:`~skiplora_fx.site.Rejection` for every parameter that trains and belongs to none of them.
    Terms:
        *join*: ``h + Δh``. *branch*: ``Δh = scale · B(A(x))``, where A and B are ``F.linear`` and casts,
        dropout and products with a number may stand anywhere between. Of the branch's weights at least one
        must train, and nothing outside may read what lies between A and the join. The base ``h`` may be
        computed by anything.

    What decides is structure and which parameters train; a name is only a label.
    """
    search = _Search()
    search.visit(_Frame(gm, (), {}))
    return search.findings(gm)


@dataclass(frozen=True)
class _Frame:
    """One graph of the search: the root, or the body of a checkpoint."""

    gm: fx.GraphModule
    body: tuple[str, ...]
    roots: dict[fx.Node, fx.Node]
    """For each placeholder of a body, the root's node that is passed for it."""

    def root_placeholder(self, node: object) -> fx.Node | None:
        """Return the root's placeholder that ``node`` is, or is a cast of."""
        while isinstance(node, fx.Node) and node.op != "placeholder":
            if not _is(node, _CASTS):
                return None
            node = node.args[0]
        if not isinstance(node, fx.Node):
            return None
        root = self.roots.get(node, node)
        return root if root.op == "placeholder" else None


@dataclass(frozen=True)
class _Branch:
    """A matched branch: its two linears, and the root's placeholders for its parameters, A's first."""

    a: fx.Node
    b: fx.Node
    parameters: tuple[fx.Node, ...]
    rank: int


class _NotABranch(Exception):
    """Why an addend that reads trained weights is not a branch."""


class _Search:
    """Collects sites and near misses over a graph and its bodies; lives for one call of ``find_lora``."""

    def __init__(self) -> None:
        self._sites: list[Site] = []
        self._by_join: dict[fx.Node, int] = {}
        self._misses: dict[fx.Node, Rejection] = {}

    def visit(self, frame: _Frame) -> None:
        grad_enabled = True
        for node in frame.gm.graph.nodes:
            if node.op == "call_function" and node.target is _SET_GRAD:
                grad_enabled = bool(node.args[0])
            elif node.op == "call_function" and node.target is _CHECKPOINT:
                self.visit(_body_frame(frame, node))
            elif _is(node, _ADDS) or _is(node, _INPLACE_ADDS):
                self._visit_join(frame, node, grad_enabled)

    def findings(self, gm: fx.GraphModule) -> Findings:
        claimed = {parameter for site in self._sites for parameter in site.parameters}
        unclaimed = [node for node in gm.graph.nodes if _is_trained_parameter(node) and node not in claimed]
        misses = dict.fromkeys(self._misses.get(node) or _unmatched(node) for node in unclaimed)
        return Findings(tuple(self._sites), tuple(misses))

    def _visit_join(self, frame: _Frame, join: fx.Node, grad_enabled: bool) -> None:
        if len(join.args) != 2 or join.kwargs or not all(_is_floating(addend) for addend in join.args):
            return
        for delta, base in (join.args[::-1], join.args):
            try:
                branch = _match_branch(frame, delta)
                if branch is not None:
                    _check_join(join, base, delta, grad_enabled)
                    self._add_site(frame, join, base, delta, branch)
                    return
            except _NotABranch as miss:
                self._note_miss(frame, delta, str(miss))

    def _add_site(self, frame: _Frame, join: fx.Node, base: Any, delta: Any, branch: _Branch) -> None:
        previous = self._by_join.get(_skip(base, _CASTS))
        chain, h = 0, base
        if previous is not None:
            chain, h = self._sites[previous].chain + 1, self._sites[previous].h
            self._sites[previous] = replace(self._sites[previous], last=False)
        name, adapter = _label(branch.parameters)
        key = next(p for p in branch.parameters if _requires_grad(p))
        depth = len(_path(key).split(".")) - len(name.split(".") if name else ())
        index = len(self._sites)
        self._by_join[join] = index
        self._sites.append(
            Site(
                index=index,
                name=name,
                adapter=adapter,
                join=join,
                h=h,
                delta=delta,
                chain=chain,
                last=True,
                parameters=branch.parameters,
                key=key,
                key_depth=depth,
                rank=branch.rank,
                body=frame.body,
            )
        )

    def _note_miss(self, frame: _Frame, delta: Any, reason: str) -> None:
        trained = list(_trained_weights(frame, delta))
        name, _ = _label(tuple(trained))
        for parameter in trained:
            self._misses.setdefault(parameter, Rejection(name, reason, delta.name))


def _match_branch(frame: _Frame, delta: Any) -> _Branch | None:
    """Return the branch that ends in ``delta``, or None if no trained weight is near."""
    b = _walk_back(delta)
    if not _is_linear(b):
        return None
    weight_b = frame.root_placeholder(b.args[1])
    if weight_b is None:
        return None
    a = _walk_back(b.args[0])
    if not _is_linear(a):
        if _requires_grad(weight_b):
            raise _NotABranch(f"the weight is applied to the output of {_op_name(a)}, not of a second linear")
        return None
    weight_a = frame.root_placeholder(a.args[1])
    if weight_a is None or not (_requires_grad(weight_a) or _requires_grad(weight_b)):
        return None
    rank = _check_low_rank(weight_a, weight_b)
    _check_private(a, delta)
    biases = [frame.root_placeholder(_bias(linear)) for linear in (a, b)]
    return _Branch(a, b, tuple(p for p in (weight_a, weight_b, *biases) if p is not None), rank)


def _check_low_rank(weight_a: fx.Node, weight_b: fx.Node) -> int:
    shape_a, shape_b = _shape(weight_a), _shape(weight_b)
    rank, wide = shape_a[0], max(shape_a[-1], shape_b[0])
    if rank >= wide:
        raise _NotABranch(f"its inner dimension {rank} is not below the larger of its outer ones, {wide}: not low-rank")
    return int(rank)


def _check_private(a: fx.Node, delta: fx.Node) -> None:
    """Raise if a node from A's output to Δh is read by anything but the next one."""
    node = delta
    while True:
        if len(node.users) != 1:
            readers = ", ".join(user.name for user in node.users)
            raise _NotABranch(f"{node.name}, inside the branch, has several readers: {readers}")
        if node is a:
            return
        node = _operand(node)


def _check_join(join: fx.Node, base: Any, delta: Any, grad_enabled: bool) -> None:
    if not grad_enabled:
        raise _NotABranch("the branch runs under no_grad, so it has no backward")
    if _shape(base) != _shape(delta):
        raise _NotABranch(f"h {tuple(_shape(base))} and Δh {tuple(_shape(delta))} differ in shape")
    if _is(join, _INPLACE_ADDS) and len(base.users) > 1:
        raise _NotABranch("the branch is added in place to a tensor that others read as well")


def _walk_back(node: Any) -> Any:
    """Follow ``node`` to what it was computed from, past casts, dropout and products with a number."""
    while isinstance(node, fx.Node) and _is_passthrough(node):
        node = _operand(node)
    return node


def _is_passthrough(node: fx.Node) -> bool:
    if _is(node, _CASTS) or _is(node, _DROPOUTS):
        return True
    # A number may be a node as well: with dynamic=True Dynamo makes Python floats inputs of the graph.
    return _is(node, _SCALES) and sum(_is_tensor(arg) for arg in node.args) == 1


def _operand(node: fx.Node) -> fx.Node:
    """Return the tensor operand of a passthrough or a linear."""
    return next(arg for arg in node.args if isinstance(arg, fx.Node) and _is_tensor(arg))


def _skip(node: Any, kinds: tuple[Any, ...]) -> Any:
    while isinstance(node, fx.Node) and _is(node, kinds):
        node = node.args[0]
    return node


def _body_frame(frame: _Frame, call: fx.Node) -> _Frame:
    body = call.args[0]
    assert isinstance(body, fx.Node)
    gm = frame.gm.get_submodule(str(body.target))
    assert isinstance(gm, fx.GraphModule)
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    passed = [arg for arg in call.args[1:] if isinstance(arg, fx.Node)]
    roots = {inner: frame.roots.get(outer, outer) for inner, outer in zip(inputs, passed, strict=False)}
    return _Frame(gm, (*frame.body, call.name), roots)


def _trained_weights(frame: _Frame, delta: Any) -> Iterator[fx.Node]:
    """Yield the trained weights of the linears at the end of an addend."""
    node = _walk_back(delta)
    while _is_linear(node):
        weight = frame.root_placeholder(node.args[1])
        if weight is not None and _requires_grad(weight):
            yield weight
        node = _walk_back(node.args[0])


def _unmatched(parameter: fx.Node) -> Rejection:
    readers = sorted({_op_name(user) for user in parameter.users}) or ["nothing"]
    reason = (
        f"trains, but is no part of a low-rank branch of two linears joined by an addition: read by {_list(readers)}"
    )
    return Rejection(_path(parameter), reason, parameter.name)


def _list(words: list[str]) -> str:
    return ", ".join(words)


def _is(node: object, kinds: tuple[Any, ...]) -> bool:
    return isinstance(node, fx.Node) and node.op in ("call_function", "call_method") and node.target in kinds


def _is_linear(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is _LINEAR


def _bias(linear: fx.Node) -> Any:
    return linear.args[2] if len(linear.args) > 2 else linear.kwargs.get("bias")


def _value(node: object) -> Any:
    return node.meta.get("example_value") if isinstance(node, fx.Node) else None


def _shape(node: object) -> tuple[Any, ...]:
    value = _value(node)
    return tuple(value.shape) if isinstance(value, Tensor) else ()


def _is_tensor(node: object) -> bool:
    return isinstance(_value(node), Tensor)


def _is_floating(node: object) -> bool:
    value = _value(node)
    return isinstance(value, Tensor) and value.is_floating_point()


def _requires_grad(node: object) -> bool:
    value = _value(node)
    return isinstance(value, Tensor) and value.requires_grad


def _is_trained_parameter(node: fx.Node) -> bool:
    return node.op == "placeholder" and _requires_grad(node) and "_parameters" in (placeholder_source(node) or "")


def _op_name(node: object) -> str:
    if not isinstance(node, fx.Node):
        return repr(node)
    if node.op == "placeholder":
        return "an input of the graph"
    target: str | Callable[..., Any] = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


_SOURCE_PART = re.compile(r"_(?:modules|parameters|buffers)['\"\]]*\[['\"]([^'\"]+)['\"]\]")


def _path(parameter: fx.Node) -> str:
    """Return the dotted path of a parameter, as in ``named_parameters()`` of the compiled module."""
    parts = _SOURCE_PART.findall(placeholder_source(parameter) or "")
    return ".".join(parts) if parts else parameter.name


def _label(parameters: tuple[fx.Node, ...]) -> tuple[str, str]:
    """Return the path of the layer that owns ``parameters``, and what tells its adapters apart."""
    paths = [_path(parameter).split(".")[:-1] for parameter in parameters]
    common = 0
    while all(len(path) > common for path in paths) and len({path[common] for path in paths}) == 1:
        common += 1
    rest = paths[0][common:] if paths else []  # the module of A or B, and in PEFT then the adapter's name
    return ".".join(paths[0][:common]) if paths else "", rest[-1] if len(rest) > 1 else ""
