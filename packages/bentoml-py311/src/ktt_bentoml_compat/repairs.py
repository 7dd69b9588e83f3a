"""Repairs and precautions, each a loader that stands in for the module's own.

The files of bentoml stay as they were installed.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import logging
import os
import pickle
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

LOG_BYTES = 5_000_000

# setuptools is held below 81 for bentoml's sake, so its announcement says nothing new
warnings.filterwarnings("ignore", "pkg_resources is deprecated as an API", UserWarning)


class HashableHeadersLoader(SourceFileLoader):
    """`bentoml.types`, whose `HTTPHeaders` is the default of a dataclass field.

    Python 3.11 refuses a default without a hash, so the class gets the one of `object`.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Compile from source each time: a cached `.pyc` would hold the class unrepaired."""
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        headers = next(
            node
            for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name == "HTTPHeaders"
        )
        headers.body.extend(ast.parse("__hash__ = object.__hash__").body)
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


class CloudpickleLoader(SourceFileLoader):
    """`bentoml.utils.cloudpickle`: the cloudpickle package in place of an old copy of it."""

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module("cloudpickle")


class ProtoLoader(SourceFileLoader):
    """A `_pb2` module of an old protoc, built anew from the descriptor that it holds."""

    def exec_module(self, module: ModuleType) -> None:
        from google.protobuf import descriptor_pool
        from google.protobuf.internal import builder

        path = self.get_filename(module.__name__)
        tree = ast.parse(self.get_data(path), path)
        needed = _imports_of_messages(tree)
        exec(compile(needed, path, "exec", dont_inherit=True), module.__dict__)
        descriptor = descriptor_pool.Default().AddSerializedFile(_serialized_descriptor(tree))
        module.__dict__["DESCRIPTOR"] = descriptor
        builder.BuildMessageAndEnumDescriptors(descriptor, module.__dict__)
        builder.BuildTopDescriptorsAndMessages(descriptor, module.__name__, module.__dict__)


def _imports_of_messages(tree: ast.Module) -> ast.Module:
    """Only the imports of other `_pb2` modules: the pool must know them first."""
    imports = [
        node
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        and all(alias.name.endswith("_pb2") for alias in node.names)
    ]
    return ast.Module(body=list(imports), type_ignores=[])


def _serialized_descriptor(tree: ast.Module) -> bytes:
    """The `serialized_pb` argument of the file's descriptor (the nested ones have none)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "serialized_pb":
            value: bytes = ast.literal_eval(node.value)
            return value
    raise ImportError("no serialized_pb in a _pb2 module of bentoml: is this bentoml 0.13.1?")


class UsageStatsLoader(SourceFileLoader):
    """`bentoml.utils.usage_stats`: nothing is sent unless BENTOML_DO_NOT_TRACK=False asks for it.

    As released each command reports itself, its duration and its error to a server.
    """

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        module.__dict__["_do_not_track"] = lambda: (
            os.environ.get("BENTOML_DO_NOT_TRACK", "True").lower() != "false"
        )


class _MessageUnpickler(pickle.Unpickler):
    """Reads what the two servers of a bundle say to each other, and nothing else."""

    allowed = frozenset(
        {
            ("bentoml.types", "HTTPRequest"),
            ("bentoml.types", "HTTPResponse"),
            ("bentoml.types", "HTTPHeaders"),
            ("multidict._multidict", "istr"),
            ("multidict._multidict_py", "istr"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a merged request")
        return super().find_class(module, name)


class MessageLoader(SourceFileLoader):
    """`bentoml.marshal.utils`, which unpickles the body of any request with a certain header.

    The API server listens on all interfaces: as released, whoever reaches it runs code there.
    """

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        loader = module.__dict__["PickleDataLoader"]
        loader.split_requests = staticmethod(_read_message)
        loader.split_responses = staticmethod(_read_message)


def _read_message(raw: bytes) -> Any:
    from bentoml.exceptions import BadInput

    try:
        return _MessageUnpickler(io.BytesIO(raw)).load()
    except Exception as error:  # a foreign pickle can raise anything; BadInput is answered by 400
        raise BadInput(f"not a merged request: {error}") from error


class ProxyLoader(SourceFileLoader):
    """`bentoml.marshal.marshal`, the proxy, which lets clients fill its memory and make it fail.

    As released it keeps metrics of every path that was ever asked for, and answers 500 to a body
    over `max_request_size` or to a header that is not UTF-8.
    """

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        from ktt_bentoml_compat import proxy

        # the class without the metrics that are wrapped around it
        service = module.__dict__["MarshalService"].__mro__[1]
        proxy.improve(service)
        module.__dict__["MarshalService"] = service


class ServersLoader(SourceFileLoader):
    """`bentoml.server`: starts both servers of a bundle, with workers for the cores there are."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        from ktt_bentoml_compat import servers

        servers.improve(module.__dict__)


class InstrumentsLoader(SourceFileLoader):
    """`bentoml.server.instruments`: the folder of metrics is emptied once, not by each server.

    And the workers keep no metrics by path of request.
    """

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        from ktt_bentoml_compat import servers

        module.__dict__["setup_prometheus_multiproc_dir"] = servers.keep_metrics_folder
        module.__dict__["InstrumentMiddleware"] = lambda app, service: app


class ApiServerLoader(SourceFileLoader):
    """`bentoml.server.api_server`: a service may have a method `extend_app`.

    It is given the finished Flask application, to add routes and error handlers of its own.
    """

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        server = module.__dict__["BentoAPIServer"]
        server.setup_routes = _with_extension(server.setup_routes)


def _with_extension(setup_routes: Callable[[Any], None]) -> Callable[[Any], None]:
    @functools.wraps(setup_routes)
    def extended(self: Any) -> None:
        setup_routes(self)
        extend = getattr(self.bento_service, "extend_app", None)
        if extend is not None:
            extend(self.app)

    return extended


class GunicornConfigLoader(SourceFileLoader):
    """`bentoml.server.gunicorn_config`: no control socket, and no metrics of the dead.

    Newer gunicorns put a socket into the home folder, and a bundle's two servers would fight over
    it. And as released a worker that was killed leaves its gauges behind: only one that ends by
    itself runs the hook that removes them.
    """

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        remove = module.__dict__["worker_exit"]

        def removed(server: Any, worker: Any) -> None:
            with contextlib.suppress(OSError):  # of a disk that refuses: it stays
                remove(server, worker)

        module.__dict__["control_socket_disable"] = True
        module.__dict__["child_exit"] = module.__dict__["worker_exit"] = removed


class LogLoader(SourceFileLoader):
    """`bentoml.utils.log`: log files small enough for the memory that a container has for them.

    As released each of three may grow to 100 MB, and have up to ten older ones beside it; and a
    folder that cannot be written to is a traceback, and so is each line for a console or a disk
    that refuses.
    """

    def exec_module(self, module: ModuleType) -> None:
        from ktt_bentoml_compat import streams

        super().exec_module(module)
        configuration = module.__dict__["get_logging_config_dict"]
        configure = module.__dict__["configure_logging"]
        logging.raiseExceptions = False

        @functools.wraps(configuration)
        def bounded(*arguments: Any, **options: Any) -> dict[str, Any]:
            found: dict[str, Any] = configuration(*arguments, **options)
            for handler in found["handlers"].values():
                if "maxBytes" in handler:
                    handler |= {"maxBytes": LOG_BYTES, "backupCount": 1}
            return found

        @functools.wraps(configure)
        def configured(*arguments: Any, **options: Any) -> None:
            streams.open_closed()  # before the first file that stays open
            reason = _refuses_logs()
            if reason:
                options |= {"file_logging_enabled": False, "base_log_dir": os.curdir}
            configure(*arguments, **options)
            if reason:
                logging.getLogger("bentoml").warning("No log files are written: %s.", reason)

        module.__dict__["get_logging_config_dict"] = bounded
        module.__dict__["configure_logging"] = configured


def _refuses_logs() -> OSError | None:
    """Why log files cannot be written into bentoml's folder, if they cannot."""
    from bentoml.configuration.containers import BentoMLContainer

    folder = Path(BentoMLContainer.logging_file_directory.get())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("active.log", "prediction.log", "feedback.log"):
            (folder / name).open("ab").close()
    except OSError as error:
        return error
    return None


class SteadyClockLoader(SourceFileLoader):
    """A module that measures how long requests wait: by a clock that nobody sets.

    As released, a clock that is set back while a request waits for its batch lets it wait for as
    long; one that is set forward makes a batch look hours long, and requests that come together
    are refused with 429 until fifty later ones have told otherwise.
    """

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        module.__dict__["time"] = SimpleNamespace(time=time.monotonic)


_LOADERS: dict[str, type[SourceFileLoader]] = {
    "bentoml.types": HashableHeadersLoader,
    "bentoml.utils.alg": SteadyClockLoader,
    "bentoml.utils.cloudpickle": CloudpickleLoader,
    "bentoml.utils.log": LogLoader,
    "bentoml.utils.usage_stats": UsageStatsLoader,
    "bentoml.marshal.dispatcher": SteadyClockLoader,
    "bentoml.marshal.utils": MessageLoader,
    "bentoml.marshal.marshal": ProxyLoader,
    "bentoml.server": ServersLoader,
    "bentoml.server.api_server": ApiServerLoader,
    "bentoml.server.gunicorn_config": GunicornConfigLoader,
    "bentoml.server.instruments": InstrumentsLoader,
}


def repaired_spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """The module's own spec with the repairing loader put in; None where it is not installed."""
    spec = PathFinder.find_spec(name, path)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        return spec
    spec.loader = _LOADERS.get(name, ProtoLoader)(name, spec.loader.path)
    return spec
