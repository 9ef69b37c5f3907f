"""Random backward graphs: square matrices, gates, sums, products, views and operators with several results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from aten import gate
from hypothesis import strategies as st
from torch import Tensor

aten = torch.ops.aten
Values = tuple[Tensor, ...]


@dataclass(frozen=True)
class Step:
    """One operator on two earlier values, counted from the latest."""

    operator: str
    first: int
    second: int
    sites: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """A function of the decisions, two gradients and two weights, all float64 ``[n, n]``."""

    steps: tuple[Step, ...]
    outputs: tuple[int, ...]

    def __call__(self, opens: Tensor, grad: Tensor, other_grad: Tensor, weight: Tensor, other_weight: Tensor) -> Values:
        values = [weight, other_weight, other_grad, grad]
        for step in self.steps:
            first, second = (values[-1 - back % len(values)] for back in (step.first, step.second))
            if step.operator == "gate":
                values.append(gate(first, opens, *step.sites))
            else:
                values += OPERATORS[step.operator](first, second, weight)
        return tuple(values[-1 - back % len(values)] for back in self.outputs)

    def __str__(self) -> str:
        steps = (f"{step.operator}({step.first}, {step.second}, {step.sites})" for step in self.steps)
        return " ".join(steps) + f" -> {self.outputs}"


def inputs(size: int = 4) -> Values:
    """Return two gradients and two weights for a program: float64 ``[size, size]``."""
    generator = torch.Generator().manual_seed(size)
    return tuple(torch.randn(size, size, dtype=torch.float64, generator=generator) for _ in range(4))


def programs(sites: int, steps: int = 18) -> st.SearchStrategy[Program]:
    """Draw programs with gates of ``sites`` sites."""
    back = st.integers(0, 5)
    some_sites = st.lists(st.integers(0, sites - 1), min_size=1, max_size=2, unique=True).map(tuple)
    gates = st.builds(Step, st.just("gate"), back, back, some_sites)
    sums_and_products = st.builds(Step, st.sampled_from(["add", "mm"]), back, back, st.just(()))
    anything = st.builds(Step, st.sampled_from(list(OPERATORS)), back, back, st.just(()))
    # In equal parts, as in a real backward most nodes are products and sums.
    drawn = st.lists(gates | sums_and_products | anything, min_size=6, max_size=steps).map(tuple)
    return st.builds(Program, drawn, st.lists(back, min_size=1, max_size=4).map(tuple))


def _layer_norm_backward(a: Tensor, b: Tensor, weight: Tensor, with_weight: bool) -> Values:
    mean, rstd = weight.mean(1, keepdim=True), weight.abs().mean(1, keepdim=True)
    scale, shift = weight[0], weight[1]
    results = aten.native_layer_norm_backward(
        a, weight, [a.shape[1]], mean, rstd, scale, shift, [True, with_weight, True]
    )
    return tuple(value.expand(a.shape) for value in results if value is not None)


def _dropout_backward(a: Tensor, b: Tensor, weight: Tensor) -> Values:
    return (aten.native_dropout_backward(a, weight > 0, 2.0),)


def _index_put(a: Tensor, b: Tensor, weight: Tensor) -> Values:
    return (aten.index_put(a, [torch.tensor([0, 2, 0])], b[:3], True),)


def _halves_swapped(a: Tensor, b: Tensor, weight: Tensor) -> Values:
    top, bottom = a.chunk(2)
    return (torch.cat([bottom, top]),)


OPERATORS: dict[str, Callable[[Tensor, Tensor, Tensor], Values]] = {
    "add": lambda a, b, w: (a + b,),
    "mm": lambda a, b, w: (a.mm(w),),
    "mul": lambda a, b, w: (a * w,),
    "mm of two": lambda a, b, w: (a.mm(b),),
    "mul of two": lambda a, b, w: (a * b,),
    "mm from the left": lambda a, b, w: (w.t().mm(a),),
    "addmm": lambda a, b, w: (torch.addmm(a, b, w),),
    "addcmul": lambda a, b, w: (torch.addcmul(a, b, w),),
    "bmm": lambda a, b, w: (a[None].bmm(b[None])[0],),
    "sub": lambda a, b, w: (a - b,),
    "weighted add": lambda a, b, w: (torch.add(a, b, alpha=0.5),),
    "add a number": lambda a, b, w: (a + 0.25,),
    "add a row": lambda a, b, w: (a + b[:1],),
    "scale": lambda a, b, w: (a * 0.5,),
    "neg": lambda a, b, w: (-a,),
    "divide": lambda a, b, w: (a / (w * w + 1),),
    "transpose": lambda a, b, w: (a.t(),),
    "transposed copy": lambda a, b, w: (a.t().clone(memory_format=torch.contiguous_format),),
    "flat and back": lambda a, b, w: (a.reshape(-1).view(a.shape),),
    "expanded sum": lambda a, b, w: (a.sum(0, keepdim=True).expand(a.shape),),
    "one row": lambda a, b, w: (a.select(0, 1).expand(a.shape),),
    "cat": lambda a, b, w: (torch.cat([a[1:], b[:1]]),),
    "stack": lambda a, b, w: (torch.stack([a, b]).sum(0),),
    "halves swapped": _halves_swapped,
    "where": lambda a, b, w: (torch.where(w > 0, a, b),),
    "where or number": lambda a, b, w: (torch.where(w > 0, a, 0.5),),
    "index": lambda a, b, w: (a[torch.tensor([1, 0, 1, *range(3, 4)])].sum(0, keepdim=True).expand(a.shape),),
    "index_put": _index_put,
    "to float32": lambda a, b, w: (a.float().double(),),
    "clone": lambda a, b, w: (a.clone(),),
    "cos, which is not listed": lambda a, b, w: (a.cos(),),
    "layer norm": lambda a, b, w: _layer_norm_backward(a, b, w, True),
    "layer norm without weight": lambda a, b, w: _layer_norm_backward(a, b, w, False),
    "dropout": _dropout_backward,
    "softmax": lambda a, b, w: (aten._softmax_backward_data(a, w.softmax(1), 1, torch.float64),),
    "silu": lambda a, b, w: (aten.silu_backward(a, w),),
}
