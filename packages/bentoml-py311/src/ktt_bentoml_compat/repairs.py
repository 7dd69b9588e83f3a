"""Repairs and precautions, each a loader that stands in for the module's own.

The files of bentoml stay as they were installed.
"""

from __future__ import annotations

import ast
import functools
import importlib
import io
import os
import pickle
import sys
import warnings
from collections.abc import Awaitable, Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

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
    """`bentoml.marshal.marshal`, which answers 500 where the client is at fault.

    A body over `max_request_size` gets its 413, a header that is not UTF-8 a 400.
    """

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        # the class that the metrics are wrapped around, so that they count the right status
        service = module.__dict__["MarshalService"].__mro__[1]
        service.request_dispatcher = _with_client_errors(service.request_dispatcher)


def _with_client_errors(
    dispatch: Callable[[Any, Any], Awaitable[Any]],
) -> Callable[[Any, Any], Awaitable[Any]]:
    @functools.wraps(dispatch)
    async def request_dispatcher(self: Any, request: Any) -> Any:
        from aiohttp import web

        try:
            return await dispatch(self, request)
        except web.HTTPException as refusal:
            return web.Response(status=refusal.status, text=refusal.text)
        except web.RequestPayloadError:
            return web.Response(status=400, text="The body is not encoded as its headers say.")
        except UnicodeDecodeError:
            return web.Response(status=400, text="The request's headers are not UTF-8.")

    return request_dispatcher


class GunicornConfigLoader(SourceFileLoader):
    """`bentoml.server.gunicorn_config`: no control socket.

    Newer gunicorns put one into the home folder, and a bundle's two servers would fight over it.
    """

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        module.__dict__["control_socket_disable"] = True


_LOADERS: dict[str, type[SourceFileLoader]] = {
    "bentoml.types": HashableHeadersLoader,
    "bentoml.utils.cloudpickle": CloudpickleLoader,
    "bentoml.utils.usage_stats": UsageStatsLoader,
    "bentoml.marshal.utils": MessageLoader,
    "bentoml.marshal.marshal": ProxyLoader,
    "bentoml.server.gunicorn_config": GunicornConfigLoader,
}


def repaired_spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """The module's own spec with the repairing loader put in; None where it is not installed."""
    spec = PathFinder.find_spec(name, path)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        return spec
    spec.loader = _LOADERS.get(name, ProtoLoader)(name, spec.loader.path)
    return spec
