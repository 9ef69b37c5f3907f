"""One point of the curves."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from memory import settled_peak
from speed_parts.clock import Seconds, cpu_seconds
from speed_parts.masks import shut_sites
from speed_parts.models import build, sites_of
from speed_parts.rows import machine
from speed_parts.runners import Runner, Variant, force, frozen, gated
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

ARMS = ("inductor", "skiplora", "skiplora, lower half shut", "oracle")


@dataclass(frozen=True)
class Arm:
    """How a step of an arm is run, and what its steps took.

    Attributes:
        runner: what is run.
        first: its first step, in which it compiles; one compile may serve several arms.
        prepare: is called before each step.
        steps: those of the rounds.
    """

    runner: Runner
    first: Seconds
    prepare: Callable[[], None] = lambda: None
    steps: list[Seconds] = field(default_factory=list)

    def step(self) -> None:
        """Run a step and keep what it took."""
        self.prepare()
        before = cpu_seconds()
        sample = self.runner.step()
        self.steps.append(Seconds(sample.forward + sample.backward, cpu_seconds() - before))


class BranchCounter(CustomGraphPass):
    """Counts the branches of what it is shown, in Inductor's place for a pass of the user's.

    Attributes:
        regions: the number of conds.
        branches: the names of their branches; those that are alike have one.
        nodes: the number of nodes of the graphs with conds.
    """

    def __init__(self) -> None:
        self.regions = 0
        self.branches: set[str] = set()
        self.nodes = 0

    def __call__(self, graph: fx.Graph) -> None:
        conds = graph.find_nodes(op="call_function", target=torch.ops.higher_order.cond)
        self.regions += len(conds)
        self.branches.update(str(branch.target) for cond in conds for branch in cond.args[1:3])
        self.nodes += len(graph.nodes) if conds else 0

    def uuid(self) -> Any:
        """Return its key in Inductor's caches: it changes nothing."""
        return "counts branches"


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a model of this size costs, each arm's first and later steps and its peak, and what it is made of.

    Seconds and bytes; in the rounds the arms take turns.
    """
    _compile_one_layer(args)
    torch.manual_seed(args.seed)
    model, batch = build(args)
    shut = shut_sites("lower half", sites_of(model), args.seed)
    counter = BranchCounter()
    inductor = _started(frozen(model, (), batch), args)
    skiplora = _started(gated("skiplora", model, batch, args, Variant({"post_grad_custom_pre_pass": counter})), args)
    arms = {
        "inductor": inductor,
        "skiplora": Arm(skiplora.runner, skiplora.first, lambda: force(skiplora.runner, ())),
        "skiplora, lower half shut": Arm(skiplora.runner, skiplora.first, lambda: force(skiplora.runner, shut)),
    }
    if shut and args.layers <= args.oracle_layers:
        arms["oracle"] = _started(frozen(model, shut, batch), args)
    for _ in range(args.rounds):
        for arm in arms.values():
            arm.step()
    return {
        "machine": machine(args.device),
        "sites": len(sites_of(model)),
        "regions": counter.regions,
        "branches": len(counter.branches),
        "backward nodes": counter.nodes,
        "arms": {name: _told(arm, args) for name, arm in arms.items()},
    }


def _started(runner: Runner, args: argparse.Namespace) -> Arm:
    before = cpu_seconds()
    runner.warm_up(1)
    first = Seconds(runner.compile_s or 0.0, cpu_seconds() - before)
    for _ in range(args.warmup - 1):
        runner.step()
    return Arm(runner, first)


def _told(arm: Arm, args: argparse.Namespace) -> dict[str, Any]:
    arm.prepare()
    return {
        "first step": asdict(arm.first),
        "peak": settled_peak(arm.runner, args.device),
        "steps": {"wall": [step.wall for step in arm.steps], "cpu": [step.cpu for step in arm.steps]},
    }


def _compile_one_layer(args: argparse.Namespace) -> None:
    """Compile one such layer, so that the first arm does not pay for what a process does only once."""
    model, batch = build(argparse.Namespace(**{**vars(args), "layers": 1}))
    frozen(model, (), batch).warm_up(1)
    torch.compiler.reset()
