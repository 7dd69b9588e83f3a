#!/usr/bin/env python
"""What one training step of each head costs on trees of 1,000 to 10,000 classes.

    python benchmarks/heads.py

A step is forward, loss and backward on a batch of feature vectors, without an encoder. Each cell of
the first table is measured in a process of its own: time as the median of several steps, memory as
how far the process's peak rises over what it held with the weights made (their gradients are in
it). MCM and AWX are the layers over the tree with their losses, alone. The second table compares
these with the dense way, (batch, classes, classes) masked by the matrix of ancestors, on the same
tree and batch, taking turns. Prints Markdown.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

HEADS = ("db_linear", "db_bhcn", "db_bhcn_awx", "db_ahmcnf", "db_achmcnn")
LAYERS = ("MCM", "AWX")
# Share of classes per level, about as in a shop's taxonomy; the last level has the rest.
SHARES = np.array([0.003, 0.02, 0.15, 0.35])
NORM = 5


def make_tree(classes: int) -> Any:
    """A random tree of that many classes; every inner class has a child, some have many."""
    from utils.hierarchy.tree import Hierarchy

    rng = np.random.default_rng(0)
    sizes = np.maximum(1, (SHARES * classes).astype(int))
    sizes = np.append(sizes, classes - sizes.sum())
    names = [[f"{level}.{place}" for place in range(size)] for level, size in enumerate(sizes)]
    parents = [np.arange(sizes[0], dtype=np.int32)]
    for above, size in itertools.pairwise(sizes):
        share = rng.lognormal(size=above)
        more = rng.choice(above, size - above, p=share / share.sum())
        parents.append(np.sort(np.concatenate([np.arange(above), more])).astype(np.int32))
    tree = Hierarchy.from_parents(names, parents).full_depth()
    assert tree.class_count == classes
    return tree


def make_rows(tree: Any, batch: int, width: int) -> tuple[Any, Any]:
    """Features and codes of random paths."""
    import torch

    paths = tree.path_codes[tree.level_slice(tree.depth - 1)]
    codes = paths[np.random.default_rng(0).integers(0, len(paths), batch)]
    torch.manual_seed(0)
    return torch.randn(batch, width), torch.from_numpy(codes).long()


def head_step(name: str, tree: Any, batch: int, width: int) -> tuple[Callable[[], None], int]:
    """A training step of a head, or of its layer over the tree alone; the bytes of its weights."""
    from models import model_class

    if name in LAYERS:
        return layer_steps(tree, *layer_inputs(tree, batch))[name], 0
    cls: Any = model_class(name)
    head = cls.head_class(width, tree, cls.Config())
    features, codes = make_rows(tree, batch, width)

    def step() -> None:
        head.zero_grad(set_to_none=True)
        head.loss(head(features), codes).mean().backward()

    return step, sum(weight.nbytes for weight in head.parameters())


def seconds(step: Callable[[], None]) -> float:
    """Of one step."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def peak() -> int:
    """Most bytes of memory that this process has held since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def forget_peak() -> None:
    """Let the peak start from what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(name: str, classes: int, batch: int, width: int, steps: int) -> dict[str, float]:
    """Time, memory and weights of a head's step, in this process."""
    # Libraries and thread pools shall be there before anything is measured.
    head_step(name, make_tree(40), batch, width)[0]()
    tree = make_tree(classes)
    step, weights = head_step(name, tree, batch, width)
    gc.collect()
    forget_peak()
    before = peak()
    first = seconds(step)
    rise = peak() - before
    times = [first] + [seconds(step) for _ in range(steps)]
    return {"seconds": statistics.median(times), "bytes": rise, "weights": weights}


def in_process_of_its_own(*arguments: object) -> dict[str, float]:
    """`measure` in a fresh process."""
    command = [sys.executable, __file__, "--one", json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    found: dict[str, float] = json.loads(done.stdout)
    return found


# -- the dense way ------------------------------------------------------------------------


def ancestor_matrix(tree: Any) -> Any:
    """Dense (classes, classes): 1 where the column is the row's class or below it."""
    import torch

    matrix = torch.zeros(tree.class_count, tree.class_count)
    for node in range(tree.class_count):
        matrix[torch.from_numpy(tree.ancestors(node)).long(), node] = 1
    return matrix


def dense_mcm(outputs: Any, matrix: Any) -> Any:
    """max over D(i) as the maximum of a masked cube."""
    rows, classes = outputs.shape
    cube = outputs.unsqueeze(1).expand(rows, classes, classes)
    return (cube * matrix).max(dim=2).values


def dense_mcm_step(tree: Any, logits: Any, targets: Any) -> Callable[[], None]:
    from torch.nn import functional

    matrix = ancestor_matrix(tree)

    def step() -> None:
        logits.grad = None
        f = logits.sigmoid()
        mixed = (1 - targets) * dense_mcm(f, matrix) + targets * dense_mcm(targets * f, matrix)
        functional.binary_cross_entropy(mixed, targets).backward()

    return step


def dense_awx_step(tree: Any, raw: Any, targets: Any) -> Callable[[], None]:
    from torch.nn import functional

    matrix = ancestor_matrix(tree)[:, tree.level_slice(tree.depth - 1)]

    def step() -> None:
        raw.grad = None
        rows, leaves = raw.shape
        cube = raw.sigmoid().unsqueeze(1).expand(rows, len(matrix), leaves) * matrix
        answer = cube.pow(NORM).sum(dim=2).clamp(1e-6, 1 - 1e-6) ** (1 / NORM)
        functional.binary_cross_entropy(answer, targets).backward()

    return step


def layer_steps(tree: Any, logits: Any, raw: Any, targets: Any) -> dict[str, Callable[[], None]]:
    """The same steps as the heads make them: the layer over the tree with its loss."""
    from models.db_achmcnn.db_achmcnn import CHMCNN, CHMCNNConfig
    from models.db_bhcn_awx.db_bhcn_awx import AWX

    head = CHMCNN(8, tree, CHMCNNConfig(h_hidden_dim=8))
    awx = AWX(tree, NORM)

    def mcm() -> None:
        logits.grad = None
        head.loss_on_targets(logits, targets).mean().backward()

    def awx_step() -> None:
        raw.grad = None
        awx.bce(raw, targets).mean().backward()

    return {"MCM": mcm, "AWX": awx_step}


def layer_inputs(tree: Any, batch: int) -> tuple[Any, Any, Any]:
    """Logits of all classes, raw outputs of the leaves, and targets."""
    import torch

    from models.heads import target_matrix

    _, codes = make_rows(tree, batch, 1)
    offsets = torch.from_numpy(tree.level_offsets[:-1])
    logits = torch.randn(batch, tree.class_count, requires_grad=True)
    raw = torch.randn(batch, tree.level_sizes[-1], requires_grad=True)
    return logits, raw, target_matrix(codes, offsets, tree.class_count)


def compare(classes: int, batch: int, rounds: int) -> list[tuple[str, float, float]]:
    """Per layer, median seconds dense and by segments."""
    tree = make_tree(classes)
    logits, raw, targets = layer_inputs(tree, batch)
    dense = {
        "MCM": dense_mcm_step(tree, logits, targets),
        "AWX": dense_awx_step(tree, raw, targets),
    }
    found = []
    for name, step in layer_steps(tree, logits, raw, targets).items():
        step()
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            times[0].append(seconds(dense[name]))
            times[1].append(statistics.median(seconds(step) for _ in range(5)))
        found.append((name, statistics.median(times[0]), statistics.median(times[1])))
    return found


# -- tables -------------------------------------------------------------------------------


def line(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_steps(sizes: list[int], batch: int, width: int, steps: int) -> bool:
    """Print time and memory of every head; return whether all stay below 1 GB."""
    within = True
    columns = [f"{size:,}" for size in sizes]
    line("ms per step", *columns, "last / first", f"weights at {columns[-1]}",
         f"memory at {columns[-1]}")  # fmt: skip
    line(*["---"] * (len(sizes) + 4))
    for name in (*HEADS, *LAYERS):
        found = [in_process_of_its_own(name, size, batch, width, steps) for size in sizes]
        times = [1000 * one["seconds"] for one in found]
        last = found[-1]
        within &= last["bytes"] < 1e9
        line(name, *(f"{ms:.1f}" for ms in times), f"{times[-1] / times[0]:.1f}",
             f"{last['weights'] / 1e6:.0f} MB", f"{last['bytes'] / 1e6:.0f} MB")  # fmt: skip
    return within


def print_comparison(classes: int, batch: int, rounds: int) -> bool:
    """Print dense against segments; return whether the latter are 100 times as fast."""
    fast = True
    line(f"layer and loss, {classes:,} classes", "dense", "by segments", "ratio")
    line(*["---"] * 4)
    for name, dense, ours in compare(classes, batch, rounds):
        fast &= dense >= 100 * ours
        line(name, f"{dense:.2f} s", f"{1000 * ours:.1f} ms", f"{dense / ours:.0f}")
    return fast


@click.command()
@click.option("--sizes", default="1000,2000,5000,10000", show_default=True, help="Classes.")
@click.option("--batch", default=64, show_default=True)
@click.option("--width", default=384, show_default=True, help="Of the feature vectors.")
@click.option("--steps", default=15, show_default=True)
@click.option("--dense-classes", default=2000, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Of the comparison with dense.")
@click.option("--one", hidden=True)
def main(
    sizes: str, batch: int, width: int, steps: int, dense_classes: int, rounds: int, one: str | None
) -> None:
    """Print the tables; exit with 1 if a head needs 1 GB, or dense is not 100 times as slow."""
    if one:
        print(json.dumps(measure(*json.loads(one))))
        return
    import torch

    print(f"batch {batch}, width {width}, {torch.get_num_threads()} threads, medians\n")
    within = print_steps([int(size) for size in sizes.split(",")], batch, width, steps)
    print()
    fast = print_comparison(dense_classes, batch, rounds)
    print(f"\nall below 1 GB: {'yes' if within else 'NO'}; 100 times: {'yes' if fast else 'NO'}")
    sys.exit(0 if within and fast else 1)


if __name__ == "__main__":
    main()
