"""One minimal module for each shape in which a LoRA library writes an adapter, from the formula it implements.

``forward`` is ``join(h(x), delta(x))`` throughout; ``shut`` detaches Δh, which is the oracle. With the layer scope
all that is returned is detached; a shape of which that is only a part does it itself. Tests run them in double
precision, all but the adapters that say ``in_single_precision``, as those are about casts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDE, RANK = 16, 4


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.3)


class Adapter(nn.Module):
    """``h + scale · B(A(x))`` over a frozen linear; each subclass changes what it is about."""

    shut = False
    scope = "adapter"
    dropout = 0.5
    in_single_precision = False

    def __init__(self, a: tuple[int, ...] = (RANK, WIDE), b: tuple[int, ...] = (WIDE, RANK)) -> None:
        super().__init__()
        self.base = nn.Linear(WIDE, WIDE).requires_grad_(False)
        self.a, self.b = parameter(*a), parameter(*b)

    def example(self) -> Tensor:
        return torch.randn(2, 3, WIDE)

    def h(self, x: Tensor) -> Tensor:
        return self.base(x)

    def delta(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a), self.b) * 2.0

    def join(self, h: Tensor, delta: Tensor) -> Tensor:
        return h + delta

    def forward(self, x: Tensor) -> Tensor:
        h, delta = self.h(x), self.delta(x)
        return self.join(h, delta.detach() if self.shut else delta)


class AddedInPlace(Adapter):
    """PEFT's BdLoRA, aqlm, loralib: ``result += Δh``."""

    def join(self, h: Tensor, delta: Tensor) -> Tensor:
        h += delta
        return h


class AddMethodInPlace(Adapter):
    def join(self, h: Tensor, delta: Tensor) -> Tensor:
        return h.add_(delta)


class ReadByItsOldName(Adapter):
    """``h.add_(Δh)``, and h is returned."""

    def join(self, h: Tensor, delta: Tensor) -> Tensor:
        h.add_(delta)
        return h


class ReadAsAWhole(Adapter):
    """A view of h is added to, and h is returned."""

    def join(self, h: Tensor, delta: Tensor) -> Tensor:
        flat = h.view(-1, WIDE)
        flat.add_(delta.view(-1, WIDE))
        return h


class AddedIntoTheBranch(Adapter):
    """``Δh += h``, and the branch's output is returned."""

    def join(self, h: Tensor, delta: Tensor) -> Tensor:
        delta = delta.clone()
        delta += h
        return delta


class AddedIntoAViewOfTheBranch(Adapter):
    def join(self, h: Tensor, delta: Tensor) -> Tensor:
        flat = delta.clone().view(-1, WIDE)
        flat.add_(h.view(-1, WIDE))
        return flat.view(h.shape)


class WrittenAfterTheAddition(Adapter):
    """All of the sum is written into again, by h's name."""

    def join(self, h: Tensor, delta: Tensor) -> Tensor:
        h.add_(delta)
        h.mul_(3.0)
        return h


class PartlyWrittenAfterTheAddition(Adapter):
    def join(self, h: Tensor, delta: Tensor) -> Tensor:
        out = h + delta
        out[:, 0].add_(1.0)
        return out


class OntoAPart(Adapter):
    """SAMLoRA and fused QKV: added in place to a part of a larger tensor. The adapted layer is that part."""

    def forward(self, x: Tensor) -> Tensor:
        h, delta = self.base(x).clone(), self.delta(x[:, 1:])
        part = h[:, 1:]
        part.add_(delta.detach() if self.shut else delta)
        if self.shut and self.scope == "layer":
            return torch.cat([h[:, :1], h[:, 1:].detach()], dim=1)
        return h


class AssignedToAPart(OntoAPart):
    """``h[:, 1:] += Δh``, which reads the part, adds to it, and assigns it."""

    def forward(self, x: Tensor) -> Tensor:
        if self.shut:
            return super().forward(x)
        h = self.base(x).clone()
        h[:, 1:] += self.delta(x[:, 1:])
        return h


class OntoAClone(Adapter):
    """PEFT's 4-bit: ``result = result.clone()`` first."""

    def h(self, x: Tensor) -> Tensor:
        return self.base(x).clone()


class CastBeforeAdding(Adapter):
    """PEFT's bnb: ``output.to(expected)``, then the sum."""

    in_single_precision = True

    def delta(self, x: Tensor) -> Tensor:
        return super().delta(x.to(torch.float32)).to(x.dtype)


class CastBeforeScaling(Adapter):
    """PEFT's awq, eetq and aqlm: the cast comes before the scale."""

    in_single_precision = True

    def delta(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x.float(), self.a), self.b).to(x.dtype) * 2.0


class ScaledLeft(Adapter):
    """torchtune: ``(alpha / rank) * lora_b(lora_a(dropout(x)))``."""

    def delta(self, x: Tensor) -> Tensor:
        return 2.0 * F.linear(F.linear(F.dropout(x, self.dropout), self.a), self.b)


class ScaledTwice(Adapter):
    """kohya: dropout between, then ``* multiplier * scale``."""

    def delta(self, x: Tensor) -> Tensor:
        return F.linear(F.dropout(F.linear(x, self.a), self.dropout), self.b) * 0.5 * 3.0


class ScaledInPlace(Adapter):
    """diffusers: two scales, the inner one in place, and casts between."""

    def delta(self, x: Tensor) -> Tensor:
        up = F.linear(F.linear(x.to(self.a.dtype), self.a), self.b)
        up *= 0.5
        return 2.0 * up.to(x.dtype)


class Unscaled(Adapter):
    def delta(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a), self.b)


class ScaledByATensor(Adapter):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.5))

    def delta(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a), self.b) * self.scale


class RawMatmul(Adapter):
    """litgpt and loralib: raw parameters, ``(x @ A.T @ B.T) * s``."""

    def delta(self, x: Tensor) -> Tensor:
        return (x @ self.a.T @ self.b.transpose(0, 1)) * 2.0


class Biased(Adapter):
    """PEFT's ``lora_bias=True``."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = parameter(WIDE)

    def delta(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a), self.b, self.bias) * 2.0


class Reshaped(Adapter):
    """Megatron: ``linear_output + adapter(x.contiguous()).reshape(shape)``, the base returns a tuple."""

    def h(self, x: Tensor) -> Tensor:
        out, _ = self.base(x).split_with_sizes([WIDE, 0], dim=-1)
        return out

    def delta(self, x: Tensor) -> Tensor:
        flat = x.contiguous().reshape(-1, WIDE)
        return super().delta(flat).reshape(x.shape)


class FrozenA(Adapter):
    """LoRA-FA."""

    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)


class FrozenB(Adapter):
    """MiCA."""

    def __init__(self) -> None:
        super().__init__()
        self.b.requires_grad_(False)


class Diagonal(Adapter):
    """KaSA: ``B(A(x) * diag)``."""

    def __init__(self) -> None:
        super().__init__()
        self.diagonal = parameter(RANK)

    def delta(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.a) * self.diagonal, self.b) * 2.0


class AdaLoRA(Adapter):
    """``x @ (A * E).T @ B.T * s / ranknum``: the product is on the weight."""

    def __init__(self) -> None:
        super().__init__()
        self.e = parameter(RANK, 1)
        self.register_buffer("ranknum", torch.tensor(4.0))

    def delta(self, x: Tensor) -> Tensor:
        return (x @ (self.a * self.e).T @ self.b.T) * 2.0 / self.ranknum


class VeRA(Adapter):
    """``λb * (λd * x A.T) B.T``: A and B are frozen buffers, larger than the layer."""

    def __init__(self) -> None:
        super().__init__()
        del self.a, self.b
        self.register_buffer("a", torch.randn(RANK, 2 * WIDE))
        self.register_buffer("b", torch.randn(2 * WIDE, RANK))
        self.d, self.l = parameter(RANK), parameter(WIDE)

    def delta(self, x: Tensor) -> Tensor:
        a, b = self.a[:, :WIDE], self.b[:WIDE]
        return self.l * F.linear(self.d * F.linear(x, a), b)


class TinyLoRA(Adapter):
    """Three linears, only the middle one trains, and it is composed of a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)
        self.b.requires_grad_(False)
        self.v = parameter(3)
        self.register_buffer("p", torch.randn(3, RANK, RANK))

    def delta(self, x: Tensor) -> Tensor:
        r = torch.einsum("u,uij->ij", self.v, self.p)
        return F.linear(F.linear(F.linear(x, self.a), r), self.b)


class PSOFT(Adapter):
    """``(R(xA) − xA) @ B``: the inner vector is read twice, by the branch itself."""

    def __init__(self) -> None:
        super().__init__()
        self.r = parameter(RANK, RANK)

    def delta(self, x: Tensor) -> Tensor:
        inner = F.linear(x, self.a)
        return F.linear(F.linear(inner, self.r) - inner, self.b)


class OSF(Adapter):
    """Factors that are put together of a trained and a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        del self.b
        self.register_buffer("rest", torch.randn(2, WIDE))
        self.c = parameter(WIDE, RANK + 2)

    def delta(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, torch.cat([self.a, self.rest])), self.c)


class Blocks(Adapter):
    """BdLoRA: a block-diagonal A, ``bim,inm->bin``."""

    def __init__(self) -> None:
        super().__init__(a=(2, RANK // 2, WIDE // 2))

    def example(self) -> Tensor:
        return torch.randn(3, WIDE)

    def delta(self, x: Tensor) -> Tensor:
        inner = torch.einsum("bim,inm->bin", x.reshape(-1, 2, WIDE // 2), self.a)
        return F.linear(inner.reshape(-1, RANK), self.b) * 2.0


class GraLoRA(Adapter):
    """Two einsums over blocks, and an ordinary adapter on top: two branches added up are one."""

    def __init__(self) -> None:
        super().__init__()
        self.ga, self.gb = parameter(2, WIDE // 2, RANK // 2), parameter(2, RANK // 2, WIDE // 2)

    def delta(self, x: Tensor) -> Tensor:
        blocks = x.reshape(*x.shape[:-1], 2, WIDE // 2)
        inner = torch.einsum("bsnd,ndr->bsnr", blocks, self.ga)
        granular = torch.einsum("bsnr,nrd->bsnd", inner, self.gb).reshape(x.shape)
        return 2.0 * (granular + super().delta(x))


class MiSS(Adapter):
    """``sum(x.reshape(…, r)) @ miss``: one factor, behind a sum over a part of the features."""

    def __init__(self) -> None:
        super().__init__()
        del self.a, self.b
        self.miss = parameter(RANK, WIDE)

    def delta(self, x: Tensor) -> Tensor:
        return torch.sum(x.reshape(*x.shape[:-1], WIDE // RANK, RANK), dim=-2) @ self.miss


class QALoRA(Adapter):
    """The mean of groups of features, times their number, goes into A."""

    def __init__(self) -> None:
        super().__init__(a=(RANK // 2, WIDE // 2), b=(WIDE, RANK // 2))

    def delta(self, x: Tensor) -> Tensor:
        pooled = x.view(*x.shape[:-1], WIDE // 2, 2).mean(-1) * 2
        return (pooled @ self.a.t() @ self.b.t()) * 2.0


class DoRA(Adapter):
    """``h + ((m − 1)(h − bias) + m · B(A(x)) · s)``, m a ratio of norms."""

    def __init__(self) -> None:
        super().__init__()
        self.magnitude = parameter(WIDE)

    def forward(self, x: Tensor) -> Tensor:
        norm = (self.base.weight + self.b @ self.a).norm(dim=1).detach()
        m, h = self.magnitude / norm, self.h(x)
        delta = (m - 1) * (h - self.base.bias) + m * self.delta(x)
        return h + (delta.detach() if self.shut else delta)


class ParallelNetwork(Adapter):
    """He et al. 2022: a small network beside a frozen layer, of that layer's own input; PVeRA samples so."""

    def delta(self, x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, self.a)), self.b)


class GroupedConvolution(Adapter):
    """litgpt's QKV: A for q and v at once, B as a grouped convolution, and padding for k, which has no adapter."""

    def __init__(self) -> None:
        super().__init__(a=(2 * RANK, WIDE), b=(2 * WIDE, RANK))
        self.base = nn.Linear(WIDE, 3 * WIDE).requires_grad_(False)
        self.register_buffer("index", torch.cat([torch.arange(WIDE), torch.arange(2 * WIDE, 3 * WIDE)]))

    def up(self, x: Tensor) -> Tensor:
        inner = F.linear(x, self.a).transpose(-2, -1)
        return F.conv1d(inner, self.b.unsqueeze(-1), groups=2).transpose(-2, -1)

    def delta(self, x: Tensor) -> Tensor:
        up = self.up(x)
        return up.new_zeros(*x.shape[:-1], 3 * WIDE).index_copy(-1, self.index, up) * 2.0


class MaskedPadding(GroupedConvolution):
    """loralib's MergedLinear: the padding is an assignment through a mask, the sum is in place."""

    def __init__(self) -> None:
        super().__init__()
        mask = torch.zeros(3 * WIDE, dtype=torch.bool)
        mask[self.index] = True
        self.register_buffer("mask", mask)

    def delta(self, x: Tensor) -> Tensor:
        up = self.up(x)
        padded = up.new_zeros(*x.shape[:-1], 3 * WIDE).reshape(-1, 3 * WIDE)
        padded[:, self.mask] = up.reshape(-1, 2 * WIDE)
        return padded.view(*x.shape[:-1], 3 * WIDE) * 2.0

    def join(self, h: Tensor, delta: Tensor) -> Tensor:
        h += delta
        return h


class SplitHeads(GroupedConvolution):
    """litgpt's QKV where the heads differ in size: chunks, a linear each, put together again."""

    def up(self, x: Tensor) -> Tensor:
        inner = F.linear(x, self.a).chunk(2, dim=-1)
        return torch.cat([F.linear(part, b) for part, b in zip(inner, self.b.chunk(2), strict=True)], dim=-1)


class Embedding(Adapter):
    """PEFT and loralib: ``embedding(ids, A.T) @ B.T``."""

    def __init__(self) -> None:
        super().__init__(a=(RANK, 20), b=(WIDE, RANK))
        self.words = nn.Embedding(20, WIDE).requires_grad_(False)

    def example(self) -> Tensor:
        return torch.randint(0, 20, (2, 5))

    def h(self, x: Tensor) -> Tensor:
        return self.words(x)

    def delta(self, x: Tensor) -> Tensor:
        return (F.embedding(x, self.a.T) @ self.b.T) * 2.0


class Conv1d(Adapter):
    """A with the kernel of the layer, B with a kernel of one."""

    DIMENSIONS = 1

    def __init__(self) -> None:
        kernel, point = (3,) * self.DIMENSIONS, (1,) * self.DIMENSIONS
        super().__init__(a=(2, 6, *kernel), b=(6, 2, *point))
        self.convolve = [F.conv1d, F.conv2d, F.conv3d][self.DIMENSIONS - 1]
        self.weight = parameter(6, 6, *kernel).requires_grad_(False)

    def example(self) -> Tensor:
        return torch.randn(2, 6, *(5,) * self.DIMENSIONS)

    def h(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight, padding=1)

    def delta(self, x: Tensor) -> Tensor:
        return self.convolve(self.convolve(x, self.a, padding=1), self.b) * 2.0


class Conv2d(Conv1d):
    DIMENSIONS = 2


class Conv3d(Conv1d):
    DIMENSIONS = 3


class ConvolutionInGroups(Conv2d):
    """PEFT's, of a convolution with groups: A reads all channels, B is divided as the layer is."""

    GROUPS, INNER = 2, 4

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = parameter(self.INNER, 6, 3, 3), parameter(6, self.INNER // self.GROUPS, 1, 1)
        self.weight = parameter(6, 6 // self.GROUPS, 3, 3).requires_grad_(False)

    def h(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1, groups=self.GROUPS)

    def delta(self, x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, self.a, padding=1), self.b, groups=self.GROUPS) * 2.0


class DepthwiseConvolution(ConvolutionInGroups):
    """A rank of all channels, the least that PEFT allows here: still narrower than the patch that is read."""

    GROUPS, INNER = 6, 6


class Experts(Adapter):
    """A frozen weight and an adapter for each expert, and rows that are sorted by expert."""

    def __init__(self) -> None:
        super().__init__(a=(2, WIDE, RANK), b=(2, RANK, WIDE))
        self.experts = parameter(2, WIDE, WIDE).requires_grad_(False)

    def example(self) -> Tensor:
        return torch.randn(2, 3, WIDE)

    def h(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.experts)

    def delta(self, x: Tensor) -> Tensor:
        return torch.bmm(torch.bmm(x, self.a), self.b)


class ExpertsInAnEinsum(Experts):
    def delta(self, x: Tensor) -> Tensor:
        return torch.einsum("erk,eki->eri", torch.einsum("eri,eik->erk", x, self.a), self.b)


class OneEinsum(Adapter):
    """Both factors in one call."""

    def delta(self, x: Tensor) -> Tensor:
        return torch.einsum("...i,ri,or->...o", x, self.a, self.b)


class FusedAddmm(Adapter):
    """``torch.addmm(h, x @ A, B, alpha=s)``."""

    def __init__(self) -> None:
        super().__init__(a=(WIDE, RANK), b=(RANK, WIDE))

    def example(self) -> Tensor:
        return torch.randn(5, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        if self.shut:
            return self.base(x) + (2.0 * (x @ self.a @ self.b)).detach()
        return torch.addmm(self.base(x), x @ self.a, self.b, alpha=2.0)


class FusedAddmmInPlace(FusedAddmm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.shut else self.base(x).addmm_(x @ self.a, self.b, alpha=2.0)


class FusedBaddbmm(FusedAddmm):
    """The same for a batch, with a weight for each of it."""

    def __init__(self) -> None:
        super().__init__()
        self.b = parameter(2, RANK, WIDE)

    def example(self) -> Tensor:
        return torch.randn(2, 3, WIDE)

    def forward(self, x: Tensor) -> Tensor:
        if self.shut:
            return self.base(x) + (2.0 * torch.bmm(x @ self.a, self.b)).detach()
        return torch.baddbmm(self.base(x), x @ self.a, self.b, alpha=2.0)


class FusedAddmmByKeyword(FusedAddmm):
    def forward(self, x: Tensor) -> Tensor:
        if self.shut:
            return super().forward(x)
        return torch.addmm(input=self.base(x), mat1=x @ self.a, mat2=self.b, alpha=2.0)


class AddedByKeyword(Adapter):
    def join(self, h: Tensor, delta: Tensor) -> Tensor:
        return torch.add(input=h, other=delta)


class AddMethodByKeyword(Adapter):
    def join(self, h: Tensor, delta: Tensor) -> Tensor:
        return h.add(other=delta)


class AddMethodInPlaceByKeyword(Adapter):
    def join(self, h: Tensor, delta: Tensor) -> Tensor:
        return h.add_(other=delta, alpha=3.0)


class AddedTimesAlpha(Adapter):
    """``torch.add(h, Δh, alpha=s)``."""

    def join(self, h: Tensor, delta: Tensor) -> Tensor:
        return torch.add(h, delta, alpha=3.0)


class LoHa(Adapter):
    """``ΔW = (w1a w1b) ⊙ (w2a w2b)``."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = parameter(RANK, WIDE), parameter(WIDE, RANK)

    def weight(self) -> Tensor:
        return (self.b @ self.a) * (self.d @ self.c) * 0.5

    def delta(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight())


class LoKr(LoHa):
    """``ΔW = kron(w1, w2)``."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = parameter(4, 4), parameter(4, 4)
        del self.a, self.b

    def weight(self) -> Tensor:
        return torch.kron(self.c, self.d) * 0.5


class FourierFT(LoHa):
    """``ΔW = ifft2(spectrum)``, of a few trained coefficients."""

    def __init__(self) -> None:
        super().__init__()
        del self.a, self.b, self.c, self.d
        self.spectrum = parameter(10)
        self.register_buffer("places", torch.randperm(WIDE * WIDE)[:10])

    def weight(self) -> Tensor:
        dense = torch.zeros(WIDE * WIDE, dtype=self.spectrum.dtype)
        dense[self.places] = self.spectrum
        return torch.fft.ifft2(dense.view(WIDE, WIDE)).real * 150.0


class HiRA(LoHa):
    """``ΔW = W ⊙ (B A)``."""

    def __init__(self) -> None:
        super().__init__()
        del self.c, self.d

    def weight(self) -> Tensor:
        return self.base.weight * (self.b @ self.a)


class PEANuT(HiRA):
    """``ΔW`` is a small network of W."""

    def weight(self) -> Tensor:
        return F.relu(self.base.weight @ self.a.T) @ self.b.T


class ComposedConvolution(Conv2d):
    """AdaLoRA's convolution: ``conv(x, ΔW)``."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.e = parameter(2, 6 * 9), parameter(6, 2), parameter(2, 1)

    def delta(self, x: Tensor) -> Tensor:
        return F.conv2d(x, (self.b @ (self.a * self.e)).view(6, 6, 3, 3), padding=1) * 2.0


GATED: dict[type[Adapter], tuple[str, int]] = {
    Adapter: ("linear→linear", RANK),
    AddedInPlace: ("linear→linear", RANK),
    AddMethodInPlace: ("linear→linear", RANK),
    ReadByItsOldName: ("linear→linear", RANK),
    ReadAsAWhole: ("linear→linear", RANK),
    AddedIntoTheBranch: ("linear→linear", RANK),
    AddedIntoAViewOfTheBranch: ("linear→linear", RANK),
    WrittenAfterTheAddition: ("linear→linear", RANK),
    PartlyWrittenAfterTheAddition: ("linear→linear", RANK),
    OntoAPart: ("linear→linear", RANK),
    AssignedToAPart: ("linear→linear", RANK),
    OntoAClone: ("linear→linear", RANK),
    CastBeforeAdding: ("linear→linear", RANK),
    CastBeforeScaling: ("linear→linear", RANK),
    ScaledLeft: ("linear→linear", RANK),
    ScaledTwice: ("linear→linear", RANK),
    ScaledInPlace: ("linear→linear", RANK),
    Unscaled: ("linear→linear", RANK),
    ScaledByATensor: ("linear→linear", RANK),
    RawMatmul: ("linear→linear", RANK),
    Biased: ("linear→linear", RANK),
    Reshaped: ("linear→linear", RANK),
    FrozenA: ("linear→linear", RANK),
    FrozenB: ("linear→linear", RANK),
    Diagonal: ("linear→linear", RANK),
    AdaLoRA: ("linear→linear", RANK),
    VeRA: ("linear→linear", RANK),
    TinyLoRA: ("linear→linear→linear", RANK),
    PSOFT: ("linear→linear→linear", RANK),
    OSF: ("linear→linear", RANK + 2),
    Blocks: ("einsum→linear", RANK),
    GraLoRA: ("einsum→einsum", RANK),
    MiSS: ("pooling→linear", RANK),
    QALoRA: ("pooling→linear→linear", RANK // 2),
    DoRA: ("linear→linear", RANK),
    ParallelNetwork: ("linear→linear", RANK),
    GroupedConvolution: ("linear→conv", RANK),
    MaskedPadding: ("linear→conv", RANK),
    SplitHeads: ("linear→linear", RANK),
    Embedding: ("embedding→linear", RANK),
    Conv1d: ("conv→conv", 2),
    Conv2d: ("conv→conv", 2),
    Conv3d: ("conv→conv", 2),
    ConvolutionInGroups: ("conv→conv", 4),
    DepthwiseConvolution: ("conv→conv", 6),
    Experts: ("einsum→einsum", RANK),
    ExpertsInAnEinsum: ("einsum→einsum", RANK),
    OneEinsum: ("composed einsum", RANK),
    FusedAddmm: ("linear→linear", RANK),
    FusedAddmmByKeyword: ("linear→linear", RANK),
    AddedByKeyword: ("linear→linear", RANK),
    AddMethodByKeyword: ("linear→linear", RANK),
    AddMethodInPlaceByKeyword: ("linear→linear", RANK),
    FusedAddmmInPlace: ("linear→linear", RANK),
    FusedBaddbmm: ("linear→einsum", RANK),
    AddedTimesAlpha: ("linear→linear", RANK),
    LoHa: ("composed linear", RANK),
    LoKr: ("composed linear", 4),
    FourierFT: ("composed linear", 10),
    HiRA: ("composed linear", RANK),
    PEANuT: ("composed linear", RANK),
    ComposedConvolution: ("composed conv", 2),
}
"""What is found and gated, with the kind of branch and the rank."""
