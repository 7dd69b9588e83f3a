"""A load test of a running bundle with locust; see README.md beside this file."""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

from locust import FastHttpUser, constant_throughput, events, task

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from benchmarks.traffic import BAD_BODIES, generated_texts

TEXTS = generated_texts(1000, random.Random(0))


@events.init_command_line_parser.add_listener
def add_options(parser: Any) -> None:
    """Options of this test, besides locust's own."""
    parser.add_argument("--texts", default="", help="A file with one text a line.")
    parser.add_argument("--bad-share", type=float, default=0.0, help="Of requests, 0 to 1.")
    parser.add_argument("--rate", type=float, default=10.0, help="Requests a second per user.")


@events.init.add_listener
def read_texts(environment: Any, **_: Any) -> None:
    """Take the texts of the file, if one is given."""
    options = environment.parsed_options
    if options is not None and options.texts:
        lines = Path(options.texts).read_text(encoding="utf-8").splitlines()
        TEXTS[:] = [line for line in lines if line.strip()] or TEXTS


class Client(FastHttpUser):
    """Asks as often as `--rate` says, if the answers come in time."""

    def wait_time(self) -> float:
        """Seconds until the next request."""
        return float(constant_throughput(self.environment.parsed_options.rate)(self))

    def on_start(self) -> None:
        """Take the token of the service, if it wants one."""
        token = os.environ.get("KTT_API_TOKEN", "")
        self.headers = {"Content-Type": "application/json"}
        if token:
            self.headers["Authorization"] = f"Bearer {token}"

    @task(3)
    def classify(self) -> None:
        """Ask for everything that is known of a text."""
        self.ask("/classify")

    @task(7)
    def predict(self) -> None:
        """Ask for the path."""
        self.ask("/predict")

    def ask(self, route: str) -> None:
        """Send a good text, or a bad body, and judge the answer."""
        bad = random.random() < self.environment.parsed_options.bad_share
        body = random.choice(BAD_BODIES) if bad else json.dumps({"text": random.choice(TEXTS)})
        name = f"{route} (bad)" if bad else route
        with self.client.post(
            route, data=body, headers=self.headers, name=name, catch_response=True
        ) as answer:
            right = 400 <= answer.status_code < 500 if bad else answer.status_code == 200
            if right:
                answer.success()
            else:
                answer.failure(f"status {answer.status_code}")
