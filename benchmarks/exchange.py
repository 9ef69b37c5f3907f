"""What the exchange of ``sync="mean"`` costs: milliseconds of the optimizer's step, per process.

Several processes train the same Llama side by side, over gloo on this machine; nothing else is communicated, so that
what is left is what :func:`skiplora_fx.attach` does at a step. Attachments with ``sync="mean"`` and with
``sync="none"`` take turns; a step of plain SGD is in both. Prints medians, those of the slowest process.

    python benchmarks/exchange.py --layers 32 --processes 2
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import LoraConfig, get_peft_model
from tabulate import tabulate
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import skiplora_fx

SYNCS = ("mean", "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--layers", type=int, default=32, help="each has seven adapters")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(measure, (args, folder), nprocs=args.processes)
        ranks = [torch.load(Path(folder, f"{rank}.pt")) for rank in range(args.processes)]
    sites = ranks[0]["sites"]
    rows = [(sync, max(statistics.median(rank[sync]) for rank in ranks)) for sync in SYNCS]
    print(f"{args.processes} processes, {sites} sites, {args.rounds} rounds")
    print(tabulate(rows, headers=["sync", "ms per step"], floatfmt=".2f"))


def measure(rank: int, args: argparse.Namespace, folder: str) -> None:
    """Leave in ``folder`` how long each step of this process took, in milliseconds."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=args.processes)
    runs = {sync: trained(sync, args) for sync in SYNCS}
    found: dict[str, list[float]] = {sync: [] for sync in SYNCS}
    for _ in range(3 + args.rounds):
        for sync, (model, optimizer) in runs.items():
            backward(model)
            dist.barrier()  # waiting for a slower process is no cost of the exchange
            start = time.perf_counter()
            optimizer.step()
            found[sync].append(1e3 * (time.perf_counter() - start))
    steps = {sync: times[3:] for sync, times in found.items()}
    torch.save({"sites": len(skiplora_fx.sites(runs["mean"][0])), **steps}, Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def trained(sync: str, args: argparse.Namespace) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a model that is compiled at its first forward, and an optimizer that counts its steps."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=args.width,
        intermediate_size=2 * args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=4,
        use_cache=False,
    )
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules="all-linear")).train()
    # Decisions are those of the last step in both, so that they differ in the exchange alone.
    options = {"threshold": 0.05, "sync": sync, "decision": "previous", "warmup_steps": 0, "probe_every": 0}
    for layer in model.get_base_model().model.layers:  # one by one, as it is quicker: all of them share two graphs
        layer.compile(backend="skiplora", options=options)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    skiplora_fx.attach(model, optimizer)
    return model, optimizer


def backward(model: nn.Module) -> None:
    tokens = torch.randint(0, 64, (1, 16))
    model(input_ids=tokens, labels=tokens).loss.backward()


if __name__ == "__main__":
    main()
