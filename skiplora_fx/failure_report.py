"""A folder with all that is needed to see a failure again: the graph as a script, options, versions, the traceback."""

from __future__ import annotations

import hashlib
import json
import platform
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from ._torch_compat import compile_cache_dir
from .config import SkipLoraConfig


def save_failure_report(
    name: str, error: Exception, gm: fx.GraphModule, inputs: Sequence[Any], config: SkipLoraConfig
) -> Path:
    """Write ``repro.py``, ``error.txt`` and ``about.json`` into a folder of torch's compile cache; return the folder.

    No value of any tensor is written.

    Args:
        name: of the pass that failed.
        error: what it raised.
        gm: the graph as Dynamo captured it.
        inputs: what it was captured with, real or fake.
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
    options = {"scope": config.scope, "decision": config.decision, "disable_passes": list(config.disable_passes)}
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
    if not isinstance(value, Tensor):
        return repr(value) if isinstance(value, (int, float, bool, str)) else str(int(value))
    shape, stride = tuple(map(int, value.shape)), tuple(map(int, value.stride()))
    made = f"torch.empty_strided({shape}, {stride}, dtype={value.dtype}, device={str(value.device)!r})"
    if not value.dtype.is_floating_point:
        return f"{made}.zero_()"
    made = f"{made}.normal_(std=0.1)"
    kind = "torch.nn.Parameter" if isinstance(value, nn.Parameter) else "torch.Tensor.requires_grad_"
    return f"{kind}({made}, {value.requires_grad})"
