"""The harvest is clean, the same everywhere, and honest about what is missing."""

import hashlib
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from openmimo.data import harvest as harvest_module
from openmimo.data.harvest import (
    harvest,
    library_docstrings,
    library_sources,
    package_docstrings,
    pages,
    python_files,
    topics,
)
from openmimo.data.python_text import MIN_CHARACTERS
from openmimo.errors import UserError

BUDGETS = {"general": 150_000, "math": 150_000, "code": 150_000}
DIGEST = """
import hashlib
from openmimo.data.harvest import harvest
documents, _ = harvest({budgets!r})
print(hashlib.sha256(repr(documents).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def harvested() -> tuple:
    return harvest(BUDGETS)


def test_budgets_are_met_and_counted(harvested: tuple) -> None:
    documents, counts = harvested
    for source, budget in BUDGETS.items():
        sizes = [len(d.text) for d in documents if d.source == source]
        assert budget <= sum(sizes) < budget + 4 * 8000
        assert sum(c.characters for c in counts if c.source == source) == sum(sizes)
        assert sum(c.documents for c in counts if c.source == source) == len(sizes)


def test_origins_share_a_budget_fairly(harvested: tuple) -> None:
    _, counts = harvested
    for source in BUDGETS:
        hungry = [c.characters for c in counts if c.source == source and not c.exhausted]
        assert max(hungry) - min(hungry) <= 4 * 8000


def test_documents_are_clean(harvested: tuple) -> None:
    documents, _ = harvested
    paths = [sysconfig.get_path("stdlib"), sys.prefix, str(Path.home())]
    for document in documents:
        assert len(document.text) >= MIN_CHARACTERS
        document.text.encode("utf-8")
        assert " at 0x" not in document.text or document.source == "code"
        assert not any(path in document.text for path in paths), document.origin
        assert "Permission is hereby granted" not in document.text, document.origin
        assert document.domain == ""


def test_another_process_harvests_the_same(harvested: tuple) -> None:
    """With other hash seeds: no order of a set or a memory address may leak in."""
    expected = hashlib.sha256(repr(harvested[0]).encode()).hexdigest()
    result = subprocess.run(
        [sys.executable, "-c", DIGEST.format(budgets=BUDGETS)],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stdout.strip() == expected


def test_packages_are_not_imported() -> None:
    code = (
        "import sys; from openmimo.data.harvest import harvest; "
        "harvest({'general': 60_000, 'math': 60_000}); "
        "print([m for m in ('sympy', 'mpmath', 'networkx', 'torch', 'rich', 'tkinter', 'turtle',"
        " 'antigravity', 'this') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert result.stdout.strip() == "[]"
    assert result.stderr == ""


def test_pages_say_nothing_of_this_machine() -> None:
    text = "\n".join(document.text for source in ("math", "general") for document in pages(source))
    assert "factorial" in text
    assert "MODULE REFERENCE" not in text
    assert "\nFILE\n" not in text
    assert "\b" not in text


def test_missing_parts_are_reported_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data", None)
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    monkeypatch.setitem(harvest_module.PACKAGES, "general", ("no_such_package_here",))
    assert topics() is None
    documents, counts = harvest({"general": 20_000})
    missing = {count.origin for count in counts if count.missing}
    assert missing == {"python:topics", "no_such_package_here"}
    assert all(count.documents == 0 for count in counts if count.missing)
    assert documents


def test_nothing_found_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"carries no code text \(looked for python:sources\)"):
        harvest({"code": 1000})


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to harvest for source 'maths'"):
        harvest({"maths": 1000})


LONG = "This sentence is repeated to make the text long enough to keep. " * 5


def write(folder: Path, name: str, text: str | bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


def test_an_odd_package_gives_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "oddpackage"
    write(package, "__init__.py", "raise SystemExit('imported!')\n")
    write(package, "good.py", f'def f():\n    """{LONG}"""\n\ndef g():\n    """Short."""\n')
    write(package, "broken.py", f'def f(:\n    """{LONG}"""\n')
    write(package, "latin.py", f'"""{LONG} caf'.encode() + b'\xe9"""\n')
    write(package, "null.py", f'"""{LONG}"""\0\n')
    write(package, "tests/test_f.py", f'"""{LONG}"""\n')
    write(package, "windows.py", f'"""{LONG}\r\n\r\n    Indented.\r\n"""\r\n')
    (package / "loop").symlink_to(package)
    monkeypatch.syspath_prepend(tmp_path)
    found = {d.origin: d.text for d in package_docstrings("oddpackage", "math") or ()}
    assert set(found) == {
        "oddpackage:oddpackage/good.py:f",
        "oddpackage:oddpackage/windows.py",
    }
    assert found["oddpackage:oddpackage/good.py:f"].startswith("oddpackage.good.f\n\nThis")
    assert "\r" not in found["oddpackage:oddpackage/windows.py"]
    assert "oddpackage" not in sys.modules


def test_the_order_of_files_is_that_of_their_names(tmp_path: Path) -> None:
    names = [f"m{i}.py" for i in range(30)]
    for folder, order in (("a", names), ("b", names[::-1])):
        for name in order:
            write(tmp_path / folder, name, "x = 1\n")
    listed = [str(file) for file in python_files(tmp_path / "a")]
    assert listed == [str(file) for file in python_files(tmp_path / "b")]
    assert sorted(listed) == sorted(names)
    assert listed != sorted(names)


def test_the_library_gives_sources_and_docstrings() -> None:
    library = Path(sysconfig.get_path("stdlib"))
    sources, docstrings = library_sources(library), library_docstrings(library)
    assert sources is not None
    assert docstrings is not None
    assert next(sources).source == "code"
    assert next(docstrings).source == "general"
