"""The three repairs, each a loader that stands in for the module's own.

The files of bentoml stay as they were installed.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType


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


def repaired_spec(name: str, path: Sequence[str] | None) -> ModuleSpec | None:
    """The module's own spec with the repairing loader put in; None where it is not installed."""
    spec = PathFinder.find_spec(name, path)
    if spec is None or not isinstance(spec.loader, SourceFileLoader):
        return spec
    loaders: dict[str, type[SourceFileLoader]] = {
        "bentoml.types": HashableHeadersLoader,
        "bentoml.utils.cloudpickle": CloudpickleLoader,
    }
    spec.loader = loaders.get(name, ProtoLoader)(name, spec.loader.path)
    return spec
