"""The base of the encoder models: a subclass gives a head, everything else is here."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.model import Epoch, Model, Progress
from utils.common.checkpoints import TRAINING, Arrays
from utils.common.config import ModelConfig, key
from utils.common.errors import UserError
from utils.hierarchy.dataset import Split
from utils.hierarchy.decode import Floats
from utils.hierarchy.tree import Hierarchy
from utils.neural import onnx_graph, quantize
from utils.neural.architectures import no_larger_than
from utils.neural.distributed import team
from utils.neural.encoders import POOLINGS, Encoder, EncoderSpec, build_encoder, load_encoder
from utils.neural.loop import (
    Run,
    best_device,
    bf16_is_fast,
    class_weights,
    fill_optimizer,
    learning_rate_factor,
    make_optimizer,
    optimizer_arrays,
    seeded,
    share_of,
    training_batches,
)
from utils.neural.tokenizer import TextTokenizer, TokenRows

log = logging.getLogger(__name__)

WINDOW_ROWS = 4096  # rows scored before any of them is handed on
WINDOW_CELLS = 20_000_000  # scores held meanwhile
GROUP = 32  # neighbouring features averaged into one column of the reference set
CLIP = 1.0
TOKENIZER = "tokenizer"
PARTS = ("encoder/encoder.onnx", "classifier/classifier.onnx")

PRECISIONS = ("auto", "fp32", "bf16")
BEST_METRICS = (
    "leaf_accuracy", "leaf_macro_f1", "path_accuracy", "hierarchical_f1", "level_1_accuracy",
    "nll",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EncoderConfig(ModelConfig):
    """Hyperparameters of every encoder model."""

    encoder: str = key(
        "distilbert-base-uncased",
        location=True,
        note="'minilm' (packaged), a folder or a Hugging Face id",
    )
    pooling: str = key("auto", choices=POOLINGS, note="how token vectors become one feature vector")
    frozen: bool = key(False, note="keep the encoder as it is and train the head alone")
    frozen_share: float = key(
        0.0, low=0.0, high=1.0,
        note="keep embeddings and this share of the encoder's lowest layers as they are",
    )  # fmt: skip
    max_len: int = key(64, low=4, note="tokens per text")
    encoder_lr: float = key(1e-4, low=0.0, note="peak learning rate of the encoder")
    classifier_lr: float = key(2e-3, above=0.0, note="peak learning rate of the head")
    weight_decay: float = key(0.01, low=0.0)
    warmup: float = key(0.1, low=0.0, high=1.0, note="share of all steps until the peak rate")
    dropout: float = key(0.3, low=0.0, high=0.99, note="of the head")
    epochs: int = key(3, low=1)
    patience: int = key(0, low=0, note="epochs without a better one until training stops; 0: never")
    best_metric: str = key("leaf_accuracy", choices=BEST_METRICS, note="of the validation split")
    train_minibatch_size: int = key(32, low=1, note="per process")
    accumulate: int = key(1, low=1, note="batches whose gradients make one step")
    class_weight_power: float = key(
        0.0, low=0, high=2, note="rows weigh (N / (C * N_c)) ** power: 0 all alike, 1 balanced"
    )
    val_test_minibatch_size: int = key(64, low=1)
    precision: str = key("auto", choices=PRECISIONS, note="of training")
    compile: bool = key(False, note="let torch.compile speed training up; needs a C++ compiler")


class Head(nn.Module, ABC):
    """A hierarchical classifier over feature vectors, whatever made them.

    Parameters
    ----------
    features
        Width of the feature vectors.
    tree
        The full-depth tree: every row has a class on every level.
    config
        An instance of the class's `Config`.
    """

    Config: ClassVar[type[EncoderConfig]] = EncoderConfig

    def __init__(self, features: int, tree: Hierarchy, config: Any) -> None:
        super().__init__()
        self.tree = tree
        self.config = config
        self.build(features)

    @abstractmethod
    def build(self, features: int) -> None:
        """Make layers, and buffers for tensors that are not weights."""

    @abstractmethod
    def forward(self, features: Tensor) -> Any:
        """Compute whatever `loss` and `scores` need from features (batch, width)."""

    @abstractmethod
    def loss(self, outputs: Any, codes: Tensor) -> Tensor:
        """Loss of each row, (batch,); `codes` (batch, depth) are those of the full-depth tree."""

    @abstractmethod
    def scores(self, outputs: Any) -> Tensor:
        """Scores as `decode` takes them: (batch, classes) or (batch, last-level classes)."""


class Scoring(nn.Module):
    """Head and feature pooling: what is exported as the classifier graph."""

    groups: Tensor

    def __init__(self, head: Head, width: int) -> None:
        super().__init__()
        self.head = head
        self.register_buffer("groups", pooling_matrix(width), persistent=False)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (batch, width) to scores and pooled features."""
        return self.head.scores(self.head(features)), features @ self.groups


class Network(nn.Module):
    """Encoder and head."""

    def __init__(self, encoder: Encoder, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.scoring = Scoring(head, encoder.width)

    @property
    def head(self) -> Head:
        """The head."""
        return self.scoring.head

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Padded token ids (batch, tokens) to scores and pooled features."""
        found: tuple[Tensor, Tensor] = self.scoring(self.encoder(ids, mask))
        return found


class TrainingStep(nn.Module):
    """The weighted loss of a batch: what is compiled, and shared among processes."""

    def __init__(self, network: Network, *, bf16: bool) -> None:
        super().__init__()
        self.network = network
        self.bf16 = bf16

    def forward(self, inputs: Sequence[Tensor], codes: Tensor, weights: Tensor) -> Tensor:
        """Sum of the rows' losses times their weights.

        Parameters
        ----------
        inputs
            Padded ids and mask (batch, tokens), or features alone (batch, width).
        codes
            Codes in the full-depth tree; shape (batch, depth).
        weights
            Shape (batch,).
        """
        features = inputs[0] if len(inputs) == 1 else self._encode(*inputs)
        losses: Tensor = self.network.head.loss(self.network.head(features), codes)
        return weights @ losses

    def _encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Features with their graph; the head then works in float32 in any case."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.bf16):
            found: Tensor = self.network.encoder(ids, mask)
        return found

    def train(self, mode: bool = True) -> Self:
        """Switch dropout on, but not in what is kept as it is."""
        super().train(mode)
        for part in self.network.encoder.modules():
            learns = [parameter.requires_grad for parameter in part.parameters()]
            if learns and not any(learns):
                part.eval()
        return self


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRows:
    """Rows to learn from.

    Parameters
    ----------
    tokens
        Their token ids.
    features
        Their features (rows, width) where the encoder is frozen, which would only repeat them.
    codes
        Shape (rows, depth).
    weights
        With a mean of 1; shape (rows,).
    """

    tokens: TokenRows
    features: Tensor | None
    codes: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """What to sort by so that little is padded; shape (rows,)."""
        return np.zeros(len(self), np.int64) if self.features is not None else self.tokens.lengths

    def inputs(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """What `TrainingStep` takes of some rows, on the device."""
        device = best_device()
        if self.features is not None:
            return (self.features[rows].to(device),)
        ids, mask = self.tokens.padded(rows)
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def pooling_matrix(width: int) -> Tensor:
    """Averages over groups of neighbouring features, as a matrix (width, groups)."""
    group = torch.arange(width) // GROUP
    member = (group[:, None] == torch.arange(int(group[-1]) + 1)).float()
    return member / member.sum(0)


class PyTorchModel(Model):
    """An encoder with a head; the subclass names the head."""

    head_class: ClassVar[type[Head]]
    resumable: ClassVar[bool] = True
    config: EncoderConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "head_class" in vars(cls):
            cls.Config = cls.head_class.Config

    def __init__(self, hierarchy: Hierarchy, config: ModelConfig) -> None:
        super().__init__(hierarchy, config)
        self._network: Network | None = None
        self._tokenizer: TextTokenizer | None = None
        self._run: Run | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._known: tuple[list[str], TokenRows | Floats] | None = None  # validated every epoch

    @property
    def network(self) -> Network:
        """The trained network."""
        if self._network is None:
            raise RuntimeError(f"{self.name} is not trained")
        return self._network

    @property
    def tokenizer(self) -> TextTokenizer:
        """The encoder's tokenizer with the configured length."""
        if self._tokenizer is None:
            self._tokenizer = self.network.encoder.spec.text_tokenizer(self.config.max_len)
        return self._tokenizer

    def _assemble(self, encoder: Encoder, seed: int) -> None:
        with seeded(seed):
            head = self.head_class(encoder.width, self.tree, self.config)
        self._network = Network(encoder, head).to(best_device())
        self._network.encoder.keep(1.0 if self.config.frozen else self.config.frozen_share)
        self._tokenizer = None

    # -- training -------------------------------------------------------------------------

    def fit(
        self,
        train: Split,
        val: Split,
        *,
        epochs: int | None,
        seed: int,
        progress: Progress | None = None,
    ) -> Iterator[Epoch]:
        """Train, epoch by epoch; on a model resumed from a checkpoint go on where it stopped."""
        if not len(train):
            raise UserError("There is nothing to train on: the train split is empty.")
        team().join()
        run = self._begin(epochs, seed)
        if run.ended(self.config.patience):
            return
        rows = self._training_rows(train)
        val = self.validation_rows(val)
        if team().leads:
            self._known = (list(val.texts), self._prepared(self.tokenizer(val.texts)))
        step = self._training_step()
        while not run.ended(self.config.patience):
            start = time.perf_counter()
            with seeded(run.seed, run.epoch, team().rank):
                loss = self._train_epoch(run, step, rows, progress)
            if not (math.isfinite(loss) and self._is_finite()):
                raise UserError(
                    f"Training diverged in epoch {run.epoch + 1}: the loss is {loss:.3g}, weights "
                    "are not finite. Lower encoder_lr and classifier_lr."
                )
            metrics = {"loss": loss, **self._validate_once(val)}
            is_best = run.judge(metrics, self.config.best_metric)
            last = run.ended(self.config.patience)
            yield Epoch(
                number=run.epoch,
                total=run.epoch if last else run.total,
                metrics=metrics,
                is_best=is_best,
                seconds=time.perf_counter() - start,
            )

    def _begin(self, epochs: int | None, seed: int) -> Run:
        if self._run is None:
            if self._network is None:
                encoder = load_encoder(
                    self.config.encoder, pooling=self.config.pooling, max_len=self.config.max_len
                )
                self._assemble(encoder, seed)
            self._run = Run(seed=seed, total=self.config.epochs)
        self._run.total = epochs or self._run.total
        self._optimizer = self._optimizer or self._new_optimizer()
        return self._run

    def _new_optimizer(self) -> torch.optim.Optimizer:
        groups: list[tuple[nn.Module, float]] = [
            (self.network.encoder, self.config.encoder_lr),
            (self.network.head, self.config.classifier_lr),
        ]
        return make_optimizer(groups, self.config.weight_decay)

    def _is_finite(self) -> bool:
        return all(bool(value.isfinite().all()) for value in self.network.parameters())

    def _training_rows(self, train: Split) -> TrainingRows:
        tokens = self.tokenizer(train.texts)
        features = self._prepared(tokens)
        codes = self.tree.extend_codes(train.codes, self.hierarchy)
        return TrainingRows(
            tokens=tokens,
            features=None if isinstance(features, TokenRows) else torch.from_numpy(features),
            codes=torch.from_numpy(codes).long(),
            weights=torch.from_numpy(class_weights(codes[:, -1], self.config.class_weight_power)),
        )

    def _prepared(self, tokens: TokenRows) -> TokenRows | Floats:
        """Features where the encoder is frozen: it would only repeat them."""
        return self._features(tokens) if self.config.frozen else tokens

    def _training_step(self) -> nn.Module:
        wanted = self.config.precision
        bf16 = wanted == "bf16" or (wanted == "auto" and bf16_is_fast(best_device()))
        step = team().together(TrainingStep(self.network, bf16=bf16))
        if self.config.compile:
            step.compile(dynamic=True)
        return step

    def _validate_once(self, val: Split) -> dict[str, float]:
        """Validate in one process and tell the others what came out."""
        metrics = self.validate(val) if team().leads else {}
        metrics, self.calibration = team().told((metrics, self.calibration))
        return metrics

    def _train_epoch(
        self, run: Run, step: nn.Module, rows: TrainingRows, progress: Progress | None
    ) -> float:
        """Train on every row once; return the mean loss."""
        optimizer = self._optimizer
        assert optimizer is not None
        step.train()
        rng = np.random.default_rng([run.seed, run.epoch])
        size = self.config.train_minibatch_size
        batches = training_batches(rows.lengths, size * self.config.accumulate * team().size, rng)
        done, total = 0, torch.zeros((), device=best_device())
        for number, batch in enumerate(batches):
            place = run.epoch * len(batches) + number
            factor = learning_rate_factor(place, run.total * len(batches), self.config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.zero_grad(set_to_none=True)
            total += self._backward(step, rows, batch) * len(batch)
            nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
            optimizer.step()
            done += len(batch)
            if progress:
                progress(done, len(rows))
        return float(team().total(total)) / len(rows)

    def _backward(self, step: nn.Module, rows: TrainingRows, batch: NDArray[np.int64]) -> Tensor:
        """Add up gradients of the mean loss over a batch; return this process's part of it."""
        parts, weights = share_of(batch, self.config.train_minibatch_size, team())
        total = torch.zeros((), device=best_device())
        for place, part in enumerate(parts):
            with team().apart(step, when=place + 1 < len(parts)):
                weight = (rows.weights[part] * (weights / len(batch))).to(best_device())
                loss = step(rows.inputs(part), rows.codes[part].to(best_device()), weight)
                # Gradients are averaged over the processes, where their sum is meant.
                (loss * team().size).backward()
            total += loss.detach()
        return total

    # -- scoring --------------------------------------------------------------------------

    def score_batches(self, texts: Sequence[str]) -> Iterator[tuple[Floats, Floats]]:
        """Score texts in order, in batches of bounded memory; always in float32."""
        # by their content: whoever thins or copies a split makes another list of it
        known = self._known[1] if self._known and self._known[0] == list(texts) else None
        size = min(WINDOW_ROWS, max(64, WINDOW_CELLS // self.tree.class_count))
        for start in range(0, len(texts), size):
            rows = slice(start, min(start + size, len(texts)))
            found = self.tokenizer(texts[rows]) if known is None else known[rows]
            yield self._score(self._features(found) if isinstance(found, TokenRows) else found)

    def encode(self, texts: Sequence[str]) -> TokenRows:
        """Tokenise texts."""
        return self.tokenizer(texts)

    def run(self, rows: TokenRows) -> tuple[Floats, Floats]:
        """Score tokenised texts."""
        return self._score(self._features(rows))

    def _features(self, rows: TokenRows) -> Floats:
        """Encode texts in batches of similar length; features (rows, width) in the rows' order."""
        encoder, device = self.network.encoder.eval(), best_device()
        features = np.empty((len(rows), encoder.width), dtype=np.float32)
        with torch.inference_mode():
            for batch in rows.batches(self.config.val_test_minibatch_size):
                ids, mask = (torch.from_numpy(part).to(device) for part in rows.padded(batch))
                features[batch] = encoder(ids, mask).cpu().numpy()
        return features

    def _score(self, features: Floats) -> tuple[Floats, Floats]:
        scoring, device = self.network.scoring.eval(), best_device()
        with torch.inference_mode():
            scores, pooled = scoring(torch.from_numpy(features).to(device))
        return scores.cpu().numpy(), pooled.cpu().numpy()

    # -- checkpoints ----------------------------------------------------------------------

    def state(self, *, resumable: bool) -> tuple[Arrays, dict[str, Any]]:
        """Weights, tokenizer and architecture; if `resumable`, also how to go on training."""
        spec = self.network.encoder.spec
        arrays: Arrays = {
            name: value.detach().cpu().numpy() for name, value in self.network.state_dict().items()
        }
        arrays[TOKENIZER] = np.frombuffer(spec.tokenizer.encode(), dtype=np.uint8)
        values: dict[str, Any] = {
            "encoder": {
                "architecture": spec.architecture,
                "pooling": spec.pooling,
                "pad_id": spec.pad_id,
            }
        }
        if resumable and self._run is not None:
            values["run"] = dataclasses.asdict(self._run)
            arrays |= optimizer_arrays(self._optimizer) if self._optimizer else {}
        return arrays, values

    def set_state(self, arrays: Arrays, values: dict[str, Any]) -> None:
        """Take what `state` gave; without the arrays of the optimiser nothing is resumed."""
        spec = EncoderSpec(tokenizer=bytes(arrays[TOKENIZER]).decode(), **values["encoder"])
        with no_larger_than(sum(array.nbytes for array in arrays.values())):
            self._assemble(build_encoder(spec, self.config.max_len), seed=0)
        weights = {
            name: torch.from_numpy(array)
            for name, array in arrays.items()
            if name != TOKENIZER and not name.startswith(TRAINING)
        }
        self.network.load_state_dict(weights)
        self._run = self._optimizer = self._known = None
        if memory := {name: a for name, a in arrays.items() if name.startswith(TRAINING)}:
            self._run = Run.from_dict(values["run"])
            self._optimizer = self._new_optimizer()
            fill_optimizer(self._optimizer, memory)

    # -- export ---------------------------------------------------------------------------

    def write_graph(self, folder: Path, opset: int) -> dict[str, Any]:
        """Write model.onnx and tokenizer.json."""
        network = self.network.cpu().eval()
        onnx_graph.export_whole(network, folder / "model.onnx", opset)
        self.network.to(best_device())
        return {"kind": "onnx", "file": "model.onnx", **self._write_front(folder)}

    def write_script(self, folder: Path) -> dict[str, Any]:
        """Write model.torchscript and tokenizer.json."""
        from utils.neural.torchscript import export_script

        network = self.network.cpu().eval()
        export_script(network, folder / "model.torchscript")
        self.network.to(best_device())
        widths = [part.shape[1] for part in self._score(self._features(self.tokenizer([""])))]
        entry = {"kind": "torch", "file": "model.torchscript", "widths": widths}
        return {**entry, **self._write_front(folder)}

    def _write_front(self, folder: Path) -> dict[str, Any]:
        (folder / "tokenizer.json").write_text(self.tokenizer.to_json(), encoding="utf-8")
        return {
            "tokenizer": "tokenizer.json",
            "max_len": self.config.max_len,
            "pad_id": self.network.encoder.spec.pad_id,
            "pooling": self.network.encoder.spec.pooling,
            "stages": {
                "outside": "texts → input_ids, attention_mask (tokenizer.json, cut at max_len)",
                "inside": "input_ids, attention_mask → scores, features",
            },
        }

    def write_parts(self, folder: Path, opset: int) -> tuple[str, ...]:
        """Write encoder and classifier as a graph each."""
        network, names = self.network.cpu().eval(), PARTS
        files = [folder / name for name in names]
        onnx_graph.export_parts(network.encoder, network.scoring, files[0], files[1], opset)
        self.network.to(best_device())
        return names

    def quantized(self, source: Path, target: Path) -> Iterator[dict[str, Any]]:
        """Write model.onnx with weights and activations in int8."""
        return quantize.quantized(source, target)

    def words(self) -> list[str]:
        """The tokenizer's words."""
        return self.tokenizer.words()
