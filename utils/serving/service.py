"""What every service bundle runs: the HTTP side of a `Classifier`, on BentoML 0.13.

A model's `svc_lts.py` is a subclass of `TextClassifierService` and imports nothing else. Whatever
this module imports is copied into each bundle, so it stays free of training code.
"""

from __future__ import annotations

import gc
import shutil
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bentoml
from bentoml.adapters import JsonInput, JsonOutput
from bentoml.service.artifacts import BentoServiceArtifact
from bentoml.types import HTTPRequest, InferenceTask

from utils.serving.access import check_token, max_characters, token
from utils.serving.log import ending_in_one_line, keep_texts_out_of_logs, log_failure
from utils.serving.requests import Refusal, bytes_of, decode_body, text_of

if TYPE_CHECKING:
    from flask import Flask

    from utils.inference.classifier import Answer
    from utils.serving.observation import Watch

BASE_IMAGE = "python:3.11-slim-bookworm"
MAX_BATCH = 64
MAX_LATENCY = 300_000
"""Milliseconds. Not how long a batch is waited for (the server learns that from the traffic) but
the time-out of a batch, and the wait above which a request is refused with 429. Before its first
measurement the server reckons with 2 s a text: this allows for 148 waiting at once."""

EXAMPLE = {"text": "a text to classify"}
PROBE = "Is the classifier there?"
LONGEST = "text " * 1024  # no model reads more of one


class TextInput(JsonInput):
    """Reads ``{"text": "…"}``; a request without a text fails alone, with a 4xx and a reason.

    Neither the text nor the headers stay in the task, which the server would log.
    """

    HTTP_METHODS = ("POST",)

    def from_http_request(self, req: HTTPRequest) -> InferenceTask:
        """Check the token and decode the body; the headers are left behind."""
        task = InferenceTask(task_id=uuid.uuid4().hex)
        headers = req.headers
        try:
            check_token(headers.get("Authorization"))
            task.data = decode_body(
                req.body,
                headers.get("Content-Type"),
                headers.get("Content-Encoding"),
                limit=bytes_of(max_characters()),
            )
        except Refusal as refusal:
            return _discard(task, refusal)
        return task

    def extract_user_func_args(self, tasks: Iterable[InferenceTask]) -> tuple[list[str]]:
        """Collect the texts of the tasks that have one and discard the others."""
        texts, limit = [], max_characters()
        for task in tasks:
            if task.is_discarded:
                continue
            try:
                texts.append(text_of(task.data, limit))
            except Refusal as refusal:
                _discard(task, refusal)
            task.data = None
        return (texts,)


def _discard(task: InferenceTask, refusal: Refusal) -> InferenceTask:
    # headers of its own: by default all failed tasks of a process share one object
    return task.discard(
        str(refusal), http_status=refusal.status, http_headers=dict(refusal.headers)
    )


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
        from utils.inference.classifier import Classifier

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
        self._watch: Watch | None = None

    @bentoml.api(
        input=TextInput(http_input_example=EXAMPLE),
        output=JsonOutput(),
        batch=True,
        mb_max_batch_size=MAX_BATCH,
        mb_max_latency=MAX_LATENCY,
        api_doc="The names of the path's classes, root first, newline-separated: a JSON string.",
    )
    def predict(self, texts: list[str], tasks: Sequence[InferenceTask] = ()) -> list[str]:
        """Answer with the path alone."""
        return ["\n".join(answer.path) for _, answer in self._answer(texts, tasks)]

    @bentoml.api(
        input=TextInput(http_input_example=EXAMPLE),
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
        return [answer_to_dict(answer, name) for name, answer in self._answer(texts, tasks)]

    def extend_app(self, app: Flask) -> None:
        """Add what a server of this service has besides its two APIs; called by that server.

        A wrong setting ends that server with one line.
        """
        with ending_in_one_line():
            self._extend(app)

    def _extend(self, app: Flask) -> None:
        from utils.serving import openapi, routes
        from utils.serving.observation import Watch, title_of

        limit, protected = max_characters(), bool(token())
        classifier = self.artifacts.classifier
        # The runtime keeps the memory of its largest batch: one that does not fit shall say so now,
        # not when the first crowd comes.
        classifier.answer([LONGEST] * MAX_BATCH)
        self._watch = watch = Watch(classifier)
        routes.add_refusals(app)
        routes.add_state(app, lambda: classifier.answer([PROBE]))
        offer = watch.reporter.offer_feedback if watch.reporter else None
        routes.add_feedback(app, watch.paths, offer)
        example = max(sorted(watch.paths), key=len, default=("Above", "Below"))
        document = openapi.document(
            title_of(classifier) or self.name,
            self.version,
            example,
            limit,
            secured=protected,
            monitored=offer is not None,
        )
        routes.add_docs(app, document)
        gc.collect()
        gc.freeze()  # all this stays: looking through it again would hold up requests

    def _answer(self, texts: list[str], tasks: Sequence[InferenceTask]) -> list[tuple[str, Answer]]:
        """Answer a micro-batch; if it fails, one by one, so that its cause fails alone.

        Tasks that fail are discarded and have no answer in the list.

        Returns
        -------
        list of tuple
            Request ids with answers.
        """
        if not texts:
            return []
        called_from_python = len(tasks) != len(texts)
        names = (
            [uuid.uuid4().hex for _ in texts]
            if called_from_python
            else [task.task_id for task in tasks]
        )
        try:
            return self._answer_batch(texts, names)
        except Exception as error:
            if called_from_python:
                raise
            log_failure("The classifier", error)
        answers: list[tuple[str, Answer]] = []
        for text, task in zip(texts, tasks, strict=True):
            try:
                answers += self._answer_batch([text], [task.task_id])
            except Exception as error:
                log_failure("The classifier", error)
                _discard(task, Refusal(500, "The classifier failed on this text."))
        return answers

    def _answer_batch(self, texts: list[str], names: list[str]) -> list[tuple[str, Answer]]:
        if self._watch is None:
            answers = self.artifacts.classifier.answer(texts)
        else:
            answers = self._watch.answer(texts, names)
        return list(zip(names, answers, strict=True))


def answer_to_dict(answer: Answer, request_id: str) -> dict[str, Any]:
    """The answer of `POST /classify`."""
    return {
        "request_id": request_id,
        "path": list(answer.path),
        "confidence": float(answer.confidence),
        "levels": [{"name": name, "confidence": float(prob)} for name, prob in answer.levels],
        "alternatives": [
            {"path": list(path), "confidence": float(prob)} for path, prob in answer.alternatives
        ],
    }
