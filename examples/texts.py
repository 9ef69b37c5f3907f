"""From a dataset, local or on the Hugging Face Hub, to rows of text with or without a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import ClassLabel, Dataset, load_dataset
from files import local_path, read_splits
from problems import InputError, explained

LABEL_COLUMNS = ("label", "labels", "Quality")
"""Names a label goes by; the last is MRPC's own."""

HELD_OUT_SPLITS = ("valid", "dev", "test", "eval")
"""How the names of splits to judge on begin, the first choice first: GLUE's test splits have no labels."""

TEXT_COLUMNS = ("text", "text_pair")
"""What the columns of text are called from here on."""

MOST_CLASSES = 1000
"""A column with more distinct values than this is no label."""


@dataclass(frozen=True)
class TextData:
    """Rows that are ready to be tokenised.

    Attributes:
        train: columns ``text``, for pairs ``text_pair``, and with labels ``label``, numbered from 0.
        held_out: the same; None if text without labels came without a part to judge on.
        classes: what the labels are called. Empty: there are none, so this is for language modelling.
    """

    train: Dataset
    held_out: Dataset | None
    classes: tuple[str, ...]


def load_texts(name: str, task: str | None, seed: int) -> TextData:
    """Load the dataset ``name``: a file, a folder, or one on the Hub of which ``task`` is a configuration.

    Where labelled rows come without a part to judge on, a tenth of them, drawn with ``seed``, is held out.

    Raises:
        InputError: it cannot be loaded, or has no columns that can be learnt from.
    """
    train, held_out = _choose_splits(name, _load_splits(name, task))
    texts, label = _find_columns(name, train)
    if label is None:
        return TextData(
            _select(name, train, texts), None if held_out is None else _select(name, held_out, texts), classes=()
        )
    classes = _find_classes(name, train, label)
    if held_out is None:
        parts = train.train_test_split(test_size=max(1, len(train) // 10), seed=seed)
        train, held_out = parts["train"], parts["test"]
    labels = [_number_labels(name, rows, label, classes) for rows in (train, held_out)]
    return TextData(_select(name, train, texts, labels[0]), _select(name, held_out, texts, labels[1]), classes)


def _load_splits(name: str, task: str | None) -> Mapping[str, Dataset]:
    path = local_path(name)
    if path is not None:
        return read_splits(path, task)
    configuration = f" (configuration {task!r})" if task else ""
    with explained(
        f"Could not load the dataset {name!r}{configuration}; tried the Hugging Face Hub and its cache on this machine",
        "--dataset also takes a local .csv, .tsv, .json, .jsonl or .txt file, or a folder with train and validation "
        "(or test) files of these kinds.",
    ):
        return load_dataset(name, task)


def _choose_splits(name: str, splits: Mapping[str, Dataset]) -> tuple[Dataset, Dataset | None]:
    if "train" not in splits:
        raise InputError(f"The dataset {name} has no split called train to learn from, only {', '.join(splits)}.")
    judged = (split for beginning in HELD_OUT_SPLITS for split in splits if split.startswith(beginning))
    chosen = next(judged, None)
    return splits["train"], splits[chosen] if chosen else None


def _find_columns(name: str, rows: Dataset) -> tuple[tuple[str, ...], str | None]:
    """Return the names of the columns of text, and of the label if there is one."""
    label = next((column for column in LABEL_COLUMNS if column in rows.column_names), None)
    texts = tuple(column for column in rows.column_names if column != label and _is_text(rows[:20][column]))
    if label is None and "text" in texts:
        return ("text",), None
    if len(texts) == 1 or (len(texts) == 2 and label is not None):
        return texts, label
    raise InputError(
        f"Cannot tell what to learn from {name}: its columns are {', '.join(rows.column_names)}, of which "
        f"{', '.join(texts) or 'none'} hold text and {label or 'none'} is a label. Classification needs a column "
        f"called label and one or two columns of text; language modelling needs a column called text and no label."
    )


def _is_text(values: Sequence[Any]) -> bool:
    given = [value for value in values if value is not None]
    return all(isinstance(value, str) for value in given) and not all(map(_is_number, given))


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _find_classes(name: str, train: Dataset, label: str) -> tuple[str, ...]:
    """Return what the values of the column ``label`` are called, in the order in which they are numbered."""
    feature = train.features[label]
    if isinstance(feature, ClassLabel):
        return tuple(feature.names)
    values = {str(value) for value in train[label]}
    whole = all(value.lstrip("-").isdecimal() for value in values)
    if 2 <= len(values) <= MOST_CLASSES and (whole or not all(map(_is_number, values))):
        return tuple(sorted(values, key=int if whole else str))
    raise InputError(
        f"The column {label} of {name} cannot be learnt as a class: it has {len(values)} different values, such as "
        f"{', '.join(sorted(values)[:3])}. It should have 2 to {MOST_CLASSES}, and these words or whole numbers."
    )


def _number_labels(name: str, rows: Dataset, label: str, classes: tuple[str, ...]) -> list[int]:
    if isinstance(rows.features[label], ClassLabel):
        numbers = list(rows[label])
    else:
        number_of = {value: number for number, value in enumerate(classes)}
        numbers = [number_of.get(str(value), -1) for value in rows[label]]
    if min(numbers) < 0:
        row = numbers.index(-1)
        raise InputError(
            f"Row {row + 1} of {name} has the {label} {rows[row][label]!r}, which is none of those to learn: "
            f"{', '.join(classes[:20])}. Every row, held-out ones too, needs one of these."
        )
    return numbers


def _select(name: str, rows: Dataset, texts: tuple[str, ...], labels: list[int] | None = None) -> Dataset:
    columns: dict[str, list[Any]] = {new: list(rows[old]) for new, old in zip(TEXT_COLUMNS, texts, strict=False)}
    for old, values in zip(texts, columns.values(), strict=True):
        if not all(isinstance(value, str) for value in values):
            raise InputError(f"The column {old} of {name} has rows without a text. Leave these rows out.")
    return Dataset.from_dict(columns if labels is None else {**columns, "label": labels})
