"""Watches for the modules of bentoml 0.13.1 that need a repair or a precaution.

Every Python start-up in the environment runs this file (through a `.pth` line), so it imports
nothing but `sys`; the repairs are loaded when one of those modules is asked for.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_PROTO = "bentoml.yatai.proto."
_TOUCHED = frozenset(
    {
        "bentoml.types",
        "bentoml.utils.alg",
        "bentoml.utils.cloudpickle",
        "bentoml.utils.log",
        "bentoml.utils.usage_stats",
        "bentoml.marshal.dispatcher",
        "bentoml.marshal.marshal",
        "bentoml.marshal.utils",
        "bentoml.server",
        "bentoml.server.api_server",
        "bentoml.server.gunicorn_config",
        "bentoml.server.instruments",
    }
)


class BentoMLFinder:
    """A meta-path finder that answers for those modules only."""

    @staticmethod
    def find_spec(
        name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        if name in _TOUCHED or (name.startswith(_PROTO) and name.endswith("_pb2")):
            from ktt_bentoml_compat import repairs

            return repairs.repaired_spec(name, path)
        return None


def install() -> None:
    """Register the finder, once."""
    if BentoMLFinder not in sys.meta_path:
        sys.meta_path.insert(0, BentoMLFinder)


install()
