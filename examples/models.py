"""The model to adapt and its tokenizer, from the Hugging Face Hub or a local folder."""

from __future__ import annotations

from files import local_path
from problems import InputError, explained
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

_REMEDY = "--model_name also takes a local folder, as save_pretrained writes it: config.json, weights, tokenizer files."


def load_tokenizer(name: str, max_length: int) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model ``name``; one without a padding token pads with its end-of-text token.

    Raises:
        InputError: it cannot be loaded, or the model cannot take ``max_length`` tokens.
    """
    source = str(local_path(name) or name)
    with explained(_failure("configuration and tokenizer", name), _REMEDY):
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and max_length > longest:
        raise InputError(f"--max_length {max_length} is more than {name} can take: at most {longest} tokens.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # GPT-2 has no other
    if tokenizer.pad_token is None:
        raise InputError(f"The tokenizer of {name} has neither a padding nor an end-of-text token, and needs one.")
    return tokenizer


def load_model(name: str, tokenizer: PreTrainedTokenizerBase, classes: tuple[str, ...]) -> PreTrainedModel:
    """Load the model ``name`` with a head that tells ``classes`` apart, or as a language model if there are none.

    Raises:
        InputError: it cannot be loaded, or does not fit its tokenizer.
    """
    source = str(local_path(name) or name)
    with explained(_failure("weights", name), _REMEDY):
        if classes:
            model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=len(classes))
            model.config.id2label = dict(enumerate(classes))
            model.config.label2id = {label: number for number, label in enumerate(classes)}
        else:
            model = AutoModelForCausalLM.from_pretrained(source)
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise InputError(
            f"The tokenizer of {name} has {len(tokenizer)} tokens, and the model knows only "
            f"{model.get_input_embeddings().num_embeddings}: they do not belong together."
        )
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.use_cache = False
    return model


def _failure(part: str, name: str) -> str:
    where = "the local folder" if local_path(name) else "the Hugging Face Hub and its cache on this machine"
    return f"Could not load the {part} of {name!r}; tried {where}"
