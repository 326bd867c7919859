"""Hashes of the code that results depend on: a function's or class's module, and all package modules that it imports."""

import ast
import functools
import hashlib
import importlib.util
import inspect
import textwrap
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

PACKAGE = __name__.partition(".")[0]
# Modules under `paperlib.runs` store results and compute none, except those in COMPUTES; their code is not hashed.
BOOKS = f"{PACKAGE}.runs."
COMPUTES = {f"{BOOKS}distributed"}


@functools.cache
def code_of(value: Any) -> str:
    """Return SHA-256 of the code of a function, a class, or a module by name, without comments, docstrings and layout.

    For this package, the hash covers the whole module and the modules that it imports from, directly or indirectly. For
    others it covers the function or class alone. It is empty if there is no source file.
    """
    module = value if isinstance(value, str) else value.__module__
    if module.partition(".")[0] == PACKAGE:
        found = [(name, _digest(name)) for name in sorted(_reached(module))]
        return hashlib.sha256(repr(found).encode()).hexdigest()
    try:
        tree = _plain(textwrap.dedent(inspect.getsource(value)))
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _reached(module: str) -> list[str]:
    found = [module]
    for one in found:
        found += [other for other in dict.fromkeys(_imported(one)) if other not in found]
    return found


def _imported(module: str) -> Iterator[str]:
    """Yield the package's modules that a module imports from, without those under BOOKS."""
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == PACKAGE:
            for name in node.names:
                origin = _origin(node.module, name.name)
                ours = origin.partition(".")[0] == PACKAGE
                books = origin == PACKAGE or origin.startswith(BOOKS)  # the package itself defines the version alone
                if ours and (origin in COMPUTES or not books):
                    yield origin


@functools.cache
def _origin(module: str, name: str) -> str:
    """Return the module that defines a name imported from `module`, since packages re-export names."""
    if _spec(module).submodule_search_locations is None:  # not a package
        return module
    for node in _tree(module).body:
        origin = str(node.module) if isinstance(node, ast.ImportFrom) else module
        if isinstance(node, ast.ImportFrom) and origin != module and name in {one.name for one in node.names}:
            return _origin(origin, name)
    within = f"{module}.{name}"
    return within if importlib.util.find_spec(within) else module


@functools.cache
def _digest(module: str) -> str:
    return hashlib.sha256(ast.dump(_tree(module)).encode()).hexdigest()


@functools.cache
def _tree(module: str) -> ast.Module:
    return _plain(Path(str(_spec(module).origin)).read_bytes())


@functools.cache
def _spec(module: str) -> ModuleSpec:
    if found := importlib.util.find_spec(module):
        return found
    raise ModuleNotFoundError(module)


def _plain(source: str | bytes) -> ast.Module:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return tree
