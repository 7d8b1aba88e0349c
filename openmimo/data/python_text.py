"""Turn Python source text into readable documents: docstrings, pieces of code, clean pages.

Everything works on strings by parsing; nothing is imported or run.
"""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from collections.abc import Iterator

MIN_CHARACTERS = 200
MAX_CHARACTERS = 8000
"""Longer texts are cut into pieces of at most this many characters, where a blank line allows."""

# Searched in lower-case text. Plain substrings: a regular expression took a third of the harvest.
_LICENCE = (
    *("copyright", "©", "all rights reserved", "permission is hereby granted", "spdx-license"),
    *("redistribution and use", "licensed under", "licensed to", "without warranty"),
    *("provided that the above", "see the license", "license:", "licence:"),
)
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ufeff]")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
# Sections of a pydoc page that hold the machine's paths, values of the running process or the
# same words on every page.
_PAGE_NOISE = ("MODULE REFERENCE", "FILE", "DATA", "VERSION", "AUTHOR", "CREDITS")


def parse(source: str) -> ast.Module | None:
    """Parse a module, or return None for a text that is not valid Python of this version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of invalid escapes in old code
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def may_have_docstrings(source: str) -> bool:
    """Whether a module may hold a docstring of MIN_CHARACTERS: far cheaper than parsing it."""
    return any(
        len(part) >= MIN_CHARACTERS
        for quotes in ('"""', "'''")
        for part in source.split(quotes)[1:-1]
    )


def docstrings(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, clean docstring) in source order; "" names the module.

    Functions inside functions are left out. `add_newdoc(module, name, text)` calls, with which
    NumPy documents what it wrote in C, count as docstrings of `name`.
    """
    yield from _docstrings_of(tree, "")
    for call in _newdoc_calls(tree):
        named = _literal(call.args[1])
        text = _literal(call.args[2])
        if isinstance(text, tuple) and len(text) == 2:  # (attribute, its docstring)
            named, text = f"{named}.{text[0]}", text[1]
        if isinstance(named, str) and isinstance(text, str):
            yield named, clean(inspect.cleandoc(text))


def _docstrings_of(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str
) -> Iterator[tuple[str, str]]:
    if text := ast.get_docstring(node):
        yield name, clean(text)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings_of(child, f"{name}.{child.name}" if name else child.name)


def _newdoc_calls(tree: ast.Module) -> Iterator[ast.Call]:
    for statement in tree.body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
            call = statement.value
            named = isinstance(call.func, ast.Name) and call.func.id == "add_newdoc"
            if named and len(call.args) >= 3:
                yield call


def _literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return None


def code_pieces(source: str, tree: ast.Module, limit: int = MAX_CHARACTERS) -> Iterator[str]:
    """Cut a module into pieces of whole top-level statements, each of at most `limit` characters.

    A statement longer than that is cut at blank lines. Licence comments are removed.
    """
    lines = source.split("\n")
    starts = [0]
    for node in tree.body[1:]:
        decorators = getattr(node, "decorator_list", [])
        line = min(part.lineno for part in [node, *decorators]) - 1
        while line > starts[-1] and lines[line - 1].startswith("#"):
            line -= 1  # a comment belongs to the statement below it
        if line > starts[-1]:
            starts.append(line)
    ends = [*starts[1:], len(lines)]
    statements = ("\n".join(lines[a:b]) for a, b in zip(starts, ends, strict=True))
    for piece in _pack(statements, "\n", limit):
        kept = _without_licence(piece, only_comments=True)
        yield from split_text(kept.strip("\n"), limit)


def split_text(text: str, limit: int = MAX_CHARACTERS) -> Iterator[str]:
    """Cut a text at blank lines into pieces of at most `limit` characters.

    A paragraph longer than that stays whole up to 4 * limit, then is cut anywhere.
    """
    if len(text) <= limit:
        yield text
        return
    for piece in _pack(re.split(r"\n[ \t]*\n", text), "\n\n", limit):
        for start in range(0, len(piece), 4 * limit):
            yield piece[start : start + 4 * limit]


def _pack(parts: Iterator[str] | list[str], glue: str, limit: int) -> Iterator[str]:
    """Join neighbouring parts while the result stays within the limit."""
    pending: list[str] = []
    size = 0
    for part in parts:
        if pending and size + len(part) > limit:
            yield glue.join(pending)
            pending, size = [], 0
        pending.append(part)
        size += len(part) + len(glue)
    if pending:
        yield glue.join(pending)


def clean(text: str) -> str:
    """Strip trailing white space, control characters, memory addresses and licence paragraphs."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)
    text = "\n".join(line.rstrip() for line in _CONTROL.sub("", text).split("\n"))
    text = _ADDRESS.sub("", text)
    return _without_licence(text, only_comments=False).strip("\n")


def _without_licence(text: str, only_comments: bool) -> str:
    """Drop paragraphs with the phrases of licences; in code, only those that are all comment."""
    if not _has_licence(text):
        return text
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        paragraph
        for paragraph in paragraphs
        if not _has_licence(paragraph) or (only_comments and not _is_comment(paragraph))
    )


def _has_licence(text: str) -> bool:
    lower = text.lower()
    return any(phrase in lower for phrase in _LICENCE)


def _is_comment(paragraph: str) -> bool:
    return all(line.lstrip().startswith("#") or not line.strip() for line in paragraph.split("\n"))


def clean_page(page: str) -> str:
    """Clean a page that pydoc rendered, without the sections that say nothing about the module."""
    sections = re.split(r"\n(?=[A-Z])", page)  # section titles alone start a line
    kept = [s for s in sections if s.split("\n", 1)[0].strip() not in _PAGE_NOISE]
    return clean("\n".join(kept))
