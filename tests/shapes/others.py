"""What trains and is no additive low-rank branch, or looks like one and is none: each with its family."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from adapters import RANK, WIDE, Adapter, DoRA, parameter
from torch import Tensor, nn


class AddedToTheWeight(Adapter):
    """minLoRA: ``W + B A · s`` before the linear."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + (self.b @ self.a) * 2.0, self.base.bias)


class AddedToTheWeightBeforeAResidual(AddedToTheWeight):
    """The same, and its output joins something: Δh is then the whole layer, not the adapter."""

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class ConvolutionWeight(Adapter):
    """loralib's ConvLoRA."""

    def __init__(self) -> None:
        super().__init__(a=(2, 54), b=(6, 2))
        self.weight = parameter(6, 6, 3, 3).requires_grad_(False)

    def example(self) -> Tensor:
        return torch.randn(2, 6, 5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight + (self.b @ self.a).view(6, 6, 3, 3) * 2.0)


class Baddbmm(Adapter):
    """PEFT's ``target_parameters``: experts' weights, adapted at once."""

    def __init__(self) -> None:
        super().__init__(a=(2, RANK, WIDE), b=(2, WIDE, RANK))
        self.experts = parameter(2, WIDE, WIDE).requires_grad_(False)

    def example(self) -> Tensor:
        return torch.randn(2, 3, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, torch.baddbmm(self.experts, self.b, self.a, alpha=2.0))


class SHiRA(Adapter):
    """Sparse values scattered into the weight."""

    def __init__(self) -> None:
        super().__init__()
        del self.a, self.b
        self.values = parameter(10)
        self.register_buffer("places", torch.randperm(WIDE * WIDE)[:10])

    def forward(self, x: Tensor) -> Tensor:
        flat = self.base.weight.reshape(-1).scatter_add(0, self.places, self.values)
        return F.linear(x, flat.view(WIDE, WIDE))


class IA3(Adapter):
    def __init__(self) -> None:
        super().__init__()
        del self.a, self.b
        self.scale = parameter(WIDE)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * self.scale


class OFT(Adapter):
    """The input is rotated before the frozen weight."""

    def __init__(self) -> None:
        super().__init__()
        del self.a, self.b
        self.skew = parameter(WIDE, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        rotation = torch.linalg.matrix_exp(self.skew - self.skew.T)
        return self.base(x @ rotation)


class HRA(OFT):
    """The weight is multiplied by a reflection."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight @ (torch.eye(WIDE, dtype=x.dtype) - self.skew @ self.skew.T))


class FRoD(Adapter):
    """``h + f(x) − h``: what is added replaces h."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)
        return h + self.delta(x) - h


class DEFT(Adapter):
    """``h − (h @ P) Pᵀ + R(x) Pᵀ``: the same P takes away from h first."""

    def __init__(self) -> None:
        super().__init__(b=(WIDE, RANK))

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)
        return h - (h @ self.b) @ self.b.T + F.linear(F.linear(x, self.a), self.b)


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(x, a, b)
        return x @ a.T @ b.T

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, a, b = ctx.saved_tensors
        inner = grad @ b
        return inner @ a, inner.T @ x, grad.T @ (x @ a.T)


class AutogradFunction(Adapter):
    """Unsloth's kernels, VeLoRA, C3A: the adapter is an ``autograd.Function``."""

    def example(self) -> Tensor:
        return torch.randn(3, WIDE)

    def delta(self, x: Tensor) -> Tensor:
        return _Multiply.apply(x, self.a, self.b)


class GatedByTheInput(Adapter):
    """A router: how much of the adapter is used is computed from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDE, 1).requires_grad_(False)

    def delta(self, x: Tensor) -> Tensor:
        return super().delta(x) * torch.sigmoid(self.gate(x))


class Poly(Adapter):
    """Factors mixed by weights that depend on the input."""

    def __init__(self) -> None:
        super().__init__(a=(2, WIDE, RANK), b=(2, RANK, WIDE))

    def delta(self, x: Tensor) -> Tensor:
        mix = x.mean(dim=1)[:, :2].softmax(-1)
        a, b = torch.einsum("bk,kdr->bdr", mix, self.a), torch.einsum("bk,krd->brd", mix, self.b)
        return x.bmm(a).bmm(b)


class SwiGLU(Adapter):
    """The MLP of a Llama with its residual, narrow, and all of it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.c = parameter(RANK, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.linear(F.silu(F.linear(x, self.a)) * F.linear(x, self.c), self.b)


class SqueezeExcite(Adapter):
    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=1, keepdim=True)
        return x + x * torch.sigmoid(F.linear(F.relu(F.linear(pooled, self.a)), self.b))


class Houlsby(Adapter):
    """A bottleneck with a non-linearity, in series with the layer: ``h + up(relu(down(h)))``."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)
        return h + F.linear(F.relu(F.linear(h, self.a)), self.b)


class LatentAttention(Adapter):
    """DeepSeek's narrow latent, with a norm between, and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(RANK)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.linear(self.norm(F.linear(x, self.a)), self.b)


class Attention(Adapter):
    """One narrow head and a residual."""

    def __init__(self) -> None:
        super().__init__(a=(3 * RANK, WIDE))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.a).unsqueeze(1).chunk(3, dim=-1)
        return x + F.linear(F.scaled_dot_product_attention(q, k, v).squeeze(1), self.b)


class FullRank(Adapter):
    def __init__(self) -> None:
        super().__init__(a=(WIDE, WIDE), b=(WIDE, WIDE))


class OneWeight(Adapter):
    """A single trained linear beside the frozen one."""

    def __init__(self) -> None:
        super().__init__()
        del self.a
        self.b = parameter(WIDE, WIDE)

    def delta(self, x: Tensor) -> Tensor:
        return F.linear(x, self.b)


class ReadElsewhere(Adapter):
    """Somebody else reads the output of A."""

    def forward(self, x: Tensor) -> Tensor:
        inner = F.linear(x, self.a)
        return self.base(x) + F.linear(inner, self.b) + inner.sum()


class TrainedBase(Adapter):
    """Full fine-tuning, and adapters on top."""

    def __init__(self) -> None:
        super().__init__()
        self.base.requires_grad_(True)


class TrainedBaseBeforeAResidual(TrainedBase):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class DoRAOnATrainedBase(DoRA):
    def __init__(self) -> None:
        super().__init__()
        self.base.requires_grad_(True)


class FactorisedEmbedding(Adapter):
    """ALBERT's: a narrow embedding of words and its projection, to which one of types is added; all of it trains."""

    def __init__(self) -> None:
        super().__init__(a=(20, RANK))
        self.types = parameter(2, WIDE)

    def example(self) -> Tensor:
        return torch.randint(0, 20, (2, 5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.embedding(x, self.a), self.b) + F.embedding(x % 2, self.types)


class PointwiseThenDepthwise(Adapter):
    """A separable convolution with its residual: every channel has a kernel of its own, but there are no fewer."""

    def __init__(self) -> None:
        super().__init__(a=(6, 6, 1), b=(6, 1, 3))

    def example(self) -> Tensor:
        return torch.randn(2, 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.conv1d(F.conv1d(x, self.a), self.b, padding=1, groups=6)


class DepthwiseThenPointwise(PointwiseThenDepthwise):
    def forward(self, x: Tensor) -> Tensor:
        return x + F.conv1d(F.conv1d(x, self.b, padding=1, groups=6), self.a)


class Squared(Adapter):
    """``y * y`` takes one activation only, and is not linear in it."""

    def delta(self, x: Tensor) -> Tensor:
        inner = F.linear(x, self.a)
        return F.linear(inner * inner, self.b)


class WideEinsum(Adapter):
    """Two weights in one einsum, and nothing narrow between them."""

    def __init__(self) -> None:
        super().__init__(a=(WIDE, WIDE), b=(WIDE, WIDE))

    def delta(self, x: Tensor) -> Tensor:
        return torch.einsum("...i,ri,or->...o", x, self.a, self.b)


class TrainedBias(Adapter):
    """BitFit, BEFT."""

    def __init__(self) -> None:
        super().__init__()
        del self.a, self.b
        self.bias = parameter(WIDE)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.bias


REJECTED: dict[type[Adapter], set[str]] = {
    AddedToTheWeight: {"weight-space"},
    AddedToTheWeightBeforeAResidual: {"weight-space"},
    ConvolutionWeight: {"weight-space"},
    Baddbmm: {"weight-space"},
    SHiRA: {"weight-space"},
    IA3: {"multiplicative"},
    OFT: {"multiplicative"},
    HRA: {"multiplicative"},
    FRoD: {"multiplicative"},
    DEFT: {"multiplicative"},
    GatedByTheInput: {"routed"},
    Poly: {"routed"},
    SwiGLU: {"routed", "non-linear", "no join"},
    SqueezeExcite: {"non-linear"},
    Houlsby: {"non-linear"},
    LatentAttention: {"non-linear", "no join"},
    Attention: {"non-linear", "no join"},
    FullRank: {"not low-rank"},
    WideEinsum: {"not low-rank"},
    PointwiseThenDepthwise: {"not low-rank"},
    DepthwiseThenPointwise: {"not low-rank"},
    TrainedBase: {"trained base", "no join"},
    TrainedBaseBeforeAResidual: {"trained base", "no join"},
    DoRAOnATrainedBase: {"multiplicative"},
    FactorisedEmbedding: {"trained base", "no join"},
    Squared: {"non-linear", "no join"},
    OneWeight: {"no join"},
    ReadElsewhere: {"shared"},
    TrainedBias: {"no join"},
}
"""What is left alone, with the families of what is said about it."""


class FrozenFactors(Adapter):
    """A linear that was factorised to save memory; nothing trains."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class FrozenResidual(Adapter):
    """``h + mlp(h)`` of frozen weights."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)
        return h + F.linear(F.relu(F.linear(h, self.a)), self.b)


IGNORED: tuple[type[Adapter], ...] = (FrozenFactors, FrozenResidual)
"""What is not even mentioned, as nothing in it trains."""
