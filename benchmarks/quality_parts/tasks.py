"""What is learnt: a model with adapters, rows to train on, and rows to judge on."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from .settings import Settings

Rows = tuple[Tensor, ...]
"""Tensors of as many rows each, in the order in which :class:`Loss` takes them."""


IGNORED = -100
"""The label of what is not to be predicted."""


class Loss(nn.Module):
    """A model as a function of tensors alone, which an exported graph has to be.

    Attributes:
        model: gives ``loss`` and ``logits``.
        causal: whether it predicts each next token, and so needs no mask for padding at the end.
    """

    def __init__(self, model: nn.Module, causal: bool = False) -> None:
        super().__init__()
        self.model = model
        self.causal = causal

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return self.model(input_ids=ids, attention_mask=None if self.causal else mask, labels=labels).loss

    def predictions(self, ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return a row of logits for each label that is to be predicted, and those labels."""
        logits = self.model(input_ids=ids, attention_mask=None if self.causal else mask).logits
        if self.causal:
            logits, labels = logits[:, :-1], labels[:, 1:]
        wanted = labels != IGNORED
        return logits[wanted], labels[wanted]


@dataclass(frozen=True)
class Task:
    """A task with its model.

    Attributes:
        name: as ``--task`` takes it.
        loss: the model, with adapters on every linear of its repeated layers.
        train: rows to train on.
        test: rows to judge on.
        finals: how many tokens at the end of each test row are its final answer; None of a task without.
    """

    name: str
    loss: Loss
    train: Rows
    test: Rows
    finals: Tensor | None = None

    def reset(self, seed: int) -> None:
        """Give everything that trains its first values, drawn with ``seed``."""
        torch.manual_seed(seed)
        for module in self.loss.modules():
            if isinstance(module, LoraLayer):
                module.reset_lora_parameters("default", True)
        for name, parameter in self.loss.named_parameters():
            if parameter.requires_grad and "lora_" not in name:  # the head
                nn.init.normal_(parameter, std=0.02) if parameter.dim() > 1 else nn.init.zeros_(parameter)

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that train."""
        return [parameter for parameter in self.loss.parameters() if parameter.requires_grad]

    def digest(self) -> str:
        """Return the SHA-256 of all rows and of what of the model does not train, in hexadecimal.

        What PEFT keeps of a head that trains is left out: nothing reads it, and it was drawn anew if a model had none.
        """
        heads = [module for module in self.loss.modules() if isinstance(module, ModulesToSaveWrapper)]
        kept = {value for head in heads for value in head.original_module.parameters()}
        frozen = [value for value in self.loss.parameters() if not value.requires_grad and value not in kept]
        found = hashlib.sha256()
        for values in (*self.train, *self.test, *frozen, *self.loss.buffers()):
            found.update(f"{values.dtype} {tuple(values.shape)}".encode())
            found.update(values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return found.hexdigest()

    def batches(self, seed: int, size: int) -> Iterator[Rows]:
        """Yield batches without end, in an order drawn with ``seed`` anew for each epoch."""
        draws = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(self.train[0]), generator=draws)
            for chosen in order[: len(order) // size * size].view(-1, size):
                yield tuple(column[chosen] for column in self.train)

    def without_last(self, count: int, size: int) -> tuple[Task, list[Rows]]:
        """Return the task without its last rows to train on, and those, in ``count`` batches of ``size`` rows.

        Raises:
            ValueError: less than one batch would be left to train on.
        """
        rows = count * size
        if len(self.train[0]) < rows + size:
            raise ValueError(f"{len(self.train[0])} rows are too few to hold out {rows} and train on batches of {size}")
        kept = tuple(column[:-rows] for column in self.train)
        taken = zip(*(column[-rows:].split(size) for column in self.train), strict=True)
        return replace(self, train=kept), list(taken)

    @torch.no_grad()
    def judge(self, size: int = 32) -> dict[str, float]:
        """Return ``accuracy``, in percent, and ``loss`` on the test rows; of a language model, of their tokens.

        Where rows have a final answer also ``exact``, in percent: those of which each of its tokens is the likeliest
        after those before it, the reasoning of the true answer among them.
        """
        right = count = 0
        exact: list[bool] = []
        loss = 0.0
        self.loss.eval()
        for start in range(0, len(self.test[0]), size):
            ids, mask, labels = unpadded(tuple(column[start : start + size] for column in self.test))
            logits, wanted = self.loss.predictions(ids, mask, labels)
            hits = logits.argmax(-1) == wanted
            right += int(hits.sum())
            if self.finals is not None:
                ends = self.finals[start : start + size].tolist()
                rows = hits.split(_answer_lengths(labels))
                exact += [bool(row[-end:].all()) for row, end in zip(rows, ends, strict=True)]
            loss += float(functional.cross_entropy(logits, wanted, reduction="sum"))
            count += len(wanted)
        self.loss.train()
        scores = {"accuracy": 100 * right / count, "loss": loss / count}
        return scores | ({"exact": 100 * sum(exact) / len(exact)} if exact else {})


def unpadded(rows: Rows) -> Rows:
    """Return the rows without what is padding in all of them."""
    used = int(rows[1].sum(1).max())
    return tuple(column[:, :used] if column.dim() > 1 else column for column in rows)


def _answer_lengths(labels: Tensor) -> list[int]:
    """Return how many tokens of each row are to be predicted."""
    return (labels[:, 1:] != IGNORED).sum(1).tolist()


def mrpc(folder: Path, model_name: str, settings: Settings) -> Task:
    """Return paraphrase detection (Dolan and Brockett 2005) with a pre-trained encoder.

    Args:
        folder: holds MRPC's ``train.tsv`` and ``test.tsv``.
        model_name: a name on the Hub, or a folder.
        settings: how rows are cut and what adapters are like.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    base = AutoModelForSequenceClassification.from_pretrained(model_name, num_labels=2, **no_dropout)

    def rows(file: str, first: int | None) -> Rows:
        with (folder / file).open(encoding="utf-8-sig", newline="") as opened:
            found = list(csv.DictReader(opened, delimiter="\t", quoting=csv.QUOTE_NONE))[:first]
        told = tokenizer(
            [row["#1 String"] for row in found],
            [row["#2 String"] for row in found],
            truncation=True,
            max_length=settings.tokens,
            padding="max_length",
            return_tensors="pt",
        )
        columns = (told["input_ids"], told["attention_mask"], torch.tensor([int(row["Quality"]) for row in found]))
        return tuple(column.to(settings.device) for column in columns)

    model = with_lora(base, TaskType.SEQ_CLS, settings)
    return Task("mrpc", Loss(model), rows("train.tsv", None), _by_length(rows("test.tsv", settings.test_rows)))


def instruct(folder: Path, model_name: str, settings: Settings) -> Task:
    """Return word problems to be answered in words, with a language model; a part of them is held out.

    Args:
        folder: holds ``math_train.json``, a list of objects with ``instruction`` and ``output``. Only rows that fit
            whole and end with "The answer is ..." are used; what is asked in a test row is not trained on.
        model_name: a name on the Hub, or a folder such as ``pretrain_llama.py`` writes.
        settings: how long rows may be and what adapters are like.

    Raises:
        ValueError: too few rows fit.
    """
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    base = AutoModelForCausalLM.from_pretrained(model_name)
    told = [_answered(tokenizer, row) for row in json.loads((folder / "math_train.json").read_text())]
    whole = [row for row in told if row.final and len(row.question) + len(row.answer) <= settings.tokens]
    test = sorted(whole[-settings.test_rows :], key=lambda row: len(row.question) + len(row.answer))
    asked = {tuple(row.question) for row in test}
    train = [row for row in whole[: -settings.test_rows] if tuple(row.question) not in asked]
    if len(train) < settings.batch:
        raise ValueError(f"{len(whole)} rows of math_train.json fit into --tokens {settings.tokens}: give more")
    loss = Loss(with_lora(base, TaskType.CAUSAL_LM, settings), causal=True)
    columns = (_columns(rows, tokenizer.eos_token_id, settings) for rows in (train, test))
    return Task("instruct", loss, *columns, finals=torch.tensor([row.final for row in test]))


class Answered(NamedTuple):
    """Tokens of a question and of its answer, the end included, and how many of them are the final answer."""

    question: list[int]
    answer: list[int]
    final: int


_FINAL = "The answer is"


def _answered(tokenizer: Any, row: dict[str, str]) -> Answered:
    reasoning, marked, final = row["output"].rpartition(_FINAL)
    question, before, after = tokenizer([row["instruction"], reasoning + marked, final])["input_ids"]
    after = [*after, tokenizer.eos_token_id]
    return Answered(question, before + after, len(after) if marked else 0)


def _columns(rows: Sequence[Answered], padding: int, settings: Settings) -> Rows:
    def column(values: list[list[int]], fill: int) -> Tensor:
        padded = [value + [fill] * (settings.tokens - len(value)) for value in values]
        return torch.tensor(padded, device=settings.device)

    ids = [row.question + row.answer for row in rows]
    labels = [[IGNORED] * len(row.question) + row.answer for row in rows]
    return column(ids, padding), column([[1] * len(row) for row in ids], 0), column(labels, IGNORED)


def _by_length(rows: Rows) -> Rows:
    """Return the rows in the order of their length, so that batches of them have little padding."""
    order = rows[1].sum(1).argsort(stable=True)
    return tuple(column[order] for column in rows)


def with_lora(base: nn.Module, kind: TaskType, settings: Settings) -> nn.Module:
    """Put an adapter on every linear of the model's repeated layers.

    Raises:
        ValueError: there is none.
    """
    repeated = [
        name
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear) and any(part.isdecimal() for part in name.split("."))
    ]
    if not repeated:
        kind_of_base = type(base).__name__
        raise ValueError(f"{kind_of_base} has no nn.Linear in a repeated layer to adapt: give another --model_name")
    config = LoraConfig(r=settings.rank, lora_alpha=2 * settings.rank, target_modules=repeated, task_type=kind)
    return get_peft_model(base, config).to(settings.device).train()


TASKS: Mapping[str, Callable[[Path, str, Settings], Task]] = {"mrpc": mrpc, "instruct": instruct}
"""Makes each task, by name, as :func:`mrpc` and :func:`instruct` say."""
