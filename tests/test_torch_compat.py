"""Private names of torch, transformers, peft and accelerate are in ``_torch_compat.py`` alone, read from the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest
from sources import SOURCES, parsed, reached

COMPAT = "_torch_compat.py"
PACKAGES = {"torch", "transformers", "peft", "accelerate"}
OF_OTHERS = {"_fields", "_replace", "_bdd"}
"""What every ``NamedTuple`` has, which is documented, and dd's own name of a manager."""


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def private_paths(tree: ast.Module) -> Iterator[str]:
    """Yield each private name below another package that a module imports or reaches.

    An operator below ``torch.ops`` is none: its name is what graphs are written in.
    """
    for path in reached(tree):
        package, *parts = path.split(".")
        if package in PACKAGES and parts[:1] != ["ops"] and any(map(is_private, parts)):
            yield path


def private_attributes(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each private attribute that a module reads or sets of an object, by itself or by name, and where."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not _is_operator(node):
            yield node.attr, ast.unparse(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            name = node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)):
                yield str(name.value), ast.unparse(node)


def _is_operator(node: ast.Attribute) -> bool:
    return ast.unparse(node.value) in ("aten", "torch.ops.aten")


def defined(tree: ast.Module) -> set[str]:
    """Return the names of the functions, variables and attributes that a module makes itself."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return names


def elsewhere() -> list[tuple[str, ast.Module]]:
    return [(path.name, parsed(path)) for path in SOURCES if path.name != COMPAT]


def test_private_names_of_other_packages_are_in_one_file() -> None:
    assert len(elsewhere()) > 80
    found = {file: paths for file, tree in elsewhere() if (paths := sorted(set(private_paths(tree))))}
    assert found == {}


def test_private_attributes_of_their_objects_are_too() -> None:
    own = OF_OTHERS.union(*(defined(tree) for _, tree in elsewhere()))
    found = [(file, text) for file, tree in elsewhere() for name, text in private_attributes(tree) if name not in own]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch._dynamo",
        "import torch._dynamo as dynamo",
        "from torch._ops import OpOverload",
        "from torch import _dynamo",
        "def late():\n    from transformers.utils._hidden import name",
        "import torch\ntorch._C._set_grad_enabled(True)",
        "import torch as t\nt._ops.OpOverload",
        "from torch import fx\nfx._lazy_graph_module",
        "import torch.distributed as dist\ndist._hidden()",
        "import peft\nisinstance(0, peft.tuners._hidden.Name)",
        "from accelerate.utils import _hidden",
    ],
)
def test_the_search_sees(source: str) -> None:
    assert list(private_paths(ast.parse(source)))


@pytest.mark.parametrize("source", ["graph._codegen", "graph._codegen = 0", 'getattr(node, "_dynamo_source", None)'])
def test_the_search_sees_an_attribute(source: str) -> None:
    assert list(private_attributes(ast.parse(source)))


@pytest.mark.parametrize(
    "source",
    ["from ._torch_compat import x", "import torch\ntorch.__version__", "import torch\ntorch.ops.aten._int_mm"],
)
def test_the_search_passes_over(source: str) -> None:
    tree = ast.parse(source)
    assert [*private_paths(tree), *private_attributes(tree)] == []
