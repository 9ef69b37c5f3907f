"""A folder with all that is needed to see a failure again: the graph as a script, options, versions, the traceback."""

from __future__ import annotations

import hashlib
import json
import platform
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx

from ._torch_compat import compile_cache_dir
from .config import SkipLoraConfig
from .reproducer import is_dynamic, script_of


def save_failure_report(
    name: str, error: Exception, gm: fx.GraphModule, inputs: Sequence[Any], config: SkipLoraConfig
) -> Path:
    """Write ``repro.py``, ``error.txt`` and ``about.json`` into a folder of torch's compile cache; return the folder.

    No value of any tensor is written.

    Args:
        name: of the pass that failed.
        error: what it raised.
        gm: the graph as Dynamo captured it.
        inputs: what it was captured with, as :func:`~.reproducer.kinds_of` gives it.
        config: the options, Inductor's of the compile's mode among them.

    Raises:
        OSError: the folder cannot be written.
    """
    script = script_of(gm, inputs, config)
    told = "".join(traceback.format_exception(error))
    digest = hashlib.sha256(f"{script}{name}{type(error).__name__}{error}".encode()).hexdigest()[:16]
    folder = Path(compile_cache_dir()) / "skiplora_failures" / digest
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "repro.py").write_text(script, encoding="utf-8")
    (folder / "error.txt").write_text(told, encoding="utf-8")
    (folder / "about.json").write_text(json.dumps(_about(name, inputs, config), indent=2) + "\n", encoding="utf-8")
    return folder


def _about(name: str, inputs: Sequence[Any], config: SkipLoraConfig) -> dict[str, Any]:
    from . import __version__  # of the package, which imports this file

    return {
        "pass": name,
        "skiplora_fx": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "dynamic": is_dynamic(inputs),
        "config": repr(replace(config, inductor={})),
        "inductor": {name: repr(value) for name, value in config.inductor.items()},
    }
