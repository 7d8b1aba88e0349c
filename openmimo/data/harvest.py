"""Real text without a network: what a Python installation carries.

Language reference topics, pages that pydoc renders, and the sources and docstrings of the standard
library and of installed packages. Packages are found and parsed, never imported. The only modules
imported are `pydoc_data.topics`, which is one dictionary, and those of PAGES: parts of the standard
library that do nothing when imported.

The outcome depends on the installed versions, which the report names, and on nothing else of the
machine: files are visited in the order of a hash of their name, which also makes a small budget
take a spread over a package and not its first letters.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import pydoc
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path, PurePosixPath

from openmimo.data.documents import Document
from openmimo.data.python_text import (
    MIN_CHARACTERS,
    clean,
    clean_page,
    code_pieces,
    docstrings,
    may_have_docstrings,
    parse,
    split_text,
)
from openmimo.errors import UserError

BUDGETS = {"general": 4_000_000, "math": 4_000_000, "code": 4_000_000}
"""Characters to gather for each source by default."""

PAGES = {
    "math": ("cmath", "decimal", "fractions", "math", "numbers", "random", "statistics"),
    "general": (
        *("array", "binascii", "bisect", "builtins", "collections", "datetime", "functools"),
        *("heapq", "itertools", "operator", "re", "string", "struct", "time", "unicodedata"),
        *("zlib",),
    ),
}
"""Modules whose pydoc page is harvested: mostly those written in C, which no source documents."""

PACKAGES = {
    "math": ("mpmath", "networkx", "numpy", "sympy"),
    "general": ("jinja2", "pydantic", "rich", "torch"),
}
"""Installed packages whose docstrings are harvested."""

_SKIPPED_FOLDERS = frozenset(
    (
        *("__pycache__", "_vendor", "dist-packages", "encodings", "ensurepip", "idlelib"),
        *("lib-dynload", "lib2to3", "pydoc_data", "site-packages", "test", "tests", "testing"),
        *("turtledemo",),
    )
)
_SKIPPED_FILES = ("_sysconfigdata", "conftest", "sitecustomize", "test_", "usercustomize")
# Pure-Python twins of modules that have a page.
_TWINS = frozenset({"_pydecimal", "_pydatetime"})


@dataclass(frozen=True)
class OriginCount:
    """What one origin gave to one source.

    missing: the origin is not part of this installation.
    exhausted: it had no more to give; False where the budget was reached first.
    """

    origin: str
    source: str
    version: str
    documents: int
    characters: int
    missing: bool
    exhausted: bool


@dataclass(frozen=True)
class _Origin:
    """A place text comes from; `read` returns None where the installation lacks it."""

    name: str
    source: str
    read: Callable[[], Iterator[Document] | None]


def harvest(
    budgets: Mapping[str, int] | None = None,
) -> tuple[list[Document], list[OriginCount]]:
    """Gather documents until each source has its budget of characters.

    budgets: characters for "general", "math" and "code" (default BUDGETS); a source left out is
    not gathered. The last document of a source may exceed its budget. Documents have an empty
    domain and at least MIN_CHARACTERS characters. Within a source, the origin that has given the
    least goes next. Raises UserError for an unknown source, and for a source of which nothing
    was found.
    """
    budgets = BUDGETS if budgets is None else budgets
    if unknown := sorted(set(budgets) - set(BUDGETS)):
        raise UserError(
            f"nothing to harvest for source {unknown[0]!r}; known: {', '.join(BUDGETS)}"
        )
    documents: list[Document] = []
    counts: list[OriginCount] = []
    for source, budget in budgets.items():
        origins = [origin for origin in _origins() if origin.source == source]
        with _paused_collector():
            found, report = _take_turns(origins, budget)
        if budget > 0 and not found:
            looked = ", ".join(origin.name for origin in origins)
            raise UserError(
                f"this Python installation carries no {source} text (looked for {looked}); "
                "install sympy and numpy, or use a Python with its standard library on disk"
            )
        documents += found
        counts += report
    return documents, counts


@contextmanager
def _paused_collector() -> Iterator[None]:
    """Pause the cyclic garbage collector: walking half-built syntax trees costs it a quarter of
    the harvest's time, and they hold no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _take_turns(origins: list[_Origin], budget: int) -> tuple[list[Document], list[OriginCount]]:
    readers = {origin.name: origin.read() for origin in origins}
    open_readers = {name: reader for name, reader in readers.items() if reader is not None}
    given = dict.fromkeys(readers, (0, 0))
    found: list[Document] = []
    total = 0
    while open_readers and total < budget:
        name = min(open_readers, key=lambda n: given[n][1])
        document = next(open_readers[name], None)
        if document is None:
            del open_readers[name]
            continue
        found.append(document)
        total += len(document.text)
        given[name] = (given[name][0] + 1, given[name][1] + len(document.text))
    report = [
        OriginCount(
            origin=origin.name,
            source=origin.source,
            version=_version(origin.name),
            documents=given[origin.name][0],
            characters=given[origin.name][1],
            missing=readers[origin.name] is None,
            exhausted=origin.name not in open_readers,
        )
        for origin in origins
    ]
    return found, report


def _origins() -> list[_Origin]:
    library = Path(sysconfig.get_path("stdlib"))
    origins = [
        _Origin("python:topics", "general", topics),
        _Origin("python:docstrings", "general", partial(library_docstrings, library)),
        _Origin("python:sources", "code", partial(library_sources, library)),
    ]
    for source in PAGES:
        origins.append(_Origin("python:pydoc", source, partial(pages, source)))
        for package in PACKAGES[source]:
            origins.append(_Origin(package, source, partial(package_docstrings, package, source)))
    return origins


def topics() -> Iterator[Document] | None:
    """The language reference by topic, or None where `pydoc_data` is not installed."""
    try:
        texts: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        return None
    return (
        document
        for name in sorted(texts)
        for document in _documents(clean(texts[name]), "general", f"python:topics/{name}")
    )


def pages(source: str) -> Iterator[Document] | None:
    """The pydoc pages of the modules that PAGES lists for a source."""
    return (
        document
        for name in PAGES[source]
        for document in _documents(_render(name), source, f"python:pydoc/{name}")
    )


def _render(name: str) -> str:
    try:
        module = importlib.import_module(name)
    except ImportError:  # zlib and its like are optional parts of a build
        return ""
    return clean_page(pydoc.plain(pydoc.render_doc(module)))


def library_sources(folder: Path) -> Iterator[Document] | None:
    """The standard library's modules, cut into pieces of whole statements."""
    files = python_files(folder)
    return _source_documents(folder, files) if files else None


def _source_documents(folder: Path, files: list[PurePosixPath]) -> Iterator[Document]:
    for file in files:
        text = _read(folder / file)
        tree = parse(text)
        if tree is not None and tree.body:
            pieces = [piece for piece in code_pieces(text, tree) if len(piece) >= MIN_CHARACTERS]
            for number, piece in enumerate(pieces, start=1):
                mark = f"#{number}" if len(pieces) > 1 else ""
                yield Document(piece, "code", "", f"python:{file}{mark}")


def library_docstrings(folder: Path) -> Iterator[Document] | None:
    """The standard library's docstrings, without those of modules that have a page."""
    paged = _TWINS.union(*PAGES.values())
    files = [file for file in python_files(folder) if _module(file) not in paged]
    return _docstring_documents(folder, files, "python", "general") if files else None


def package_docstrings(package: str, source: str) -> Iterator[Document] | None:
    """An installed package's docstrings, or None where it is not installed."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a stand-in in sys.modules without a spec
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(next(iter(spec.submodule_search_locations)))
    files = [PurePosixPath(folder.name) / file for file in python_files(folder)]
    return _docstring_documents(folder.parent, files, package, source) if files else None


def _docstring_documents(
    folder: Path, files: list[PurePosixPath], package: str, source: str
) -> Iterator[Document]:
    for file in files:
        text = _read(folder / file)
        tree = parse(text) if may_have_docstrings(text) else None
        if tree is None:
            continue
        for name, docstring in docstrings(tree):
            if len(docstring) >= MIN_CHARACTERS:
                full = ".".join(part for part in (_module(file), name) if part)
                origin = f"{package}:{file}:{name}" if name else f"{package}:{file}"
                yield from _documents(f"{full}\n\n{docstring}", source, origin)


def _documents(text: str, source: str, origin: str) -> Iterator[Document]:
    """Documents of one text: none if it is short, several if it is long."""
    pieces = [piece for piece in split_text(text) if len(piece) >= MIN_CHARACTERS]
    for number, piece in enumerate(pieces, start=1):
        yield Document(piece, source, "", f"{origin}#{number}" if len(pieces) > 1 else origin)


def python_files(folder: Path) -> list[PurePosixPath]:
    """Python files below a folder, relative to it, in the order of a hash of their names.

    Tests, vendored copies, generated tables and files of the machine's owner are left out. Links
    to folders are not followed.
    """
    found: list[PurePosixPath] = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in _SKIPPED_FOLDERS]
        relative = PurePosixPath(Path(place).relative_to(folder).as_posix())
        found += [
            relative / name
            for name in files
            if name.endswith(".py") and not name.startswith(_SKIPPED_FILES)
        ]
    return sorted(found, key=lambda file: blake2b(str(file).encode(), digest_size=8).digest())


def _read(path: Path) -> str:
    """A file's text with Unix line ends; empty where it is not UTF-8 or cannot be read."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return ""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _module(file: PurePosixPath) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _version(origin: str) -> str:
    if origin.startswith("python:"):
        return platform.python_version()
    try:
        return importlib.metadata.version(origin)
    except importlib.metadata.PackageNotFoundError:
        return ""
