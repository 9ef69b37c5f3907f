"""Small models as hypothesis draws them: blocks of all kinds, adapters anywhere, anything may train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

HEADS = 2
WORDS = 16


class Block(nn.Module):
    """What a block is made of; ``apply_to`` is its forward without norm and residual."""

    layers: tuple[str, ...] = ("first",)
    """Names of its linears, all ``width`` wide."""

    def __init__(self, width: int, norm: bool, residual: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.residual = residual
        for name in self.layers:
            setattr(self, name, nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.apply_to(self.norm(x))
        return x + y if self.residual else y

    def apply_to(self, x: Tensor) -> Tensor:
        return self.first(x).tanh()


class Attention(Block):
    layers = ("q", "k", "v", "o")

    def apply_to(self, x: Tensor) -> Tensor:
        q, k, v = (self._heads(layer(x)) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(mixed.transpose(1, 2).flatten(2))

    @staticmethod
    def _heads(x: Tensor) -> Tensor:
        return x.unflatten(2, (HEADS, -1)).transpose(1, 2)


class Gated(Block):
    layers = ("gate", "up", "down")

    def apply_to(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Twice(Block):
    """One layer, called twice."""

    def apply_to(self, x: Tensor) -> Tensor:
        return self.first(self.first(x).relu())


class Parallel(Block):
    """Two layers on one input, and a constant branch between them."""

    layers = ("first", "second")

    def apply_to(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x).detach() * x], -1).unflatten(-1, (2, -1)).amax(-2)


class InPlace(Block):
    """Writes into what a layer returned."""

    layers = ("first", "second")

    def apply_to(self, x: Tensor) -> Tensor:
        y = self.first(x)
        y += x
        z = self.second(y)
        z.mul_(0.5)
        return z.relu_()


class Rows(Block):
    """All tokens in one dimension, and some of them written anew."""

    layers = ("first", "second")

    def apply_to(self, x: Tensor) -> Tensor:
        y = self.first(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        head, tail = y[:, :1], y[:, 1:]
        return torch.cat([self.second(head), tail], 1)


class Pooled(Block):
    """Something of all tokens, given to each."""

    layers = ("first", "second")

    def apply_to(self, x: Tensor) -> Tensor:
        return self.second(x) * self.first(x.mean(1, keepdim=True)).sigmoid()


class Convolution(Block):
    layers = ()

    def __init__(self, width: int, norm: bool, residual: bool) -> None:
        super().__init__(width, norm, residual)
        self.mix = nn.Conv1d(width, width, 3, padding=1)

    def apply_to(self, x: Tensor) -> Tensor:
        return self.mix(x.transpose(1, 2)).transpose(1, 2)


KINDS: tuple[type[Block], ...] = (Block, Attention, Gated, Twice, Parallel, InPlace, Rows, Pooled, Convolution)


class Stack(nn.Module):
    """Blocks one after the other on an embedding of tokens, and a head."""

    def __init__(self, width: int, blocks: tuple[BlockSpec, ...]) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, width)
        self.blocks = nn.ModuleList(block.kind(width, block.norm, block.residual) for block in blocks)
        self.checkpointed = [block.checkpointed for block in blocks]
        self.head = nn.Linear(width, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block, checkpointed in zip(self.blocks, self.checkpointed, strict=True):
            x = checkpoint(block, x, use_reentrant=False) if checkpointed else block(x)
        return self.head(x)


@dataclass(frozen=True)
class BlockSpec:
    """One block."""

    kind: type[Block]
    norm: bool
    residual: bool
    checkpointed: bool


@dataclass(frozen=True)
class ModelSpec:
    """A model with adapters; ``build`` gives the same one each time.

    Attributes:
        width: of all blocks.
        blocks: from below.
        adapted: names of layers with an adapter.
        rank: of all adapters.
        frozen: names of adapters' parameters that do not train.
        trained: names of other parameters that do.
        dtype: of the model.
        adapter_dtype: of the adapters.
    """

    width: int
    blocks: tuple[BlockSpec, ...]
    adapted: tuple[str, ...]
    rank: int
    frozen: tuple[str, ...]
    trained: tuple[str, ...]
    dtype: torch.dtype
    adapter_dtype: torch.dtype

    def build(self) -> PeftModel:
        """Return the model, in training mode."""
        torch.manual_seed(0)
        config = LoraConfig(r=self.rank, lora_alpha=2 * self.rank, target_modules=list(self.adapted))
        model = get_peft_model(Stack(self.width, self.blocks).to(self.dtype), config, autocast_adapter_dtype=False)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.4)
                parameter.data = parameter.data.to(self.adapter_dtype)
            parameter.requires_grad_(self._trains(name))
        return model.train()

    def _trains(self, name: str) -> bool:
        if "lora_" in name:
            return not any(name.endswith(f"{frozen}.default.weight") for frozen in self.frozen)
        return name.removeprefix("base_model.model.").replace(".base_layer", "") in self.trained


@st.composite
def model_specs(draw: Callable[..., object]) -> ModelSpec:
    """Draw a model with at least one adapter."""
    width = draw(st.sampled_from((4, 8)))
    kinds = st.sampled_from(KINDS)
    spec = st.builds(BlockSpec, kinds, st.booleans(), st.booleans(), st.sampled_from((False, False, False, True)))
    blocks = tuple(draw(st.lists(spec, min_size=1, max_size=4)))
    base = Stack(width, blocks)
    layers = [name for name, module in base.named_modules() if isinstance(module, (nn.Linear, nn.Conv1d))]
    adapted = draw(st.lists(st.sampled_from(layers), min_size=1, unique=True))
    halves = [f"{name}.{half}" for name in adapted for half in ("lora_A", "lora_B")]
    dtype, adapter_dtype = draw(
        st.sampled_from(
            (
                (torch.float64, torch.float64),
                (torch.float32, torch.float32),
                (torch.float32, torch.float64),
                (torch.bfloat16, torch.bfloat16),
                (torch.bfloat16, torch.float32),
            )
        )
    )
    return ModelSpec(
        width,
        blocks,
        tuple(adapted),
        draw(st.integers(1, 3)),
        tuple(draw(st.lists(st.sampled_from(halves), max_size=len(halves) // 2, unique=True))),
        tuple(draw(st.lists(st.sampled_from([name for name, _ in base.named_parameters()]), max_size=3, unique=True))),
        dtype,
        adapter_dtype,
    )
