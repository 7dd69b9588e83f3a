"""What a model is: the contract between the commands and every model."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from utils.common.checkpoints import Arrays, read_checkpoint, write_checkpoint
from utils.common.config import ModelConfig, build_config, config_to_dict
from utils.common.errors import UserError
from utils.common.files import atomic_dir, is_plain, write_json
from utils.common.outputs import kept
from utils.export.validation import NOTHING, Evidence, Judge
from utils.hierarchy.calibration import fit_calibration, negative_log_likelihood
from utils.hierarchy.confidence import Calibration
from utils.hierarchy.dataset import Split
from utils.hierarchy.decode import (
    Floats,
    Predictions,
    ScoreHistogram,
    decode,
    join,
    leaf_confidences,
)
from utils.hierarchy.metrics import evaluate
from utils.hierarchy.tree import Hierarchy, Ints
from utils.inference.manifest import FILE as MANIFEST
from utils.inference.manifest import (
    FORMAT,
    OPSET,
    RUNTIMES,
    SERVICE,
    ServiceInfo,
    check_opset,
    hashes,
    versions,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from utils.hierarchy.decode import Scorer
    from utils.inference.scorers import FrontEnd

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""

VALIDATION_CELLS = 250_000_000  # scores held while validating: 1 GB
LIBRARIES = ("torch", "transformers", "tokenizers", "onnx", "onnxruntime", "numpy", "pystemmer")
REFERENCE_CELLS = 20_000_000  # numbers in a reference set
REFERENCE_BATCH = 1024  # rows that another scorer gets at once
REFERENCE_ENDS = ("predicted", "confidence", "length")
"""The last columns of a reference set."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What `Model.fit` yields after each epoch; the caller saves, prints and may stop.

    Parameters
    ----------
    number, total
        From 1; the last one has ``number == total``.
    metrics
        ``loss`` and validation figures by name.
    is_best
        Whether the model is better than after every epoch before.
    seconds
        Duration of the epoch with its validation.
    """

    number: int
    total: int
    metrics: dict[str, float]
    is_best: bool
    seconds: float


class Model(ABC):
    """A hierarchical text classifier.

    Parameters
    ----------
    hierarchy
        The (ragged) tree of its answers.
    config
        An instance of the class's `Config`.

    Attributes
    ----------
    name
        Registry name: that of the module.
    tree
        The full-depth tree that scores are over.
    calibration
        How scores become confidences, fitted on the validation split.
    info
        JSON values that travel with the checkpoint: seed, epoch, metrics, dataset, …
    """

    name: ClassVar[str]
    Config: ClassVar[type[ModelConfig]] = ModelConfig
    default_temperature: ClassVar[float] = 1.0
    resumable: ClassVar[bool] = False
    """Whether an interrupted run can go on from its last checkpoint."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.name = cls.__module__.rpartition(".")[2]

    def __init__(self, hierarchy: Hierarchy, config: ModelConfig) -> None:
        self.hierarchy = hierarchy
        self.tree = hierarchy.full_depth()
        self.config = config
        self.calibration = Calibration(temperature=self.default_temperature)
        self.info: dict[str, Any] = {}

    # -- what a framework's base class gives ----------------------------------------------

    @abstractmethod
    def fit(
        self,
        train: Split,
        val: Split,
        *,
        epochs: int | None,
        seed: int,
        progress: Progress | None = None,
    ) -> Iterator[Epoch]:
        """Train, epoch by epoch; on a resumed model go on where it stopped.

        Parameters
        ----------
        train, val
            Rows to learn from, and rows to choose and calibrate by (may be empty).
        epochs
            How many in all; None for the configuration's.
        seed
            Same seed, same result.
        progress
            Called after each batch.

        Yields
        ------
        Epoch
            The model is in a state worth saving whenever one is yielded.
        """

    @abstractmethod
    def score_batches(self, texts: Sequence[str]) -> Iterator[tuple[Floats, Floats]]:
        """Score texts in order, in batches of bounded memory: (scores, pooled features)."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Any:
        """Tokenise texts: the part of scoring that can run ahead in a thread of its own."""

    @abstractmethod
    def run(self, rows: Any) -> tuple[Floats, Floats]:
        """Score what `encode` gave: (scores, pooled features), in the texts' order."""

    @abstractmethod
    def state(self, *, resumable: bool) -> tuple[Arrays, dict[str, Any]]:
        """Arrays and JSON values that rebuild the trained model, and the run if `resumable`.

        Arrays that only a resumed run needs are named ``training/…``; readers leave them out.
        """

    @abstractmethod
    def set_state(self, arrays: Arrays, values: dict[str, Any]) -> None:
        """Take what `state` gave."""

    @abstractmethod
    def write_graph(self, folder: Path, opset: int) -> dict[str, Any]:
        """Write model.onnx and what stands before it, for `utils.inference.onnx_scorer.OnnxScorer`.

        Returns
        -------
        dict
            The manifest's `scorer`: `file`, what the front end needs, and `stages`.
        """

    def write_script(self, folder: Path) -> dict[str, Any]:
        """Write model.torchscript and what stands before it, for `TorchScorer`.

        Returns
        -------
        dict
            The manifest's `scorer`.

        Raises
        ------
        UserError
            The model has none.
        """
        raise UserError(
            f"{self.name} has no --runtime torch: it is no neural network, and a GPU would gain it "
            "nothing. Export it without --runtime."
        )

    @abstractmethod
    def write_parts(self, folder: Path, opset: int) -> tuple[str, ...]:
        """Write ``encoder/`` and ``classifier/classifier.onnx``.

        Returns
        -------
        tuple of str
            The graphs which one after another give what model.onnx gives.
        """

    @abstractmethod
    def quantized(self, source: Path, target: Path) -> Iterator[dict[str, Any]]:
        """Write model.onnx in int8, in one way after the other until no more is asked for.

        Yields
        ------
        dict
            How, for the manifest.
        """

    @abstractmethod
    def words(self) -> list[str]:
        """Words that it knows, to make texts of where there are no others."""

    # -- what every model has -------------------------------------------------------------

    def predict(self, texts: Sequence[str], progress: Progress | None = None) -> Predictions:
        """Answer texts, in order."""
        return self._answer(texts, None, progress)

    def test(self, split: Split, progress: Progress | None = None) -> Predictions:
        """Answer the rows of a split, counting scores against their truth."""
        return self._answer(split.texts, split, progress)

    def _answer(
        self, texts: Sequence[str], split: Split | None, progress: Progress | None
    ) -> Predictions:
        truth = None if split is None else self.tree.last_codes(split.codes, self.hierarchy)
        histogram = None if split is None else ScoreHistogram()
        parts, done = [], 0
        for scores, _ in self.score_batches(texts):
            rows = slice(done, done + len(scores))
            part = None if truth is None else truth[rows]
            parts.append(
                decode(scores, self.hierarchy, self.tree, self.calibration, part, histogram)
            )
            done += len(scores)
            if progress:
                progress(done, len(texts))
        if not parts:
            width = self.tree.level_sizes[-1]
            nothing = np.zeros((0, width), dtype=np.float32)
            parts.append(decode(nothing, self.hierarchy, self.tree, self.calibration))
        return join(parts)

    def validation_rows(self, val: Split) -> Split:
        """The rows of a validation split that are scored: large ones are thinned evenly."""
        limit = max(1, VALIDATION_CELLS // self.tree.class_count)
        if len(val) <= limit:
            return val
        return val.take(np.linspace(0, len(val) - 1, limit).astype(int))

    def validate(self, val: Split) -> dict[str, float]:
        """Fit the calibration on `validation_rows` and compute metrics, scoring each row once.

        Returns
        -------
        dict
            Those of `hierarchy.metrics.evaluate`, and ``nll``, the calibrated mean -log P(true
            path); empty without rows.
        """
        if not len(val):
            self.calibration = Calibration(temperature=self.default_temperature)
            return {}
        val = self.validation_rows(val)
        scores = np.concatenate([scores for scores, _ in self.score_batches(val.texts)])
        truth = self.tree.last_codes(val.codes, self.hierarchy)
        self.calibration = fit_calibration(
            scores, truth, self.hierarchy, self.tree, self.default_temperature
        )
        loss = negative_log_likelihood(scores, truth, self.tree, self.calibration.temperature)
        found = decode(scores, self.hierarchy, self.tree, self.calibration)
        return {"nll": loss, **evaluate(found, val.codes)}

    def gen_reference_set(
        self, split: Split, progress: Progress | None = None, scorer: Scorer | None = None
    ) -> pa.Table:
        """What the monitoring service compares live traffic with.

        Parameters
        ----------
        scorer
            What answers in this model's place: its exported graph, say.

        Returns
        -------
        pyarrow.Table
            ``targets`` (label of the true terminal class), the pooled features ``0``, ``1``, …,
            one column of confidences per terminal class (`score_columns`; together at most 1),
            ``predicted`` (label of the answer), ``confidence`` (in it) and ``length``
            (characters of the text). Large tests are thinned evenly.
        """
        import pyarrow as pa

        width = self.tree.level_sizes[-1]
        limit = max(1_000, REFERENCE_CELLS // width)
        if len(split) > limit:
            split = split.take(np.linspace(0, len(split) - 1, limit).astype(int))
        features, probs, answers, done = [], [], [], 0
        texts = list(split.texts)
        starts = range(0, len(texts), REFERENCE_BATCH)
        parts = (texts[start : start + REFERENCE_BATCH] for start in starts)
        for scores, pooled in map(scorer.score, parts) if scorer else self.score_batches(texts):
            features.append(pooled)
            answer, sure = leaf_confidences(scores, self.tree, self.calibration)
            answers.append(answer)
            probs.append(sure)
            done += len(scores)
            if progress:
                progress(done, len(split))
        if not done:
            raise UserError("A reference set needs rows: the dataset's test split is empty.")
        scored, pooled = np.concatenate(probs), np.concatenate(features)
        columns = {"targets": self._labels(self.hierarchy.end_classes(split.codes))}
        columns |= {str(i): pa.array(pooled[:, i]) for i in range(pooled.shape[1])}
        for column, label in enumerate(self.score_columns()):
            columns[label] = pa.array(scored[:, column])
        best = np.concatenate(answers)
        confidence = scored[np.arange(len(best)), best]
        lengths = pa.array([len(text) for text in split.texts], pa.int32())
        ends = (self._labels(self.tree.ending[best]), pa.array(confidence), lengths)
        return pa.table(columns | dict(zip(REFERENCE_ENDS, ends, strict=True)))

    def _labels(self, nodes: Ints) -> pa.Array:
        import pyarrow as pa

        kinds, places = np.unique(nodes, return_inverse=True)
        labels = pa.array([self.hierarchy.label(node) for node in kinds], pa.string())
        return labels.take(pa.array(places))

    def score_columns(self) -> list[str]:
        """Labels of the terminal classes, in the order of the last level's classes.

        One that is a number, ``targets``, ``predicted``, ``confidence`` or ``length``, as other
        columns of a reference set are, has ``> `` before it.
        """
        labels = [self.hierarchy.label(node) for node in self.tree.ending]
        taken = {"targets", *REFERENCE_ENDS}
        # No label begins with ">": these cannot meet one, nor a column of another kind.
        return [f"> {x}" if x in taken or x.isdecimal() else x for x in labels]

    def reference_columns(self) -> list[str]:
        """The columns of a reference set that do not depend on the features."""
        return ["targets", *self.score_columns(), *REFERENCE_ENDS]

    # -- files ----------------------------------------------------------------------------

    def save(self, path: Path, *, resumable: bool = True) -> None:
        """Write a checkpoint, whole."""
        arrays, values = self.state(resumable=resumable)
        meta = {
            "model": self.name,
            "config": config_to_dict(self.config),
            "hierarchy": self.hierarchy.to_dict(),
            "temperature": self.calibration.temperature,
            "calibration": self.calibration.level_values(),
            "info": self.info,
            "state": values,
        }
        write_checkpoint(path, arrays, meta)

    @classmethod
    def from_checkpoint(cls, path: Path, *, resumable: bool = False) -> Self:
        """Rebuild a model from a checkpoint.

        Parameters
        ----------
        resumable
            Whether to take the state of its training too, so that `fit` goes on.

        Raises
        ------
        UserError
            The file is damaged or is another model's.
        """
        arrays, meta = read_checkpoint(path, training=resumable)
        if meta.get("model") != cls.name:
            raise UserError(
                f"{path} is a checkpoint of {meta.get('model')!r}, not of {cls.name!r}."
            )
        try:
            config = build_config(cls.Config, meta["config"], "config")
            hierarchy = Hierarchy.from_dict(meta["hierarchy"], "hierarchy")
            model = cls(hierarchy, config)
            model._take(arrays, meta)
            model._check()
        except UserError as error:
            raise UserError(f"{path}: {error.message}") from error
        except Exception as error:  # whatever a file that was tampered with may lead to
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{path} is damaged ({reason}). It was not loaded.") from error
        return model

    def load(self, path: Path) -> None:
        """Take the weights of a checkpoint with the same model and tree."""
        other = type(self).from_checkpoint(path)
        if other.hierarchy.to_dict() != self.hierarchy.to_dict():
            raise UserError(f"{path} was trained on another hierarchy.")
        self.calibration, self.info = other.calibration, other.info
        self.set_state(*other.state(resumable=False))

    def _take(self, arrays: Arrays, meta: dict[str, Any]) -> None:
        self.calibration = Calibration.from_values(
            meta["temperature"], meta.get("calibration"), self.tree.depth
        )
        self.info = dict(meta["info"])
        if not is_plain(self.info):
            raise ValueError("its info cannot be written again")
        if not all(map(_is_epoch, self.info.get("history", []))):
            raise ValueError("its history is none of epochs")
        self.set_state(arrays, meta["state"])

    def _check(self) -> None:
        """Make sure that what was loaded can answer.

        Raises
        ------
        ValueError
            It cannot.
        """
        for scores, features in self.score_batches(["a text"]):
            if scores.shape[1] not in (self.tree.class_count, self.tree.level_sizes[-1]):
                raise ValueError(f"{scores.shape[1]} scores do not fit its tree")
            if not (np.isfinite(scores).all() and np.isfinite(features).all()):
                raise ValueError("its scores are not finite")

    # -- export ---------------------------------------------------------------------------

    def export_onnx(
        self,
        folder: Path,
        opset: int = OPSET,
        *,
        quantize: str | None = None,
        evidence: Evidence = NOTHING,
    ) -> None:
        """Write the whole model as one graph, its parts, and what a consumer needs.

        Parameters
        ----------
        opset
            ONNX operator set.
        quantize
            ``"int8"`` for model.onnx in int8; the parts stay in float32.
        evidence
            Texts that the graphs are compared with the model on.

        Raises
        ------
        UserError
            A graph's answers are not those of the model, or the model has no such form. The
            folder is then as it was.
        """
        check_opset(opset)
        with atomic_dir(folder, keep=kept(folder)) as temporary:
            self._write_export(temporary, opset, quantize, evidence, parts=True)

    def export_classifier(
        self,
        folder: Path,
        opset: int = OPSET,
        *,
        quantize: str | None = None,
        evidence: Evidence = NOTHING,
        runtime: str = RUNTIMES[0],
        monitoring: bool = False,
    ) -> None:
        """Write the same without the parts: what `utils.inference.classifier` and services run.

        Parameters
        ----------
        opset, quantize, evidence
            As for `export_onnx`.
        runtime
            ``"torch"`` for a TorchScript in place of the graph.
        monitoring
            Whether a service sends what monitoring needs.
        """
        check_opset(opset)
        service = ServiceInfo(
            model=self.name,
            dataset=self.info.get("dataset", ""),
            checkpoint=self.info.get("checkpoint", ""),
            runtime=runtime,
            monitoring=monitoring,
        )
        with atomic_dir(folder) as temporary:
            write_json(temporary / SERVICE, asdict(service))
            if runtime == "torch":
                self._write_torch(temporary, quantize, evidence)
            else:
                self._write_export(temporary, opset, quantize, evidence, parts=False)

    def _write_torch(self, folder: Path, quantize: str | None, evidence: Evidence) -> None:
        if quantize:
            raise UserError(
                f"--quantize {quantize} is of ONNX graphs: leave it or --runtime torch out."
            )
        entry = self.write_script(folder)
        from utils.inference.torch_scorer import TorchScorer

        judge = Judge(self._score_all, self.hierarchy, self.tree, self.calibration)
        texts, name = evidence.texts(self.words()), entry["file"]
        figures = judge.equal(name, TorchScorer.load(folder, entry, half=False), texts)
        parity: dict[str, Any] = {"origin": evidence.origin, name: figures}
        if evidence.rows is not None:
            half = TorchScorer.load(folder, entry, half=True)
            try:
                parity[f"{name} in 16 bits"] = judge.close(
                    f"{name} in 16 bits", half, evidence.rows
                )
                entry["half"] = True
            except UserError as error:
                log.info("%s", error.message)
        self._write_description(folder, None, entry, parity, None)

    def _write_export(
        self, folder: Path, opset: int, quantize: str | None, evidence: Evidence, *, parts: bool
    ) -> None:
        if quantize and evidence.rows is None:
            raise UserError(
                f"--quantize {quantize} needs the validation rows that {self.name} was trained "
                f"with, to measure what it costs: {evidence.origin}. Make that dataset again, or "
                "export without --quantize."
            )
        from utils.inference.onnx_scorer import OnnxScorer, open_session
        from utils.inference.scorers import front_end

        entry = self.write_graph(folder, opset)
        judge = Judge(self._score_all, self.hierarchy, self.tree, self.calibration)
        texts = evidence.texts(self.words())
        front, file = front_end(folder, entry), folder / entry["file"]
        whole = OnnxScorer(front, open_session(file))
        parity = {"origin": evidence.origin, file.name: judge.equal(file.name, whole, texts)}
        if parts:
            names = self.write_parts(folder, opset)
            chain = OnnxScorer(front, *(open_session(folder / name) for name in names))
            parity[" + ".join(names)] = judge.equal(" + ".join(names), chain, texts)
        quantization = None
        if quantize and evidence.rows is not None:
            quantization = self._quantize(judge, front, file, evidence.rows)
        self._write_description(folder, opset, entry, parity, quantization)

    def _quantize(self, judge: Judge, front: FrontEnd, file: Path, rows: Split) -> dict[str, Any]:
        """Replace a graph by the first of its kinds in int8 that is good enough."""
        from utils.inference.onnx_scorer import OnnxScorer, open_session

        small, refusal = file.with_suffix(".int8"), UserError(f"{file.name} has no int8.")
        for how in self.quantized(file, small):
            scorer = OnnxScorer(front, open_session(small))
            try:
                gate = judge.close(f"{file.name} in int8 ({how['method']})", scorer, rows)
            except UserError as error:
                log.info("%s", error.message)
                refusal = error
            else:
                small.replace(file)
                return {**how, "gate": gate}
        raise refusal

    def _score_all(self, texts: Sequence[str]) -> tuple[Floats, Floats]:
        scores, features = zip(*self.score_batches(texts), strict=True)
        return np.concatenate(scores), np.concatenate(features)

    def _write_description(
        self,
        folder: Path,
        opset: int | None,
        entry: dict[str, Any],
        parity: dict[str, Any],
        quantization: dict[str, Any] | None,
    ) -> None:
        self.hierarchy.save(folder / "hierarchy.json")
        write_json(
            folder / MANIFEST,
            {
                "format": FORMAT,
                "model": self.name,
                "dataset": self.info.get("dataset", ""),
                "temperature": self.calibration.temperature,
                "calibration": self.calibration.level_values(),
                "opset": opset,
                "scorer": entry,
                "quantization": quantization,
                "parity": parity,
                "labels": [self.hierarchy.path(node) for node in self.tree.ending],
                "score_columns": self.score_columns(),
                "tree": {
                    "level_sizes": list(self.tree.level_sizes),
                    "parents": self.tree.parents.tolist(),
                },
                "versions": versions(LIBRARIES),
                "files": hashes(folder),
                "info": self.info,
            },
        )


def _is_epoch(entry: Any) -> bool:
    """Whether it is what train.py notes of an epoch: figures by name."""
    fits = isinstance(entry, dict) and type(entry.get("epoch")) is int
    return fits and all(isinstance(figure, int | float) for figure in entry.values())
