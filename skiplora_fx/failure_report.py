"""A folder with all that is needed to see a failure again: the graph as a script, options, versions, the traceback."""

from __future__ import annotations

import hashlib
import json
import platform
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ._torch_compat import compile_cache_dir
from .config import SkipLoraConfig


@dataclass(frozen=True)
class TensorKind:
    """All of a tensor but its values, and nothing that keeps it alive.

    Attributes:
        shape: its sizes, symbolic ones among them.
        stride: of each dimension, in elements; none of a sparse tensor.
        dtype: of its elements.
        device: where it lies.
        requires_grad: whether it is differentiated.
        is_parameter: whether it is an ``nn.Parameter``.
    """

    shape: tuple[Any, ...]
    stride: tuple[Any, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    is_parameter: bool

    @classmethod
    def of(cls, tensor: Tensor) -> TensorKind:
        """Return the kind of ``tensor``, real or fake."""
        is_parameter = isinstance(tensor, nn.Parameter)
        shape, stride = tuple(tensor.shape), tuple(tensor.stride()) if tensor.layout is torch.strided else ()
        return cls(shape, stride, tensor.dtype, tensor.device, tensor.requires_grad, is_parameter)

    def source(self) -> str:
        """Return Python code that makes such a tensor, of random values or of zeros."""
        shape, stride = tuple(map(int, self.shape)), tuple(map(int, self.stride))
        if len(stride) < len(shape):
            return f"torch.zeros({shape}, dtype={self.dtype}, device={str(self.device)!r}).to_sparse()"
        made = f"torch.empty_strided({shape}, {stride}, dtype={self.dtype}, device={str(self.device)!r})"
        if not self.dtype.is_floating_point:
            return f"{made}.zero_()"
        kind = "torch.nn.Parameter" if self.is_parameter else "torch.Tensor.requires_grad_"
        return f"{kind}({made}.normal_(std=0.1), {self.requires_grad})"


def kinds_of(inputs: Sequence[Any]) -> list[Any]:
    """Return the inputs of a graph with the kinds of its tensors in their places."""
    return [TensorKind.of(value) if isinstance(value, Tensor) else value for value in inputs]


def save_failure_report(
    name: str, error: Exception, gm: fx.GraphModule, inputs: Sequence[Any], config: SkipLoraConfig
) -> Path:
    """Write ``repro.py``, ``error.txt`` and ``about.json`` into a folder of torch's compile cache; return the folder.

    No value of any tensor is written.

    Args:
        name: of the pass that failed.
        error: what it raised.
        gm: the graph as Dynamo captured it.
        inputs: what it was captured with, as :func:`kinds_of` gives it.
        config: the options.

    Raises:
        OSError: the folder cannot be written.
    """
    script = _script(gm, inputs, config)
    told = "".join(traceback.format_exception(error))
    digest = hashlib.sha256(f"{script}{name}{type(error).__name__}{error}".encode()).hexdigest()[:16]
    folder = Path(compile_cache_dir()) / "skiplora_failures" / digest
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "repro.py").write_text(script, encoding="utf-8")
    (folder / "error.txt").write_text(told, encoding="utf-8")
    (folder / "about.json").write_text(json.dumps(_about(name, config), indent=2) + "\n", encoding="utf-8")
    return folder


def _about(name: str, config: SkipLoraConfig) -> dict[str, str]:
    versions = {"python": platform.python_version(), "torch": torch.__version__, "system": platform.platform()}
    return {"pass": name, **versions, "config": repr(config)}


def _script(gm: fx.GraphModule, inputs: Sequence[Any], config: SkipLoraConfig) -> str:
    options = {
        "scope": config.scope,
        "decision": config.decision,
        "disable_passes": list(config.disable_passes),
        "merge_siblings": config.merge_siblings,
    }
    return "\n".join(
        [
            '"""The graph on which a pass of skiplora failed; values are random."""',
            "",
            "import torch",
            "from torch import device, inf, nan, tensor",
            "",
            *_classes(gm, "Captured"),
            "",
            "def inputs():",
            *(f"    yield {_input(value)}" for value in inputs),
            "",
            "",
            'if __name__ == "__main__":',
            f"    options = {{'strict': True, 'warmup_steps': 0, **{options!r}}}",
            '    outputs = torch.compile(Captured(), backend="skiplora", options=options)(*inputs())',
            "    sum(out.float().sum() for out in outputs if isinstance(out, torch.Tensor)).backward()",
            "",
        ]
    )


def _classes(gm: fx.GraphModule, name: str) -> Iterator[str]:
    """Yield the lines of a module with the graph's code, after those of the modules in it."""
    parts = [(path, part) for path, part in gm.named_children() if isinstance(part, fx.GraphModule)]
    for path, part in parts:
        yield from _classes(part, f"{name}_{path}")
    yield from ("", f"class {name}(torch.nn.Module):", "    def __init__(self):", "        super().__init__()")
    yield from (f"        self.{path} = {name}_{path}()" for path, _ in parts)
    yield from (f"    {line}".rstrip() for line in gm.code.strip().splitlines())


def _input(value: Any) -> str:
    if isinstance(value, TensorKind):
        return value.source()
    return repr(value) if isinstance(value, (int, float, bool, str)) else str(int(value))
