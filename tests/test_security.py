"""What the package must not do, read from its source: docs/security.md."""

from __future__ import annotations

import ast

import pytest
from sources import SOURCES, parsed, reached

UNPICKLES = """
    pickle cPickle _pickle marshal shelve dill joblib cloudpickle copyreg
    torch.load torch.save torch.serialization torch.jit.load torch.package torch.hub numpy.load pandas.read_pickle
"""
TALKS = """
    socket socketserver ssl select asyncio http urllib urllib3 requests httpx aiohttp ftplib smtplib imaplib poplib
    telnetlib xmlrpc webbrowser huggingface_hub torch.utils.model_zoo
"""
STARTS = """
    subprocess multiprocessing concurrent.futures.ProcessPoolExecutor pty torch.multiprocessing
    torch.utils.cpp_extension os.system os.popen os.fork os.forkpty os.startfile os.posix_spawn os.posix_spawnp
    os.execl os.execle os.execlp os.execlpe os.execv os.execve os.execvp os.execvpe
    os.spawnl os.spawnle os.spawnlp os.spawnlpe os.spawnv os.spawnve os.spawnvp os.spawnvpe
"""
RUNS_TEXT = """
    eval exec compile __import__ importlib runpy code codeop imp pkgutil ctypes cffi timeit builtins types.FunctionType
    torch.ops.load_library torch.classes
"""
FORBIDDEN = frozenset((UNPICKLES + TALKS + STARTS + RUNS_TEXT).split())

ALLOWED = {
    (
        "_torch_compat.py",
        "eval",
    ): "the names that Dynamo gives a graph's inputs, over the two dicts it reads them from",
    ("cli.py", "importlib.metadata"): "the versions of what is installed; runs nothing",
    ("page.py", "importlib.resources"): "the parts of the HTML page, which lie in the package",
}


def forbidden(tree: ast.Module) -> set[str]:
    """Return what of :data:`FORBIDDEN` a module reaches, as far down as its own text goes."""
    return {path for path in reached(tree) if any(_begins(path, name) for name in FORBIDDEN)}


def _begins(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")


def found() -> set[tuple[str, str]]:
    return {(path.name, name) for path in SOURCES for name in forbidden(parsed(path))}


def test_nothing_is_unpickled_fetched_or_started_and_no_text_is_run() -> None:
    assert len(SOURCES) > 80
    reached_by = found()
    assert {(file, path) for file, path in reached_by if not _is_allowed(file, path)} == set()
    assert reached_by >= set(ALLOWED)  # and what is allowed is needed


def _is_allowed(file: str, path: str) -> bool:
    return any(file == place and _begins(path, name) for place, name in ALLOWED)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads as read",
        "import torch\ntorch.load(path)",
        "from torch import load",
        "from torch.hub import load",
        "import torch as t\nt.hub.load(name)",
        "import os\nos.popen(text)",
        "from os import system as run",
        "def late():\n    import subprocess as s\n    s.run(text)",
        "import urllib.request",
        "from requests import get",
        "eval(text)",
        "run = exec",
        "import importlib\nimportlib.import_module(name)",
        "from importlib import import_module",
        "__import__(name)",
        "import builtins\nbuiltins.eval(text)",
    ],
)
def test_the_search_sees(source: str) -> None:
    assert forbidden(ast.parse(source))


@pytest.mark.parametrize(
    "source", ["import re\nre.compile(text)", "model.compile()", "model.eval()", "import os\nos.getpid()"]
)
def test_the_search_passes_over(source: str) -> None:
    assert not forbidden(ast.parse(source))
