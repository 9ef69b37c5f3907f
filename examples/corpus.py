"""Text that every Python brings along: the docstrings and the source of its standard library."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from problems import InputError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

LEFT_OUT = frozenset({"encodings", "idle_test", "lib2to3", "pydoc_data", "site-packages", "test", "tests"})
"""Folders whose files are tables, tests, or not part of the library."""

END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Corpus:
    """Documents to learn from, and documents that no model and no tokenizer has seen.

    Attributes:
        prose: docstrings, one document for each, of the files that are learnt from.
        code: the source of the same files.
        held_out: the source of the other files.
    """

    prose: list[str]
    code: list[str]
    held_out: list[str]


def standard_library(seed: int, held_out_files: int) -> Corpus:
    """Read the standard library of the running Python; ``seed`` decides which files are held out.

    Raises:
        InputError: this Python has come without its library's source.
    """
    root = Path(sysconfig.get_path("stdlib"))
    sources = list(_read_sources(root))
    if len(sources) < 2 * held_out_files:
        raise InputError(
            f"The run without arguments learns from the source of Python's standard library, but {root} holds only "
            f"{len(sources)} readable .py files. Use a Python that has its library as source, or give --model_name "
            f"and --dataset."
        )
    random.Random(seed).shuffle(sources)
    held_out, learnt = sources[:held_out_files], sources[held_out_files:]
    return Corpus([text for source in learnt for text in _docstrings(source)], learnt, held_out)


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on ``texts``: it can spell any text, so it needs no unknown token."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def _read_sources(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*.py")):
        if LEFT_OUT.isdisjoint(path.relative_to(root).parts):
            try:
                yield path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue


def _docstrings(source: str) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield text
