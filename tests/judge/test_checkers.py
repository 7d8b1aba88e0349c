"""Checker programs, numpy, and problem packages made here."""

import json
import zipfile

import pytest

from openmimo.errors import UserError
from openmimo.judge import (
    AssertTest,
    CallTest,
    Checker,
    Judge,
    Program,
    Rule,
    Status,
    StdioTest,
    packages,
)
from openmimo.judge.packages import read_package


@pytest.fixture(scope="module")
def judge():
    with Judge() as judge:
        yield judge


def statuses(judge, program, tests):
    return [verdict.status for verdict in judge.run(program, tests)]


TESTLIB = """
import sys
given, output, answer = (open(path).read() for path in sys.argv[1:4])
try: value = int(output)
except ValueError: print("no number"); sys.exit(2)
if given.startswith("broken"): sys.exit(3)
sys.exit(0 if value % int(answer) == 0 else 1)
"""
KATTIS = """
import sys
answer = open(sys.argv[2]).read()
with open(sys.argv[3] + "/judgemessage.txt", "a") as file: file.write("looked " + sys.argv[4])
sys.exit(42 if input() == answer else 43)
"""


def test_a_testlib_checker(judge):
    checker = Checker(Program(TESTLIB))
    tests = [StdioTest(text, "3", checker) for text in ("9", "10", "x", "broken 9")]
    program = "text = input(); print(text.split()[-1])"
    verdicts = judge.run(program, tests)
    found = [verdict.status for verdict in verdicts]
    assert found == [Status.OK, Status.WRONG, Status.WRONG, Status.JUDGE_ERROR]
    assert verdicts[2].detail == "no number"


def test_a_kattis_checker_and_its_messages(judge):
    checker = Checker(Program(KATTIS), "kattis", ("twice",))
    tests = [StdioTest("a", "a", checker), StdioTest("a", "b", checker)]
    verdicts = judge.run("print(input())", tests)
    assert [verdict.status for verdict in verdicts] == [Status.OK, Status.WRONG]
    assert verdicts[1].detail == "looked twice"


def test_a_cms_checker_gives_a_score(judge):
    source = "import sys\nprint(open(sys.argv[3]).read())\nprint('a message', file=sys.stderr)"
    tests = [StdioTest(text, "", Checker(Program(source), "cms")) for text in ("1.0", "0.5", "x")]
    found = statuses(judge, "print(input())", tests)
    assert found == [Status.OK, Status.WRONG, Status.JUDGE_ERROR]


def test_a_broken_checker_is_the_judges_fault_and_not_the_programs(judge):
    for source in ("syntax error", "import os; os.abort()", "1 / 0", "raise SystemExit(9)"):
        checker = Checker(Program(source), "kattis")
        assert statuses(judge, "print(1)", [StdioTest("", "1", checker)]) == [Status.JUDGE_ERROR]


def test_a_checker_that_raises_rejects_nothing(judge):
    # The exit status of an exception, 1, is testlib's for a wrong answer.
    for source in ("1 / 0", "raise MemoryError", "import absent_module"):
        checker = Checker(Program(source))
        assert statuses(judge, "print(1)", [StdioTest("", "1", checker)]) == [Status.JUDGE_ERROR]
    checker = Checker(Program("raise SystemExit(1)"))
    assert statuses(judge, "print(1)", [StdioTest("", "1", checker)]) == [Status.WRONG]


def test_a_checker_is_asked_only_about_programs_that_ended_well(judge):
    accept = Checker(Program("raise SystemExit(0)"))
    tests = [StdioTest("", "", accept)]
    assert statuses(judge, "print(1)", tests) == [Status.OK]
    assert statuses(judge, "1 / 0", tests) == [Status.CRASH]
    assert statuses(judge, "raise SystemExit(1)", tests) == [Status.CRASH]


def test_numpy_has_servers_of_its_own(judge):
    program = """
import numpy as np
def double(xs): return np.array(xs) * 2
def count(xs): return np.int64(len(xs))
"""
    tests = [
        CallTest("double", [[1, 2]], [2, 4]),
        CallTest("double", [[0.5]], [1.0]),
        CallTest("count", [[1, 2]], 2),
        AssertTest("import numpy as np\nassert np.allclose(double([0.1]), [0.2])"),
        AssertTest("assert double([1]).tolist() == [2] and count([]) == 0"),
    ]
    assert statuses(judge, program, tests) == [Status.OK] * 5
    assert statuses(judge, "def f(): import numpy\n", [CallTest("f", [], None)]) == [Status.OK]
    script = "import numpy as np; print(np.linalg.det(np.eye(int(input()))))"
    assert statuses(judge, script, [StdioTest("50", "1.0", Rule("floats"))]) == [Status.OK]


def kattis(folder, problem="", flags="", group=""):
    secret = folder / "data" / "secret" / group if group else folder / "data" / "secret"
    secret.mkdir(parents=True)
    (folder / "problem.yaml").write_text(problem or "name: x\n")
    (secret / "1.in").write_text("1\n")
    (secret / "1.ans").write_text("1.0 Yes\n")
    if flags or group:
        (secret / "testdata.yaml").write_text(f"output_validator_flags: {flags}\naccept_score: 7")
    return read_package(folder)


def test_kattis_flags(judge, tmp_path):
    plain = kattis(tmp_path / "a")
    assert statuses(judge, "print(1.0, 'YES')", plain.tests) == [Status.OK]
    assert statuses(judge, "print('1.00', 'Yes')", plain.tests) == [Status.WRONG]
    strict = kattis(tmp_path / "b", flags="case_sensitive float_tolerance 1e-2")
    assert statuses(judge, "print('1.005', 'Yes')", strict.tests) == [Status.OK]
    assert statuses(judge, "print('1.02', 'Yes')", strict.tests) == [Status.WRONG]
    assert statuses(judge, "print('1.0', 'YES')", strict.tests) == [Status.WRONG]
    spaces = kattis(tmp_path / "c", "validator_flags: space_change_sensitive")
    assert statuses(judge, "print(1.0, 'yes')", spaces.tests) == [Status.OK]
    assert statuses(judge, "print('1.0  yes')", spaces.tests) == [Status.WRONG]


def test_kattis_limits_and_groups(tmp_path):
    package = kattis(tmp_path, "limits: {memory: 64, time_limit: 3.5}", group="easy")
    assert (package.limits.cpu_seconds, package.limits.memory_mb) == (3.5, 64)
    assert [(group.name, group.score, group.tests) for group in package.groups] == [
        ("secret/easy", 7.0, (0,))
    ]
    assert package.test_names == ("secret/easy/1",)


def cms(folder, kind="Batch"):
    task = {"code": "t", "name": "T", "task_type": kind, "time_limit": 1.5,
            "memory_limit": 256 << 20}  # fmt: skip
    path = folder / "task.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("t/problem.json", json.dumps(task))
        archive.writestr("t/tests/0-01.in", "1")
        archive.writestr("t/tests/0-01.out", "1")
        archive.writestr("t/subtasks/00-all.json", '{"score": 100, "testcases": ["0-01"]}')
    return path


def test_a_cms_task(judge, tmp_path):
    package = read_package(cms(tmp_path))
    assert (package.limits.cpu_seconds, package.limits.memory_mb) == (1.5, 256)
    assert package.groups[0].score == 100
    program = package.program("solution.py", "print(input())")
    assert statuses(judge, program, package.tests) == [Status.OK]


def test_what_cannot_be_judged_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="interactive"):
        kattis(tmp_path / "guess", "type: interactive")
    with pytest.raises(UserError, match="interactive"):
        kattis(tmp_path / "old", "validation: custom interactive")
    with pytest.raises(UserError, match=r"t \(T\) is interactive"):
        read_package(cms(tmp_path, "Communication"))
    with pytest.raises(UserError, match="no problem package"):
        read_package(tmp_path)
    with pytest.raises(UserError, match="no YAML"):
        kattis(tmp_path / "bad", "a: [")
    with pytest.raises(UserError, match=r"x\.rs"):
        read_package(cms(tmp_path)).program("x.rs", "")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("problem.yaml", b"- a list"),
        ("problem.yaml", b"limits: {memory: lots}"),
        ("problem.yaml", b"\xff\xfe"),
        ("problem.yaml", b"name: x"),  # an input without its answer
        ("problem.json", b"{"),
        ("problem.json", b"{}"),
        ("task.zip", b"no archive"),
    ],
)
def test_a_damaged_package_is_a_mistake_that_is_named(tmp_path, file, content):
    (tmp_path / file).write_bytes(content)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.in").write_text("1")
    path = tmp_path / file if file.endswith(".zip") else tmp_path
    with pytest.raises(UserError, match="cannot be read"):
        read_package(path)


def test_an_archive_of_endless_zeros_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "_LARGEST_ZIP", 1 << 20)
    with zipfile.ZipFile(tmp_path / "task.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("task/problem.json", "{}")
        archive.writestr("task/tests/a.in", bytes(2 << 20))
    with pytest.raises(UserError, match="at most 1,048,576"):
        read_package(tmp_path / "task.zip")
