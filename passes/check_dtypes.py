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
    for node in graph.nodes:
        if node.op != "call_function" or operator_name(node) not in _OF_ONE_DTYPE:
            continue
        values = [value for source in node.all_input_nodes if isinstance(value := value_of(source), Tensor)]
        dtypes = dict.fromkeys(value.dtype for value in values)
        # Autocast would make them the same.
        if len(dtypes) > 1 and not torch.is_autocast_enabled(values[0].device.type):
            found = " and ".join(map(str, dtypes))
            raise RuntimeError(f"{node.name} multiplies tensors of the same dtype only, and was given {found}")
