"""From text to token ids of one fixed length, so that a compiled model never sees a second shape."""

from __future__ import annotations

from collections.abc import Iterable

from datasets import Dataset
from problems import InputError
from texts import TextData
from transformers import BatchEncoding, PreTrainedTokenizerBase

MULTIPLE = 8
"""Padded lengths are a multiple of this: odd ones make for slow kernels."""


def encode(data: TextData, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[Dataset, Dataset]:
    """Return what to learn and what to judge on as token ids, ``max_length`` at most in a row."""
    if data.held_out is None:
        return _split_blocks(blocks(data.train["text"], tokenizer, max_length))
    if data.classes:
        return _encode_labelled(data.train, data.held_out, tokenizer, max_length)
    return blocks(data.train["text"], tokenizer, max_length), blocks(data.held_out["text"], tokenizer, max_length)


def blocks(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, length: int, limit: int | None = None) -> Dataset:
    """Join ``texts``, an end-of-text token after each, and cut them into at most ``limit`` blocks.

    Each block has ``length`` tokens; what is left over at the end is dropped.
    """
    ids: list[int] = []
    end = [tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.pad_token_id]
    for text in texts:
        ids += tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] + end
        if limit is not None and len(ids) >= limit * length:
            break
    rows = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length)][:limit]
    if not rows:
        raise InputError(f"The text is {len(ids)} tokens long, which is not one block of {length} (--max_length).")
    return Dataset.from_dict({"input_ids": rows, "labels": rows})


def _split_blocks(rows: Dataset) -> tuple[Dataset, Dataset]:
    # Text is continuous, so its end is held out: blocks from its middle would have their neighbours in training.
    held_out = max(1, len(rows) // 10)
    if held_out == len(rows):
        raise InputError("The text is one block of tokens long (--max_length), and at least two are needed.")
    return rows.select(range(len(rows) - held_out)), rows.select(range(len(rows) - held_out, len(rows)))


def _encode_labelled(
    train: Dataset, held_out: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[Dataset, Dataset]:
    encoded = [_truncated(rows, tokenizer, max_length) for rows in (train, held_out)]
    longest = max(len(ids) for columns in encoded for ids in columns["input_ids"])
    length = min(max_length, -(-longest // MULTIPLE) * MULTIPLE)
    padded = [tokenizer.pad(columns, padding="max_length", max_length=length) for columns in encoded]
    return (
        Dataset.from_dict({**padded[0], "labels": train["label"]}),
        Dataset.from_dict({**padded[1], "labels": held_out["label"]}),
    )


def _truncated(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> BatchEncoding:
    pair = list(rows["text_pair"]) if "text_pair" in rows.column_names else None
    return tokenizer(list(rows["text"]), pair, truncation=True, max_length=max_length)
