"""`mimo judge`, and the tests' files that it reads."""

import json
import os

import pytest

from openmimo.cli import main
from openmimo.errors import UserError
from openmimo.judge.suites import read_suite


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "add.py").write_text("print(sum(map(int, input().split())))")
    tests = tmp_path / "tests"
    tests.mkdir()
    for name, stdin, output in (("a", "1 2", "3"), ("b", "5 5", "10")):
        (tests / f"{name}.in").write_text(stdin)
        (tests / f"{name}.out").write_text(output)
    return tmp_path


def run(capsys, *arguments):
    try:
        status = main(["judge", *map(str, arguments)])
    except SystemExit as stop:
        status = stop.code
    return status, *capsys.readouterr()


def test_a_folder_of_inputs_and_outputs(folder, capsys):
    status, out, _ = run(capsys, folder / "add.py", folder / "tests")
    assert status == 0
    assert out.splitlines()[-1] == "tests: 2 of 2 tests"
    assert out.startswith("a: ok, ")


def test_a_failure_is_exit_status_1_and_is_explained(folder, capsys):
    (folder / "tests" / "b.out").write_text("11")
    status, out, _ = run(capsys, folder / "add.py", folder / "tests", "--stop")
    assert status == 1
    assert "b: wrong" in out
    assert "token 1 is '10', not '11'" in out


def test_verdicts_as_json(folder, capsys):
    status, out, _ = run(capsys, folder / "add.py", folder / "tests" / "a.in", "--json", "-")
    (suite,) = json.loads(out)
    (test,) = suite["tests"]
    assert (status, test["status"], test["name"], test["unsafe"]) == (0, "ok", "a", False)
    assert 0 < test["cpu_seconds"] < 1


def test_records_of_every_kind(folder, capsys):
    (folder / "f.py").write_text("def f(x): return x / 3\nif __name__ == '__main__': print(1.001)")
    records = [
        {"args": [1], "expected": 0.333333333, "name": "call"},
        {"code": "assert f(3) == 1", "name": "assertion"},
        {"stdin": "", "stdout": "1.0", "rule": {"name": "floats", "absolute": 0.01}},
    ]
    (folder / "t.json").write_text(json.dumps({"tests": records}))
    (folder / "t.jsonl").write_text("\n".join(map(json.dumps, records)))
    for file in ("t.json", "t.jsonl"):
        status, out, _ = run(capsys, folder / "f.py", folder / file, "--entry-point", "f")
        assert status == 0, out
        assert "call: ok" in out


def test_rule_tolerance_and_limits(folder, capsys):
    (folder / "tests" / "a.out").write_text("3.05")
    common = (folder / "add.py", folder / "tests" / "a.in")
    assert run(capsys, *common)[0] == 1
    assert run(capsys, *common, "--tolerance", "0.1")[0] == 0
    (folder / "loop.py").write_text("while True: pass")
    status, out, _ = run(capsys, folder / "loop.py", folder / "tests", "--cpu", "0.1", "--stop")
    assert status == 1
    assert "a: timeout" in out
    assert "b: skipped" in out


def test_unsafe_verdicts_are_marked(folder, capsys):
    status, out, _ = run(capsys, folder / "add.py", folder / "tests", "--unsafe-local")
    assert status == 0
    assert out.startswith("UNSAFE a: ok")


def test_a_programs_words_cannot_pass_for_the_judges(folder, capsys):
    (folder / "liar.py").write_text("raise ValueError('\\x1b[2J\\ntests: 2 of 2 tests')")
    status, out, _ = run(capsys, folder / "liar.py", folder / "tests")
    lines = out.splitlines()
    assert (status, lines[-1], lines.count("tests: 2 of 2 tests")) == (1, "tests: 0 of 2 tests", 0)
    assert "\x1b" not in out


def test_mistakes_are_one_line(folder, capsys):
    (folder / "x.rs").write_text("")
    (folder / "empty").mkdir()
    (folder / "lone.in").write_text("")
    (folder / "bad.json").write_text("{")
    (folder / "none.json").write_text("[]")
    (folder / "other.json").write_text('[{"stdin": ""}]')
    (folder / "checked.json").write_text('[{"stdin": "", "stdout": "", "checker": {}}]')
    (folder / "names.json").write_text('[{"code": "", "names": "f"}]')
    add, tests = folder / "add.py", folder / "tests"
    for arguments, words in (
        ((folder / "no.py", tests), "no program"),
        ((add, folder / "no"), "no tests at"),
        ((folder / "x.rs", tests), "must be .py"),
        ((add, folder / "empty"), "no problem package"),
        ((add, folder / "lone.in"), "no answer beside it"),
        ((add, folder / "bad.json"), "no JSON"),
        ((add, folder / "none.json"), "no tests in"),
        ((add, folder / "other.json"), "record 1"),
        ((add, tests, "--rule", "lines", "--tolerance", "1"), "rule floats"),
        ((add, tests, "--cpu", "0"), "positive"),
        ((add, tests, "--cpu", "nan"), "cpu_seconds is nan"),
        ((add, tests, "--wall", "inf"), "at most 3600"),
        ((add, tests, "--memory", "99999999999999"), "memory_mb"),
        ((add, tests, "--output", "99999999999999"), "output_bytes"),
        ((add, tests, "--json", folder / "no" / "file"), "cannot write the verdicts"),
        ((add, folder / "checked.json"), "record 1: a test's checker"),
        ((add, folder / "names.json"), "list of texts"),
        ((add, tests, "--workers", "0"), "positive"),
    ):
        status, _, err = run(capsys, *arguments)
        assert (status, err.count("\n")) == (2, 1), err
        assert words in err


def test_names_are_those_of_the_files(folder):
    suite = read_suite(folder / "tests")
    assert suite.test_names == ("a", "b")
    with pytest.raises(UserError, match="no tests at"):
        read_suite(folder / "nothing")
    os.rename(folder / "tests" / "a.out", folder / "tests" / "a.ans")
    assert read_suite(folder / "tests" / "a.in").test_names == ("a",)
