"""Which methods of a model a runner calls, and along which dimension their calls are batched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from utils.common.errors import UserError, unknown

CALL = "__call__"
"""The method that `Runner.run` calls."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """How one method is called.

    Parameters
    ----------
    batchable
        Whether calls of several callers may be answered by one call of the method. Without it
        each call is made alone, as it came.
    batch_dim
        The dimension of all arguments, and of what comes back, along which one row follows the
        other; or one for the arguments and one for what comes back.
    """

    batchable: bool = True
    batch_dim: int | tuple[int, int] = 0

    def __post_init__(self) -> None:
        given = self.batch_dim if isinstance(self.batch_dim, tuple) else (self.batch_dim,) * 2
        if len(given) != 2 or not all(_is_dimension(dim) for dim in given):
            raise UserError(
                f"batch_dim {self.batch_dim!r} is no dimension: give a whole number from 0, or two "
                "as (input dimension, output dimension)."
            )
        if not isinstance(self.batchable, bool):
            raise UserError(f"batchable {self.batchable!r} is neither true nor false.")

    @property
    def input_dim(self) -> int:
        """The batch dimension of the arguments."""
        return self.batch_dim[0] if isinstance(self.batch_dim, tuple) else self.batch_dim

    @property
    def output_dim(self) -> int:
        """The batch dimension of what comes back."""
        return self.batch_dim[1] if isinstance(self.batch_dim, tuple) else self.batch_dim

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        dim = self.batch_dim
        return {
            "batchable": self.batchable,
            "batch_dim": list(dim) if isinstance(dim, tuple) else dim,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Signature:
        """Read what `to_dict` gave, or what a user wrote.

        Raises
        ------
        UserError
            It is no signature.
        """
        if not isinstance(values, Mapping):
            raise UserError(
                f'A signature is an object such as {{"batchable": true}}, not {values!r}.'
            )
        for key in values:
            if key not in ("batchable", "batch_dim"):
                raise unknown("key of a signature", str(key), ("batchable", "batch_dim"))
        dim = values.get("batch_dim", 0)
        return cls(
            batchable=values.get("batchable", True),
            batch_dim=tuple(dim) if isinstance(dim, list) else dim,
        )


def _is_dimension(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


DEFAULT_SIGNATURES: Mapping[str, Signature] = MappingProxyType(
    {"predict": Signature(), "classify": Signature(), CALL: Signature()}
)
"""Of a trained text classifier."""
