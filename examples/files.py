"""Tables from local files: csv, tsv, json, jsonl and plain text."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from problems import InputError, explained

Rows = list[dict[str, Any]]


def local_path(name: str) -> Path | None:
    """Return ``name`` as a path if it is one, None if it can only be a name on the Hub.

    Raises:
        InputError: it is written like a path, and nothing is there.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name.startswith((".", "/", "~")) or path.suffix in READERS:
        raise InputError(f"There is no file or folder {name}. Give one that exists, or a name on the Hugging Face Hub.")
    return None


def read_splits(path: Path, task: str | None = None) -> dict[str, Dataset]:
    """Read a file as the split ``train``, or a folder (its subfolder ``task``, if it has one) as one split a file.

    Raises:
        InputError: nothing there can be read, or a folder of several files has none called train.
    """
    if path.is_file():
        return {"train": read_table(path)}
    folder = path / task if task and (path / task).is_dir() else path
    files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix in READERS}
    if len(files) == 1:
        return {"train": read_table(*files.values())}
    if "train" not in files:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:10]) or "nothing"
        raise InputError(
            f"The folder {folder} holds no training data: found {found}. It should hold a file called train "
            f"({_FORMATS}) and, to judge the result on, one called validation or test."
        )
    return {stem: read_table(file) for stem, file in files.items()}


def read_table(path: Path) -> Dataset:
    """Read one file; csv and tsv values stay strings.

    Raises:
        InputError: the format is unknown, the file is damaged, or has no rows.
    """
    if path.suffix not in READERS:
        raise InputError(f"{path} is not in a format that can be read: its name should end in {_FORMATS}.")
    with explained(f"Could not read {path} as {path.suffix}", "Mend the file, or convert it to another format."):
        rows = READERS[path.suffix](path)
        if not rows:
            raise InputError(f"{path} has no rows: at least two examples are needed.")
        return Dataset.from_list(rows)


def _read_csv(path: Path) -> Rows:
    return _read_delimited(path, delimiter=",")


def _read_tsv(path: Path) -> Rows:
    # MRPC, like most tsv files, has quotation marks that quote speech, not fields.
    return _read_delimited(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _read_delimited(path: Path, **dialect: Any) -> Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, **dialect)
        rows = []
        for row in reader:
            if None in row or None in row.values():
                columns = ", ".join(reader.fieldnames or ())
                raise InputError(
                    f"{path}, line {reader.line_num}, does not have one value for each of the columns {columns}. "
                    f"The first line must name the columns, and every other line fill them."
                )
            rows.append(row)
        return rows


def _read_json(path: Path) -> Rows:
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        return _read_jsonl(path)
    return _checked(path, json.loads(text))


def _read_jsonl(path: Path) -> Rows:
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            with explained(f"Line {number} of {path} is not JSON", "Each line should be one object with a text."):
                rows.append(json.loads(line))
    return _checked(path, rows)


def _checked(path: Path, rows: list[Any]) -> Rows:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InputError(f"{path}: entry {number} is no object, as each should be.")
    return rows


def _read_txt(path: Path) -> Rows:
    text = path.read_text(encoding="utf-8-sig")
    return [{"text": text}] if text.strip() else []


READERS: Mapping[str, Callable[[Path], Rows]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".txt": _read_txt,
}
_FORMATS = ", ".join(READERS)
