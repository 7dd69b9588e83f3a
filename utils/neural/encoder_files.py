"""The files of an encoder's folder: its configuration, its weights and its tokenizer."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from utils.common.errors import UserError
from utils.common.files import read_json
from utils.neural.architectures import IGNORED, checked_config

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PART = re.compile(r"\w[\w.-]*\.safetensors")


def read_config(folder: Path) -> Any:
    """Read the configuration, as far as an encoder may be built of it."""
    values = read_json(folder / "config.json")
    if not isinstance(values, dict):
        raise UserError(f"{folder / 'config.json'} is no description of an encoder.")
    kept = {key: value for key, value in values.items() if key not in IGNORED}
    return checked_config(kept, str(folder / "config.json"))


def weight_bytes(folder: Path) -> int:
    """Memory of the weights that a folder holds, in 32 bits."""
    from safetensors import safe_open

    count = 0
    for path in _weight_files(folder):
        with safe_open(path, framework="numpy") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
        count += sum(map(math.prod, shapes))
    return 4 * count


def _weight_files(folder: Path) -> list[Path]:
    """The file of all weights, or those that its index names."""
    whole, index = (folder / name for name in WEIGHTS)
    if whole.is_file():
        return [whole]
    values = read_json(index)
    placed = values.get("weight_map") if isinstance(values, dict) else None
    names = placed.values() if isinstance(placed, dict) else [None]
    for name in names:
        if not isinstance(name, str) or not _PART.fullmatch(name):
            raise UserError(
                f"{index} names {name!r}, which is no file of weights in this folder. Fetch the "
                "encoder again."
            )
    return [folder / name for name in sorted(set(names))]


def tokenizer_json(folder: Path, config: Any) -> str:
    """Content of its tokenizer.json, made of the vocabulary where there is none."""
    file = folder / "tokenizer.json"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(
        folder, config=config, use_fast=True, trust_remote_code=False
    )
    return str(made.backend_tokenizer.to_str())
