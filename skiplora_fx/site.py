"""What the search for adapters found: a :class:`Site` for each one it can gate, a :class:`Rejection` for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import fx


class Read(NamedTuple):
    """One place in a graph where ``reader`` takes ``source`` as an operand."""

    reader: fx.Node
    source: fx.Node


@dataclass(frozen=True)
class Site:
    """A low-rank branch that joins a frozen path by an addition: ``join = h + Δh``.

    Attributes:
        index: position in the graph's vectors of thresholds and ratios.
        name: path of the adapted layer, relative to the module that was compiled; empty if it is that module.
        adapter: the adapter's name where the paths of the branch's parameters have one (as PEFT's do), else empty.
        join: the addition.
        h: the frozen layer's output. Where adapters are chained, that of the layer, not of the last join.
        delta: the addend that is the branch's output, Δh.
        chain: position among the adapters chained on this layer, from 0.
        last: whether this is the last of that chain, so that ``join`` is the adapted layer's output.
        parameters: nodes of the *root* graph that hold the branch's parameters, as a rule A before B: placeholders,
            or ``get_attr`` where the graph holds its parameters itself.
        trained: those of them that train.
        own: those of them that nothing outside the branch reads.
        key: the one whose run-time value identifies the site: of those that train, one that the fewest sites share.
        key_depth: how many trailing parts the key's parameter path has beyond ``name``; 0 if the path is unknown.
        rank: r.
        kind: the branch's contractions, such as ``"linear→linear"`` or ``"composed linear"``.
        factors: those contractions, from the branch's input to Δh: nodes of the graph of ``join``.
        reads: where the branch reads the adapted layer's input.
        layer_reads: where the frozen layers that make h read the same.
        body: names of the nodes whose bodies lead from the root graph to the graph of ``join``: empty for
            the root graph itself, else calls of activation checkpoints.
    """

    index: int
    name: str
    adapter: str
    join: fx.Node
    h: fx.Node
    delta: fx.Node
    chain: int
    last: bool
    parameters: tuple[fx.Node, ...]
    trained: tuple[fx.Node, ...]
    own: tuple[fx.Node, ...]
    key: fx.Node
    key_depth: int
    rank: int
    kind: str
    factors: tuple[fx.Node, ...]
    reads: tuple[Read, ...] = ()
    layer_reads: tuple[Read, ...] = ()
    body: tuple[str, ...] = ()

    def __str__(self) -> str:
        label = f"{self.name or '(the compiled module)'} {f'[{self.adapter}] ' if self.adapter else ''}"
        return f"{label}r={self.rank} at {'/'.join((*self.body, self.join.name))}"


FAMILIES: dict[str, str] = {
    "weight-space": "the adapter changes a frozen weight before that is used: minLoRA, SHiRA, GLoRA",
    "multiplicative": "the adapter multiplies or rotates what it adapts: IA3, OFT, BOFT, HRA, RoAd, DEFT, FRoD",
    "opaque": "the adapter lies in an operator that no gate can be put into: Unsloth's kernels, VeLoRA, C3A, autocast",
    "routed": "another activation decides how much of the adapter is used: Poly, Lily, Arrow, SwiGLU",
    "non-linear": "a small network with a non-linearity, not a low-rank product: Houlsby's adapters, latent attention",
    "not low-rank": "two linears in a row, and no bottleneck between them",
    "trained base": "what it is added to trains as well: full fine-tuning, factorised embeddings",
    "shared": "something outside reads what lies inside the branch, so Δh is not all that would be detached",
    "no join": "trains, but is no branch that is added to something: a head, a bias, a norm, an embedding",
    "outside any graph": "Dynamo leaves the code that uses it to Python, or nothing that has a backward uses it",
    "already gated": "a graph that skiplora has gated before",
}
"""Why something that trains is not gated: the families, with examples."""


@dataclass(frozen=True)
class Rejection:
    """Something that looked like an adapter, or trains, and is not gated.

    Attributes:
        name: path of the module or parameter in question.
        reason: why it is left alone, in words for the user.
        node: name of the graph node where the search stopped.
        family: one of :data:`FAMILIES`.
        source: the line of the model's source that the node was traced from, if the graph knows it.
    """

    name: str
    reason: str
    node: str
    family: str
    source: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.reason} (at {self.node})"


@dataclass(frozen=True)
class Findings:
    """All that ``find_lora`` says about one graph."""

    sites: tuple[Site, ...]
    rejections: tuple[Rejection, ...]

    def describe(self) -> str:
        """Return one line for each site and each rejection."""
        lines = [f"site {site.index}: {site}" for site in self.sites]
        return "\n".join(lines + [f"rejected: {rejection}" for rejection in self.rejections])
