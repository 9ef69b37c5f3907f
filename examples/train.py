"""LoRA fine-tuning with and without skipping, side by side.

Without arguments, and without a network, a small Llama is pre-trained on the docstrings of Python's standard library
and tuned on the library's source code, once under torch.compile's own backend and once under skiplora.

As the paper runs it, with a model and a dataset of the Hugging Face Hub (local folders and files will do as well):

    python examples/train.py --model_name gpt2 --dataset glue --task mrpc --epochs 3 --threshold 0.05
"""

from __future__ import annotations

import os
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import huggingface_hub
import transformers
from corpus import standard_library, train_tokenizer
from encode import blocks, encode
from judge import Marks, judge
from models import load_model, load_tokenizer
from options import BACKENDS, parse, settings_from
from peft import TaskType
from pretrain import pretrain, small_llama
from problems import InputError
from report import layer_table, loss_table, time_table
from texts import load_texts
from tune import Job, Run, Settings, tune


@dataclass(frozen=True)
class Demo(Settings):
    """The run without arguments: what it learns from, its small Llama, and where its tuning differs.

    Attributes:
        held_out_files: source files that no model and no tokenizer sees.
        held_out_blocks: blocks of ``max_length`` tokens of them to judge on.
        code_blocks: blocks of the other files' source to tune on.
    """

    held_out_files: int = 40
    held_out_blocks: int = 96
    code_blocks: int = 2000
    vocabulary: int = 1024
    hidden: int = 192
    layers: int = 8
    heads: int = 6
    pretrain_steps: int = 400
    pretrain_learning_rate: float = 2e-3
    max_steps: int = 200
    warmup_steps: int = 50
    threshold: float = 0.05
    targets: str = "down_proj"
    batch_size: int = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 2 if something that was given cannot be used."""
    _prepare_libraries()
    try:
        args = parse(argv, description=str(__doc__), demo=Demo())
        with _output_folder(args.output_dir) as folder:
            if args.dataset is None:
                demo = settings_from(args, Demo())
                compare(demo_job(demo, folder), demo, BACKENDS[args.backend], folder)
            else:
                settings = settings_from(args, Settings())
                job = named_job(args.model_name, args.dataset, args.task, settings)
                compare(job, settings, BACKENDS[args.backend], folder)
    except InputError as error:
        paragraph = textwrap.fill(f"error: {error}", 100, break_long_words=False, break_on_hyphens=False)
        print(f"\n{paragraph}", file=sys.stderr)
        return 2
    return 0


def demo_job(demo: Demo, folder: Path) -> Job:
    """Pre-train the small Llama; what it is to be tuned on is the standard library's source."""
    say("Reading Python's standard library, and training a tokenizer on its docstrings.")
    corpus = standard_library(demo.seed, demo.held_out_files)
    tokenizer = train_tokenizer(corpus.prose, demo.vocabulary)
    tokens = demo.pretrain_steps * demo.batch_size * demo.max_length
    prose = blocks(corpus.prose, tokenizer, demo.max_length, limit=demo.pretrain_steps * demo.batch_size)
    model = small_llama(tokenizer, demo.hidden, demo.layers, demo.heads, demo.max_length, demo.seed)
    say(f"Pre-training a Llama of {model.num_parameters() / 1e6:.1f} M parameters on {tokens:,} tokens of docstrings.")
    loss = pretrain(model, prose, demo.pretrain_steps, demo.batch_size, demo.pretrain_learning_rate, demo.seed, folder)
    print(f"Its loss on docstrings is now {loss:.2f}.")
    return Job(
        model,
        blocks(corpus.code, tokenizer, demo.max_length, demo.code_blocks),
        blocks(corpus.held_out, tokenizer, demo.max_length, demo.held_out_blocks),
        TaskType.CAUSAL_LM,
    )


def named_job(model_name: str, dataset: str, task: str | None, settings: Settings) -> Job:
    """Load the model and the dataset that the command line names."""
    say(f"Loading the tokenizer of {model_name}.")
    tokenizer = load_tokenizer(model_name, settings.max_length)
    say(f"Loading the dataset {dataset}{f', {task}' if task else ''}.")
    texts = load_texts(dataset, task, settings.seed)
    aim = f"to tell apart {', '.join(texts.classes[:10])}" if texts.classes else "to continue text"
    say(f"Loading the model {model_name}, {aim}.")
    transformers.set_seed(settings.seed)  # a new head is drawn at random
    model = load_model(model_name, tokenizer, texts.classes)
    train, held_out = encode(texts, tokenizer, settings.max_length)
    return Job(model, train, held_out, TaskType.SEQ_CLS if texts.classes else TaskType.CAUSAL_LM)


def compare(job: Job, settings: Settings, backends: Sequence[str], folder: Path) -> None:
    """Tune under each of the backends, and print what was skipped, learnt and saved."""
    if len(job.train) < settings.batch_size:
        raise InputError(
            f"There are {len(job.train)} examples to learn from, which do not fill one batch of "
            f"{settings.batch_size}. Give more, or a smaller --batch_size."
        )
    runs = []
    for backend in backends:
        say(f"Tuning adapters on {settings.targets} with {len(job.train):,} examples at hand, under {backend}.")
        print("The first step compiles, which takes a while.")
        runs.append(tune(job, settings, backend, folder))
    say(f"Judging each model on {len(job.held_out)} held-out examples, run eagerly.")
    adapters = {"untuned": None, **{run.backend: run.adapter for run in runs}}
    marks = {name: judge(job, adapter, settings.batch_size, folder) for name, adapter in adapters.items()}
    _print_tables(runs, marks, settings)


def say(line: str) -> None:
    """Announce a phase."""
    print(f"\n{line}", flush=True)


def _print_tables(runs: Sequence[Run], marks: Mapping[str, Marks], settings: Settings) -> None:
    for run in runs:
        if run.backend == "skiplora":
            say(f"Adapters under {run.backend} (M = ||Δh|| / ||h|| of the last step, skipped if below τ):\n")
            print(layer_table(run.sites))
    say("On text that none of them has seen:\n")
    print(loss_table(marks))
    say(f"Medians of a backward and of a whole step (the warm-up is the first {settings.warmup_steps} steps):\n")
    print(time_table(runs, settings.warmup_steps))
    if len(runs[0].times) <= settings.warmup_steps:
        say(f"All {len(runs[0].times)} steps lay in the warm-up, in which nothing is skipped: see --warmup_steps.")


@contextmanager
def _output_folder(name: str | None) -> Iterator[Path]:
    if name is None:
        with TemporaryDirectory(prefix="skiplora-") as temporary:
            yield Path(temporary)
        return
    folder = Path(name).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output_dir {name} cannot be made a folder: {error.strerror}. Give another.") from error
    yield folder


def _prepare_libraries() -> None:
    # With several GPUs in sight, Trainer wraps the model in DataParallel, which cannot be compiled.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    # tokenizers warns of each process that a compiler forks, unless this is set.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in (transformers, datasets, huggingface_hub):
        library.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of its own doings


if __name__ == "__main__":
    sys.exit(main())
