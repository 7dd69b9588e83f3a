"""Tfidf_LSGD: one flat linear classifier over the terminal classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp

from models.model import Progress
from models.model_sklearn import SklearnConfig, SklearnModel
from utils.hierarchy.decode import Floats
from utils.hierarchy.tree import Ints
from utils.linear.sgd import Family, fit_families


@dataclass(frozen=True, kw_only=True)
class LSGDConfig(SklearnConfig):
    """Hyperparameters of Tfidf_LSGD."""


class Tfidf_LSGD(SklearnModel):
    """One-versus-rest over the last level; a score column per terminal class."""

    Config = LSGDConfig

    def fit_weights(
        self, matrix: sp.csr_matrix, codes: Ints, *, seed: int, progress: Progress | None
    ) -> tuple[sp.csr_matrix, Floats]:
        """Fit all terminal classes as one family."""
        columns = np.arange(self.tree.level_sizes[-1])
        everything = Family(rows=np.arange(len(codes)), labels=codes[:, -1], columns=columns)
        settings = self.config.sgd()
        return fit_families(
            matrix, [everything], len(columns), settings, seed=seed, progress=progress
        )
