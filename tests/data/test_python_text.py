"""Cutting and cleaning lose nothing but what they say they lose."""

import ast
import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmimo.data import dedup, documents, harvest, python_text
from openmimo.data.python_text import (
    clean,
    clean_page,
    code_pieces,
    docstrings,
    may_have_docstrings,
    parse,
    split_text,
)

LICENCE = "# Copyright (c) 1999 Somebody.\n# All rights reserved.\n\n"


def test_docstrings_have_their_qualified_names() -> None:
    tree = parse('''"""Module."""
class A:
    """Class.

    Aligned:
        Indented.
    """
    def f(self):
        """Method."""
        def inner():
            """Not this one."""
    async def g(self):
        """Coroutine."""
def undocumented(): pass
add_newdoc("m", "array", """
    Array.
    """)
add_newdoc("m", "array", ("shape", """Shape."""))
add_newdoc("m", name, 1 + 2)
add_newdoc("m", "computed", text + "x")
''')
    assert tree is not None
    assert list(docstrings(tree)) == [
        ("", "Module."),
        ("A", "Class.\n\nAligned:\n    Indented."),
        ("A.f", "Method."),
        ("A.g", "Coroutine."),
        ("array", "Array."),
        ("array.shape", "Shape."),
    ]


@pytest.mark.parametrize("module", [dedup, documents, harvest, python_text, ast, inspect])
@pytest.mark.parametrize("limit", [300, 3000, 10**6])
def test_pieces_of_code_are_the_whole_module(module, limit: int) -> None:
    source = inspect.getsource(module)
    tree = ast.parse(source)
    pieces = list(code_pieces(source, tree, limit))
    assert "".join("".join(pieces).split()) == "".join(source.split())
    if limit >= 3000 and module not in (ast, inspect):  # those hold longer statements
        for piece in pieces:
            ast.parse(piece)


def test_a_comment_and_a_decorator_stay_with_their_function() -> None:
    source = "x = 1\n\n# About f.\n@wraps\n@more(\n    1\n)\ndef f():\n    return 2\n"
    pieces = list(code_pieces(source, ast.parse(source), 10))
    assert pieces[0] == "x = 1"
    assert pieces[1].startswith("# About f.\n@wraps")


def test_licences_go_and_code_stays() -> None:
    source = f'{LICENCE}import os\n\nprint("copyright")\n'
    assert list(code_pieces(source, ast.parse(source))) == ['import os\n\nprint("copyright")']
    assert clean("Useful.\n\nCopyright (c) 1999 Somebody.\n\nMore.") == "Useful.\n\nMore."


@given(st.text("ab \n", max_size=300), st.integers(1, 40))
def test_split_texts_keep_every_word_within_the_limit(text: str, limit: int) -> None:
    pieces = list(split_text(text, limit))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(len(piece) <= 4 * limit for piece in pieces)


@given(st.text())
def test_cleaning_is_idempotent(text: str) -> None:
    assert clean(clean(text)) == clean(text)


def test_cleaning_removes_addresses_and_control_characters() -> None:
    assert clean("a <f at 0x7f00AB>\x00\x1b  \r\nb\t|\n") == "a <f>\nb   |"


def test_pages_lose_their_noise() -> None:
    page = (
        "Python Library Documentation: module m\n\nNAME\n    m - About.\n\nMODULE REFERENCE\n"
        "    https://example.org\n\n    Boilerplate.\n\nDATA\n    secret = 1\n\nFUNCTIONS\n"
        "    f()\n\nFILE\n    /home/me/m.py\n\n"
    )
    assert clean_page(page) == (
        "Python Library Documentation: module m\n\nNAME\n    m - About.\n\nFUNCTIONS\n    f()"
    )


@given(st.sampled_from(['"""', "'''"]), st.integers(200, 300))
def test_the_cheap_test_never_misses_a_docstring(quotes: str, length: int) -> None:
    source = f"def f():\n    {quotes}{'x' * length}{quotes}\n"
    assert may_have_docstrings(source)


def test_bad_source_is_not_parsed() -> None:
    for source in ("def f(:", "x = \0", "(" * 10_000, "'\\d'; 1 +"):
        assert parse(source) is None
