"""Write the gates of the scope ``"input"`` into a graph: where adapted layers read what they are given."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, fx

from ..gate import GATE
from ..site import Read, Site
from .copying import GraphCopy
from .dataflow import is_floating
from .memory import sharing_memory, writes


@dataclass(frozen=True)
class InputGate:
    """One gate that was written.

    Attributes:
        sites: the indices of its sites.
        wants_gradient: whether what it gates is known to want a gradient, so that there must be a twin in the backward.
    """

    sites: tuple[int, ...]
    wants_gradient: bool


def write_input_gates(copy: GraphCopy, sites: Sequence[Site], opens: Mapping[int, fx.Node]) -> list[InputGate]:
    """Gate what each of ``sites`` reads as its layer's input.

    In:
        The copy of a graph that ``find_lora`` searched, sites that were found in it, and for each the decision, a node
        that comes before all of them.
    Out:
        The gates. The copy is edited: nobody but the layers reads them, so the residual stream, and whatever else reads
        the same tensor, is left as it is.
    Terms:
        A frozen layer of several sites, as where adapters are chained or have a part of its output each, reads its
        input through a gate that is open while any of theirs is. One gate serves all that read the same input for the
        same sites, until somebody writes into that.
    """
    gates = []
    for read_by, (source, readers) in _gated(sites):
        first, value = copy.nodes[readers[0]], copy.nodes[source]
        with copy.gm.graph.inserting_before(first):
            open = opens[read_by[0]]
            for other in read_by[1:]:
                open = copy.gm.graph.call_function(torch.logical_or, (open, opens[other]))
            gate = copy.gm.graph.call_function(GATE, (value, open, list(read_by)))
        for reader in readers:
            copy.nodes[reader].replace_input_with(value, gate)
        gates.append(InputGate(read_by, _wants_gradient(source)))
    return gates


def _gated(sites: Sequence[Site]) -> Iterator[tuple[tuple[int, ...], tuple[fx.Node, list[fx.Node]]]]:
    """Yield the indices of the sites, the input, and its readers in their order, for each gate that is wanted."""
    read_by: dict[Read, list[int]] = {}
    for site in sites:
        for read in (*site.reads, *site.layer_reads):
            read_by.setdefault(read, []).append(site.index)
    alike: dict[tuple[tuple[int, ...], fx.Node], list[fx.Node]] = {}
    for read, indices in read_by.items():
        if is_floating(read.source):
            alike.setdefault((tuple(indices), read.source), []).append(read.reader)
    for (same, source), readers in alike.items():
        for part in _between_writes(source, readers):
            yield same, (source, part)


def _between_writes(source: fx.Node, readers: Sequence[fx.Node]) -> Iterator[list[fx.Node]]:
    """Yield the readers of ``source`` that read the same value."""
    aliases = sharing_memory(source)
    writers = {user for alias in aliases for user in alias.users if not aliases.isdisjoint(writes(user))}
    for _, part in groupby(sorted(readers), key=lambda reader: sum(writer < reader for writer in writers)):
        yield list(part)


def _wants_gradient(source: fx.Node) -> bool:
    value = source.meta.get("example_value")  # Dynamo's; other tracers note no more than shapes
    return isinstance(value, Tensor) and value.requires_grad
