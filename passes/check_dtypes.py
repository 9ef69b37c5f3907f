"""What fake tensors let through: a product of a float matrix and an integer one."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from .dataflow import value_of
from .linear_operators import names, operator_name

_OF_ONE_DTYPE = names("linear matmul mm bmm mv addmm addmv baddbmm conv1d conv2d conv3d convolution")


def check_dtypes(graph: fx.Graph) -> None:
    """Check that what a linear or a convolution multiplies is of one dtype.

    In:
        A forward graph with a fake value on each node.

    Raises:
        RuntimeError: it is not, in the words of torch, which would say so when the graph runs.
    """
    if torch.is_autocast_enabled():
        return  # then it need not be
    for node in graph.nodes:
        if node.op != "call_function" or operator_name(node) not in _OF_ONE_DTYPE:
            continue
        values = [value_of(source) for source in node.all_input_nodes]
        dtypes = dict.fromkeys(value.dtype for value in values if isinstance(value, Tensor))
        if len(dtypes) > 1:
            found = " and ".join(map(str, dtypes))
            raise RuntimeError(f"{node.name} multiplies tensors of the same dtype only, and was given {found}")
