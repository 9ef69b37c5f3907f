"""Pre-train a small Llama for ``quality.py --task instruct``, on instructions of other kinds than that task's.

    python benchmarks/pretrain_llama.py --data INSTRUCT_FOLDER --out MODEL_FOLDER

The folder holds ``boolq_train.json`` and ``arc_easy_train.json``, lists of objects with ``instruction`` and ``output``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

FILES = ("boolq_train.json", "arc_easy_train.json")
END = "<|end|>"


class DataError(ValueError):
    """What ``--data`` names cannot be trained on."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the tokenizer and the model, and save both; ``arguments`` are those of the command line."""
    args = _arguments(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    try:
        texts = texts_of(args.data)
        tokenizer = train_tokenizer(texts, args.vocabulary)
        rows = rows_of(tokenizer(END.join(texts))["input_ids"], args.tokens)
    except DataError as error:
        sys.exit(f"pretrain_llama.py: {error}")
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=args.width,
            intermediate_size=args.width * 8 // 3,
            num_hidden_layers=args.layers,
            num_attention_heads=max(1, args.width // 64),
            max_position_embeddings=256,
            tie_word_embeddings=True,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    train(model.to(args.device), rows.to(args.device), args.steps, args.batch, args.learning_rate)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


def texts_of(folder: Path) -> list[str]:
    """Return the instructions of all files, each with its output behind it.

    Raises:
        DataError: a file is missing, or is no list of objects with ``instruction`` and ``output``.
    """
    return [text for file in FILES for text in _texts_in(folder / file)]


def _texts_in(path: Path) -> list[str]:
    try:
        return [row["instruction"] + row["output"] for row in json.loads(path.read_text())]
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}. --data takes a folder with {' and '.join(FILES)}.") from error
    except (ValueError, TypeError, KeyError) as error:
        wanted = "it has to be JSON, a list of objects with the texts 'instruction' and 'output'"
        raise DataError(f"{path}: {wanted} ({type(error).__name__}: {error})") from error


def rows_of(tokens: Sequence[int], length: int) -> torch.Tensor:
    """Return the tokens as int64 ``[n, length]``; what is left over is dropped.

    Raises:
        DataError: they do not fill a row.
    """
    if len(tokens) < length:
        raise DataError(
            f"the texts have {len(tokens)} tokens, and a row has {length}: give more text, or less --tokens"
        )
    return torch.tensor(tokens[: len(tokens) // length * length]).view(-1, length)


def train_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of the texts."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END, pad_token=END)


def train(model: LlamaForCausalLM, rows: torch.Tensor, steps: int, batch: int, learning_rate: float) -> None:
    """Train every weight on batches drawn with replacement."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    rising = 0.1 if steps > 10 else 0.3  # OneCycleLR divides by zero where exactly one step is to rise
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=rising)
    for step in range(steps):
        chosen = rows[torch.randint(len(rows), (batch,))]
        loss = model(input_ids=chosen, labels=chosen).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if (step + 1) % max(1, steps // 10) == 0:
            print(f"step {step + 1}: loss {float(loss.detach()):.3f}", flush=True)


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("--data", type=Path, required=True, help="the folder of instructions")
    add("--out", type=Path, required=True, help="where the model is saved")
    add("--layers", type=int, default=6, help="(default: %(default)s)")
    add("--width", type=int, default=192, help="(default: %(default)s)")
    add("--vocabulary", type=int, default=2048, help="(default: %(default)s)")
    add("--steps", type=int, default=500, help="(default: %(default)s)")
    add("--batch", type=int, default=16, help="(default: %(default)s)")
    add("--tokens", type=int, default=64, help="in a row (default: %(default)s)")
    add("--learning_rate", type=float, default=2e-3, help="(default: %(default)s)")
    add("--device", default="cpu", help="where it trains (default: %(default)s)")
    add("--threads", type=int, default=1, help="(default: %(default)s)")
    add("--seed", type=int, default=0, help="(default: %(default)s)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
