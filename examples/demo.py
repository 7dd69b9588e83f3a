#!/usr/bin/env python
"""The whole job once, with generated data: what `make demo` runs.

Every step is printed as the command that one would type.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from utils.common import cli
from utils.common.errors import UserError
from utils.common.paths import PROJECT_ROOT, Layout

MODELS = ("tfidf_hsgd", "db_bhcn")
SERVED = "db_bhcn"
DATASET = "data001"


def step(*arguments: str) -> None:
    """Run one of the toolkit's commands, showing it first."""
    cli.say(f"\n$ python {' '.join(arguments)}")
    script, *rest = arguments
    done = subprocess.run([sys.executable, str(PROJECT_ROOT / script), *rest], check=False)
    if done.returncode:
        raise UserError(f"{script} failed with status {done.returncode} (see above).")


def some_text(layout: Layout) -> str:
    """A text of the test split."""
    from utils.hierarchy.dataset import load_dataset

    return load_dataset(layout, DATASET).test.texts[0]


def ask(layout: Layout, text: str) -> None:
    """Start a bundle, ask both of its endpoints, stop it."""
    from utils.serving.local_server import served

    bundle = layout.bundle(SERVED, DATASET) / "inference"
    shown = os.path.relpath(bundle)
    cli.say(f"\n$ bentoml serve-gunicorn {shown}")
    bentoml = Path(sys.executable).with_name("bentoml")
    with (
        tempfile.TemporaryDirectory(prefix="ktt-demo-") as home,
        served(bundle, "serve-gunicorn", bentoml, Path(home)) as server,
    ):
        document = json.dumps({"text": text}, ensure_ascii=False)
        for endpoint in ("/predict", "/classify"):
            quoted = shlex.quote(document)
            cli.say(f"\n$ curl -d {quoted} http://127.0.0.1:{server.port}{endpoint}")
            reply = server.ask(endpoint, {"text": text})
            if reply.status != 200:
                raise UserError(f"{endpoint} answered {reply.status}: {reply.text}")
            cli.say(json.dumps(reply.json(), ensure_ascii=False, indent=2))
    cli.say("\nThe server is stopped. Ask it yourself:")
    cli.say("  source .venv/bin/activate")
    cli.say(f"  bentoml serve {shown}    # and in another terminal, once it answers:")
    cli.say(f"  curl -d {shlex.quote(document)} http://localhost:5000/predict")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Generate data, train two models, export both as services, ask one over HTTP."""
    started = time.monotonic()
    layout = Layout()
    if layout.dataset(DATASET).exists():
        cli.say(f"Keeping the dataset that is there: {layout.dataset(DATASET)}")
    else:
        step("adapt.py", "demo", DATASET)
    step("train.py", "-m", ",".join(MODELS), "--encoder", "minilm", "-d", DATASET, "-r")
    step("export.py", "-m", ",".join(MODELS), "-d", DATASET, "--bento")
    ask(layout, some_text(layout))
    cli.say(
        f"\nAll done in {time.monotonic() - started:.0f} seconds. Next: README.md, 'Your own data'."
    )


if __name__ == "__main__":
    cli.run(main)
