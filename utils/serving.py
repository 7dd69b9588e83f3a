"""What every service bundle runs: the HTTP side of a `Classifier`, on BentoML 0.13.

A model's `svc_lts.py` is a subclass of `TextClassifierService` and imports nothing else. Whatever
this module imports is copied into each bundle, so it stays free of training code.
"""

from __future__ import annotations

import logging
import shutil
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bentoml
from bentoml.adapters import JsonInput, JsonOutput
from bentoml.configuration.containers import BentoMLContainer
from bentoml.service.artifacts import BentoServiceArtifact
from bentoml.types import HTTPRequest, InferenceTask

from utils.serving_text import Refusal, decode_body, text_of

if TYPE_CHECKING:
    from utils.classifier import Answer, Classifier

log = logging.getLogger("bentoml.service")  # the servers of a bundle show the loggers of bentoml

BASE_IMAGE = "python:3.11-slim-bookworm"
MAX_BATCH = 64
MAX_LATENCY = 300_000
"""Milliseconds. Not how long a batch is waited for (the server learns that from the traffic) but
the time-out of a batch, and the wait above which a request is refused with 429. Before its first
measurement the server reckons with 2 s a text: this allows for 148 waiting at once."""

_PLAIN = {"Content-Type": "text/plain; charset=utf-8"}


class TextInput(JsonInput):
    """Reads ``{"text": "…"}``; a request without a text fails alone, with a 4xx and a reason.

    Neither the text nor the headers stay in the task, which the server would log.
    """

    def from_http_request(self, req: HTTPRequest) -> InferenceTask:
        """Decode the body; the headers are left behind."""
        try:
            headers = req.headers
            body = decode_body(req.body, headers.charset, headers.content_encoding)
        except Refusal as refusal:
            return _discard(InferenceTask(), refusal.status, str(refusal))
        return InferenceTask(data=body)

    def extract_user_func_args(self, tasks: Iterable[InferenceTask]) -> tuple[list[str]]:
        """Collect the texts of the tasks that have one and discard the others."""
        texts = []
        for task in tasks:
            if task.is_discarded:
                continue
            try:
                texts.append(text_of(task.data))
            except Refusal as refusal:
                _discard(task, refusal.status, str(refusal))
            task.data = None
        return (texts,)


def _discard(task: InferenceTask, status: int, message: str) -> InferenceTask:
    # headers of its own: by default all failed tasks of a process share one object
    return task.discard(message, http_status=status, http_headers=dict(_PLAIN))


class FolderArtifact(BentoServiceArtifact):
    """A folder that is copied into the bundle and opened when the server starts.

    Opening it then, not at the first request, keeps a broken bundle from ever looking healthy.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._folder = Path()
        self._opened: Any = None

    def pack(self, folder: Path, metadata: dict[str, Any] | None = None) -> FolderArtifact:
        """Remember the folder to be copied."""
        self._folder = Path(folder)
        return self

    def save(self, dst: str) -> None:
        """Copy the folder into the bundle."""
        shutil.copytree(self._folder, Path(dst) / self.name)

    def load(self, path: str) -> FolderArtifact:
        """Open the bundle's copy."""
        self._folder = Path(path) / self.name
        self._opened = self.open(self._folder)
        return self

    def get(self) -> Any:
        """What the folder holds."""
        if self._opened is None:
            self._opened = self.open(self._folder)
        return self._opened

    def open(self, folder: Path) -> Any:
        """Load the folder. A subclass may hold something else."""
        from utils.classifier import Classifier

        return Classifier.load(folder)


@bentoml.env(docker_base_image=BASE_IMAGE)
@bentoml.artifacts([FolderArtifact("classifier")])
class TextClassifierService(bentoml.BentoService):
    """Answers texts with paths of classes.

    `POST /predict` and `POST /classify` take `{"text": "…"}`.
    """

    def __init__(self) -> None:
        super().__init__()
        keep_texts_out_of_logs()

    @bentoml.api(
        input=TextInput(http_input_example={"text": "a text to classify"}),
        output=JsonOutput(),
        batch=True,
        mb_max_batch_size=MAX_BATCH,
        mb_max_latency=MAX_LATENCY,
        api_doc="The names of the path's classes, root first, newline-separated: a JSON string.",
    )
    def predict(self, texts: list[str], tasks: Sequence[InferenceTask] = ()) -> list[str]:
        """Answer with the path alone."""
        return ["\n".join(answer.path) for answer in self._answer(texts, tasks)]

    @bentoml.api(
        input=TextInput(http_input_example={"text": "a text to classify"}),
        output=JsonOutput(),
        batch=True,
        mb_max_batch_size=MAX_BATCH,
        mb_max_latency=MAX_LATENCY,
        api_doc="The path with its calibrated confidence, level by level, and the best others.",
    )
    def classify(
        self, texts: list[str], tasks: Sequence[InferenceTask] = ()
    ) -> list[dict[str, Any]]:
        """Answer with path, confidence, levels and alternatives."""
        return [answer_to_dict(answer) for answer in self._answer(texts, tasks)]

    def _answer(self, texts: list[str], tasks: Sequence[InferenceTask]) -> list[Answer]:
        """Answer a micro-batch; if it fails, one by one, so that its cause fails alone.

        Tasks that fail are discarded and have no answer in the list.
        """
        if not texts:
            return []
        classifier: Classifier = self.artifacts.classifier
        try:
            return classifier.answer(texts)
        except Exception as error:
            if len(tasks) != len(texts):  # called from Python, not by a server
                raise
            _log_failure(error)
        answers: list[Answer] = []
        for text, task in zip(texts, tasks, strict=True):
            try:
                answers += classifier.answer([text])
            except Exception as error:
                _log_failure(error)
                _discard(task, 500, "The classifier failed on this text.")
        return answers


def answer_to_dict(answer: Answer) -> dict[str, Any]:
    """The answer of `POST /classify`."""
    return {
        "path": list(answer.path),
        "confidence": float(answer.confidence),
        "levels": [{"name": name, "confidence": float(prob)} for name, prob in answer.levels],
        "alternatives": [
            {"path": list(path), "confidence": float(prob)} for path, prob in answer.alternatives
        ],
    }


def _log_failure(error: Exception) -> None:
    """Log where it happened but not the error's message, which may quote the text."""
    where = "".join(traceback.format_tb(error.__traceback__))
    log.error("The classifier failed with %s:\n%s", type(error).__name__, where)


def _drop(record: logging.LogRecord) -> bool:
    return False


def keep_texts_out_of_logs() -> None:
    """Stop BentoML from logging requests and answers, and close `/feedback`, which logs its body.

    As released, each goes to the console and to prediction.log and feedback.log at INFO. A filter
    survives a later configuration of the loggers; a level would not.
    """
    for name in ("bentoml.prediction", "bentoml.feedback"):
        logging.getLogger(name).addFilter(_drop)
    BentoMLContainer.config.bento_server.feedback.enabled.set(False)
