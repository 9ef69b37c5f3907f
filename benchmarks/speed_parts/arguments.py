"""The options that every benchmark of a model takes, and the shapes that have a name."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from .models import DTYPES, LENGTHS, TARGETS

PRESETS: dict[str, dict[str, Any]] = {
    "llama-2-7b": {
        "layers": 32,
        "dim": 4096,
        "intermediate_ratio": 11008 / 4096,
        "head_dim": 128,
        "vocab": 32000,
        "batch": 4,
        "length": 512,
        "rank": 16,
        "dtype": "bfloat16",
        "device": "cuda",
    },
}
"""Options by the name of a shape; what is given beside the name is stronger, as in a cut of two layers."""


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what is built, where, and what its gates detach."""
    add: Callable[..., Any] = parser.add_argument
    add("--preset", choices=PRESETS, help="a shape by name; other options change it")
    add("--layers", type=int, default=8, help="decoder layers (default: %(default)s)")
    add("--dim", type=int, default=256, help="hidden size, a multiple of 64 (default: %(default)s)")
    add("--intermediate-ratio", type=float, default=2.75, help="width of the MLP over DIM (default: %(default)s)")
    add("--head-dim", type=int, default=64, help="width of an attention head (default: %(default)s)")
    add("--vocab", type=int, default=1024, help="size of the vocabulary (default: %(default)s)")
    add("--batch", type=int, default=4, help="sequences in a batch (default: %(default)s)")
    add("--length", type=int, default=128, help="tokens in a sequence (default: %(default)s)")
    add("--lengths", choices=LENGTHS, default="full", help="how much of it is no padding (default: %(default)s)")
    add("--rank", type=int, default=8, help="rank of the adapters (default: %(default)s)")
    add("--targets", choices=TARGETS, default="qv", help="which linears are adapted (default: %(default)s)")
    add("--scope", choices=("adapter", "layer"), default="adapter", help="what a gate detaches (default: %(default)s)")
    add("--decision", choices=("current", "previous"), default="current", help="whose M decides (default: %(default)s)")
    add("--checkpointing", action="store_true", help="compute each layer's forward again in the backward")
    add("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    add("--dtype", choices=DTYPES, default="float32", help="of the base model (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights, tokens and the random mask (default: %(default)s)")


def parse(parser: argparse.ArgumentParser, given: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line, with a preset's options in place of the defaults."""
    preset = parser.parse_known_args(given)[0].preset
    parser.set_defaults(**PRESETS.get(preset, {}))
    return parser.parse_args(given)


def described(args: argparse.Namespace, adapters: int) -> str:
    """Return one line that names the shape."""
    padded = "" if args.lengths == "full" else f", as long as {args.lengths}'s and padded"
    again = ", checkpointing" if args.checkpointing else ""
    return (
        f"Llama, {args.layers} layers, {args.dim} wide, {args.batch} x {args.length} tokens{padded}, "
        f"{args.dtype}{again}, {adapters} adapters of rank {args.rank} on {args.targets}, scope {args.scope}"
    )
