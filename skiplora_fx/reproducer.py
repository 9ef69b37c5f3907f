"""A graph that Dynamo captured, as a script that compiles it again by itself."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import SymBool, SymFloat, SymInt, Tensor, fx, nn

from .config import SkipLoraConfig

_SYMBOLIC = (SymInt, SymFloat, SymBool)


@dataclass(frozen=True)
class TensorKind:
    """All of a tensor but its values, and nothing that keeps it alive.

    Attributes:
        shape: its sizes, symbolic ones among them.
        stride: of each dimension, in elements; none of a sparse tensor.
        dtype: of its elements.
        device: where it lies.
        requires_grad: whether it is differentiated.
        is_parameter: whether it is an ``nn.Parameter``.
    """

    shape: tuple[Any, ...]
    stride: tuple[Any, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    is_parameter: bool

    @classmethod
    def of(cls, tensor: Tensor) -> TensorKind:
        """Return the kind of ``tensor``, real or fake."""
        is_parameter = isinstance(tensor, nn.Parameter)
        shape, stride = tuple(tensor.shape), tuple(tensor.stride()) if tensor.layout is torch.strided else ()
        return cls(shape, stride, tensor.dtype, tensor.device, tensor.requires_grad, is_parameter)

    def source(self) -> str:
        """Return Python code that makes such a tensor; in a script of :func:`script_of` only."""
        shape, stride = tuple(map(_hint, self.shape)), tuple(map(_hint, self.stride))
        if len(stride) < len(shape):
            made = f"torch.zeros({shape}, dtype={self.dtype}, device={str(self.device)!r}).to_sparse()"
        else:
            made = f"made({shape}, {stride}, {self.dtype}, {str(self.device)!r})"
        if self.is_parameter:
            return f"torch.nn.Parameter({made}, {self.requires_grad})"
        return f"{made}.requires_grad_()" if self.requires_grad else made


def kinds_of(inputs: Sequence[Any]) -> list[Any]:
    """Return the inputs of a graph with the kinds of its tensors in their places."""
    return [TensorKind.of(value) if isinstance(value, Tensor) else value for value in inputs]


def is_dynamic(inputs: Sequence[Any]) -> bool:
    """Return whether any size or number among ``inputs``, as :func:`kinds_of` gives them, is symbolic."""
    sizes = (size for value in inputs if isinstance(value, TensorKind) for size in (*value.shape, *value.stride))
    return any(isinstance(number, _SYMBOLIC) for number in (*inputs, *sizes))


def _hint(number: Any) -> Any:
    """Return a number, of a symbolic one what it was when it was traced: to convert it would fix it for good."""
    if not isinstance(number, _SYMBOLIC):
        return number
    hint = number.node.hint
    return 1 if hint is None else hint  # none is known of what a tensor's values decide


def script_of(gm: fx.GraphModule, inputs: Sequence[Any], config: SkipLoraConfig) -> str:
    """Return a script that compiles a graph with the same options and ``strict=True``, and runs its backward.

    Args:
        gm: the graph as Dynamo captured it.
        inputs: what it was captured with, as :func:`kinds_of` gives it.
        config: the options. Thresholds and ``only`` are left out, as names of sites do not come with a graph.
    """
    names: dict[str, Any] = {}
    classes = list(_classes(gm, "Captured", names))
    options, left_out = _options(config)
    return "\n".join(
        [
            '"""The graph on which a pass of skiplora failed; values are random."""',
            "",
            *sorted({"import torch", *(f"import {module}" for module in map(_module_of, names.values()) if module)}),
            "",
            *(line for name, value in sorted(names.items()) for line in _binding(name, value)),
            _MADE,
            *classes,
            "",
            "def inputs():",
            *(f"    yield {_input(value)}" for value in inputs),
            *([] if inputs else ["    yield from ()"]),
            "",
            "",
            'if __name__ == "__main__":',
            *(f"    # Left out, as no text makes it again: {name}={_one_line(value)}" for name, value in left_out),
            f"    options = {options!r}",
            f"    dynamic = {is_dynamic(inputs)}",
            '    compiled = torch.compile(Captured(), backend="skiplora", dynamic=dynamic, options=options)',
            "    outputs = compiled(*inputs())",
            "    sum(out.float().sum() for out in outputs if isinstance(out, torch.Tensor)).backward()",
            "",
        ]
    )


_MADE = '''
def made(shape, stride, dtype, device):
    """Return a tensor of random values, or of zeros if they are whole numbers."""
    size = 1 + sum((n - 1) * step for n, step in zip(shape, stride)) if all(shape) else 0
    if dtype.is_floating_point or dtype.is_complex:
        values = torch.empty(size, device=device).normal_(std=0.1).to(dtype)
    else:
        values = torch.zeros(size, dtype=dtype, device=device)
    return torch.empty(0, dtype=dtype, device=device).set_(values.untyped_storage(), 0, shape, stride)
'''


def _options(config: SkipLoraConfig) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
    """Return what the graph's passes and Inductor depend on, and what of it cannot be written as text."""
    given = {
        "scope": config.scope,
        "decision": config.decision,
        "disable_passes": list(config.disable_passes),
        "merge_siblings": config.merge_siblings,
        "policy": config.policy,
        "policy_kwargs": dict(config.policy_kwargs),
        **config.inductor,
    }
    left_out = [(name, value) for name, value in given.items() if not _is_literal(value)]
    kept = {name: value for name, value in given.items() if _is_literal(value)}
    return {"strict": True, "warmup_steps": 0, **kept}, left_out


def _is_literal(value: Any) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError):
        return False


def _classes(gm: fx.GraphModule, name: str, names: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of a module with the graph's code, after those of the modules in it.

    Args:
        gm: the graph.
        name: of the class.
        names: takes in the global names that the code reads.
    """
    code = gm.graph.python_code("self")
    names |= {known: value for known, value in code.globals.items() if re.search(rf"\b{known}\b", code.src)}
    parts = [(path, part) for path, part in gm.named_children() if isinstance(part, fx.GraphModule)]
    for path, part in parts:
        yield from _classes(part, f"{name}_{path}", names)
    yield from ("", f"class {name}(torch.nn.Module):", "    def __init__(self):", "        super().__init__()")
    yield from (f"        self.{path} = {name}_{path}()" for path, _ in parts)
    yield from (f"        self.{path} = {TensorKind.of(value).source()}" for path, value in _constants(gm))
    yield from ("", *(f"    {line}".rstrip() for line in code.src.strip().splitlines()), "")


def _constants(gm: fx.GraphModule) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that a graph reads from its module."""
    for path in dict.fromkeys(str(node.target) for node in gm.graph.find_nodes(op="get_attr")):
        value = getattr(gm, path, None)
        if isinstance(value, Tensor):
            yield path, value


def _module_of(value: Any) -> str | None:
    """Return the module that, imported in another process, is ``value`` or holds it by name; None if none does."""
    if isinstance(value, ModuleType):
        return value.__name__
    module: str = getattr(value, "__module__", None) or ""
    found: Any = sys.modules.get(module) if module != "__main__" else None
    for part in getattr(value, "__qualname__", "").split("."):
        found = getattr(found, part, None)
    return module if found is value else None


def _binding(name: str, value: Any) -> list[str]:
    """Return the lines that give a global name of a graph's code its value, once its module is imported."""
    module = _module_of(value)
    if isinstance(value, ModuleType):
        return [f"{name} = {module}"] if name != module else []
    if value is type(None):
        return [f"{name} = type(None)"]
    if isinstance(value, float):
        return [f'{name} = float("{value}")']
    if module is not None:
        return [f"{name} = {module}.{value.__qualname__}"]
    told = f"{name} has to be given: it was {_one_line(value)}, which no module holds by name"
    return ["", "", f"def {name}(*args, **kwargs):", f"    raise NotImplementedError({told!r})", ""]


def _input(value: Any) -> str:
    if isinstance(value, TensorKind):
        return value.source()
    number = _hint(value)
    return repr(number) if _is_literal(number) else f"None  # it was {_one_line(value)}"


def _one_line(value: Any) -> str:
    return " ".join(repr(value).split())
