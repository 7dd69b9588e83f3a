"""A tiny encoder with random weights, and rows to train it on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tests.support.tiny import WORDS

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WIDTH = 32
POSITIONS = 64


def vocabulary() -> list[str]:
    """Special tokens, letters and digits (alone and inside words), and the words of texts."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = sorted({word for text in WORDS.values() for word in text.split()})
    return [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words]


def tokenizer_json() -> str:
    """A lower-casing WordPiece tokenizer, with truncation and padding that nobody should use."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    places = {word: place for place, word in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(places, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=12)
    return tokenizer.to_str()


def tiny_encoder(folder: Path, kind: str = "distilbert") -> Path:
    """Save an encoder of two layers to a folder, as the hub would lay it out.

    Parameters
    ----------
    kind
        ``distilbert``, ``bert`` or ``roberta``.
    """
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    sizes: dict[str, Any] = (
        {"dim": WIDTH, "hidden_dim": 64, "n_layers": 2, "n_heads": 2}
        if kind == "distilbert"
        else {
            "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2,
        }
    )  # fmt: skip
    config = AutoConfig.for_model(
        kind, vocab_size=len(vocabulary()), max_position_embeddings=POSITIONS, pad_token_id=0,
        **sizes,
    )  # fmt: skip
    logging.disable_progress_bar()
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    logging.enable_progress_bar()
    (folder / "tokenizer.json").write_text(tokenizer_json())
    return folder
