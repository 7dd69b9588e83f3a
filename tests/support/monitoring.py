"""What tests of the monitoring service need: its modules, a tree, rows, a folder to run it in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from monitor_drift import Rows
from monitor_tree import Tree
from utils.hierarchy.tree import Hierarchy

FEATURES = 6
TOPS, KINDS, LEAVES = 4, 3, 4


def paths() -> list[list[str | None]]:
    """Three levels; some rows end at an inner node."""
    found: list[list[str | None]] = []
    for top in range(TOPS):
        for kind in range(KINDS):
            found += [[f"T{top}", f"K{top}{kind}", f"L{top}{kind}{leaf}"] for leaf in range(LEAVES)]
        found.append([f"T{top}", f"K{top}0", None])
    return found


def hierarchy() -> Hierarchy:
    """The tree as a model has it."""
    columns = [list(column) for column in zip(*paths(), strict=True)]
    return Hierarchy.from_paths(columns)[0]


def tree() -> Tree:
    """The same tree as the monitor has it."""
    return Tree.from_dict(hierarchy().to_dict())


class Traffic:
    """Texts that a model has answered, drawn at random.

    Parameters
    ----------
    features
        Number of pooled features.
    sparse
        Whether most features are 0, as of short texts under TF-IDF.
    """

    def __init__(self, classes: Tree, features: int = FEATURES, *, sparse: bool = False) -> None:
        self.tree, self.features, self.sparse = classes, features, sparse
        fixed = np.random.default_rng(7)
        self.ends = np.array(sorted(hierarchy().terminals.tolist()))
        self.shares = fixed.dirichlet(np.full(len(self.ends), 2.0))
        self.centres = fixed.standard_normal((len(classes.paths), 5))
        self.mixing = fixed.standard_normal((5, features))

    def draw(
        self, rng: np.random.Generator, rows: int, shares: Any = None, noise: float = 0.0
    ) -> Rows:
        """Rows as the reference has them, but for the shares of classes and noise."""
        classes = rng.choice(self.ends, size=rows, p=self.shares if shares is None else shares)
        hidden = self.centres[classes] + rng.standard_normal((rows, 5))
        values = hidden @ self.mixing + noise
        if self.sparse:
            values = np.maximum(values - 2, 0) / 100
        sure = 1 / (1 + np.exp(-1.5 - 0.5 * hidden[:, 0] + noise - rng.standard_normal(rows)))
        return Rows(
            classes=classes,
            features=values,
            confidence=sure,
            length=np.round(np.exp(4 + 0.7 * rng.standard_normal(rows))),
        )


def scores_of(rows: Rows, ends: list[int]) -> np.ndarray:
    """Probability of every terminal class: the answer's confidence, the rest spread."""
    place = {node: column for column, node in enumerate(ends)}
    left = (1 - rows.confidence) / (len(ends) - 1)
    found = np.repeat(left[:, None], len(ends), axis=1)
    found[np.arange(len(rows)), [place[int(node)] for node in rows.classes]] = rows.confidence
    return found


def write_folder(folder: Path, reference: Rows, *, new: bool = True, **settings: Any) -> Path:
    """A monitoring folder without the service's files."""
    known = hierarchy()
    ends = known.terminals.tolist()
    labels = [known.label(node) for node in range(known.class_count)]
    answers = pa.array([labels[node] for node in reference.classes])
    columns: dict[str, Any] = {"targets": answers}
    columns |= {str(i): pa.array(reference.features[:, i]) for i in range(FEATURES)}
    columns |= {
        labels[node]: pa.array(column)
        for node, column in zip(ends, scores_of(reference, ends).T, strict=True)
    }
    if new:
        columns |= {
            "predicted": answers,
            "confidence": pa.array(reference.confidence),
            "length": pa.array(reference.length.astype(int)),
        }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "references.parquet")
    (folder / "hierarchy.json").write_text(json.dumps(known.to_dict()), encoding="utf-8")
    values = {"service": settings, "prediction": [labels[node] for node in ends]}
    (folder / "evidently.yaml").write_text(json.dumps(values), encoding="utf-8")
    return folder


def body_of(rows: Rows, ids: list[str] | None = None) -> dict[str, Any]:
    """What the inference service posts to /iterate."""
    classes = tree()
    known = hierarchy()
    ends = known.terminals.tolist()
    best = scores_of(rows, ends)
    data = []
    for row in range(len(rows)):
        top = np.argsort(-best[row])[:5]
        data.append(
            [
                classes.labels[rows.classes[row]],
                *(float(f"{value:.6g}") for value in rows.features[row]),
                float(rows.confidence[row]),
                int(rows.length[row]),
                [[int(column), float(f"{best[row, column]:.6g}")] for column in top],
                ids[row] if ids else f"{row:032x}",
            ]
        )
    names = [str(index) for index in range(rows.features.shape[1])]
    return {"columns": ["targets", *names, "confidence", "length", "scores", "id"], "data": data}
