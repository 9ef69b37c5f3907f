"""LoRA tuning in several processes that decide together what is skipped: DistributedDataParallel, or fully_shard.

    torchrun --nproc-per-node 2 examples/train_distributed.py
    torchrun --nproc-per-node 2 examples/train_distributed.py --wrap shard

A small Llama with random weights reads the source of Python's standard library, byte by byte: this shows how to wire
it, on CPUs over gloo and without a network, and not what a good model learns. See docs/distributed.md.
"""

from __future__ import annotations

import argparse
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

import skiplora_fx


def main() -> None:
    """Train, and print on the first rank what was skipped."""
    args = parsed()
    dist.init_process_group("gloo")
    torch.manual_seed(0)  # the same weights on every rank
    model = adapted_llama(args)
    options = {"threshold": args.threshold, "policy": args.policy, "warmup_steps": args.warmup_steps}
    model.compile(backend="skiplora", options={**options, "sync": args.sync})
    wrapped = shard(model) if args.wrap == "shard" else DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.learning_rate)
    attachment = skiplora_fx.attach(model, optimizer, log=args.log_file)  # on every rank; the first writes the log
    batches = own_batches(args.batch_size, args.max_length)
    for step in range(args.max_steps):
        tokens = next(batches)
        loss = wrapped(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dist.all_reduce(mean := loss.detach() / dist.get_world_size())
        attachment.note(loss=mean)
        say(f"step {step}: loss {mean:.3f}")
    say(skiplora_fx.report(model))
    attachment.remove()
    dist.destroy_process_group()


def parsed() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wrap", choices=("ddp", "shard"), default="ddp", help="how the ranks share the model")
    parser.add_argument("--sync", choices=("mean", "none"), default="mean", help="whether they decide together")
    parser.add_argument("--threshold", type=float, default=0.05)
    parser.add_argument("--policy", default="threshold")
    parser.add_argument("--warmup_steps", type=int, default=20)
    parser.add_argument("--max_steps", type=int, default=60)
    parser.add_argument("--batch_size", type=int, default=8, help="of each rank")
    parser.add_argument("--max_length", type=int, default=64, help="bytes in an example")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--log_file", help="a file for a line of JSON for each step")
    return parser.parse_args()


def adapted_llama(args: argparse.Namespace) -> nn.Module:
    """Return a small Llama over bytes, with adapters on all linears, in training mode."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=args.hidden,
        intermediate_size=2 * args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        max_position_embeddings=args.max_length,
        use_cache=False,
    )
    return get_peft_model(LlamaForCausalLM(config), LoraConfig(r=8, target_modules="all-linear")).train()


def shard(model: nn.Module) -> nn.Module:
    """Shard each layer, and what is left, over all ranks, in place."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.get_base_model().model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def own_batches(size: int, length: int) -> Iterator[Tensor]:
    """Yield this rank's batches, int64 ``[size, length]``, for ever."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(dist.get_rank())
    while True:
        starts = torch.randint(len(text) - length, (size,), generator=generator)
        yield torch.stack([text[start : start + length] for start in starts.tolist()]).long()


def say(line: str) -> None:
    """Print on the first rank."""
    if dist.get_rank() == 0:
        print(line, flush=True)


if __name__ == "__main__":
    main()
