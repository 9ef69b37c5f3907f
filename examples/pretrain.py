"""A small Llama, trained from nothing."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset
from trainer import TimedTrainer, arguments
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, set_seed


def small_llama(
    tokenizer: PreTrainedTokenizerBase, hidden: int, layers: int, heads: int, max_length: int, seed: int
) -> LlamaForCausalLM:
    """Return a Llama with random weights and the usual proportions."""
    set_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=max_length,
            tie_word_embeddings=True,
            use_cache=False,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def pretrain(
    model: LlamaForCausalLM,
    data: Dataset,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    folder: Path,
) -> float:
    """Train every weight of ``model`` and return the mean loss of the last tenth of the ``steps``."""
    last = max(1, steps // 10)
    trainer = TimedTrainer(
        model=model,
        args=arguments(
            folder,
            seed,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=last,
            dataloader_drop_last=True,
            logging_steps=last,
        ),
        train_dataset=data,
    )
    trainer.train()
    return next(entry["loss"] for entry in reversed(trainer.state.log_history) if "loss" in entry)
