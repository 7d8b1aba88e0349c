"""References that are of no use."""

import contextlib
import os
import signal
from pathlib import Path

import pytest

from openmimo.curation.golden import NOT_JUDGED, WINDOW, check_references
from openmimo.curation.journal import Journal
from openmimo.data.documents import read_records
from openmimo.judge import Judge
from openmimo.runs import Interrupt

from .conftest import code, math, split


@pytest.fixture
def journal(tmp_path):
    return tmp_path / "golden.jsonl"


def check(problems, path):
    with Journal(path, "reason", "detail") as journal:
        return list(check_references(problems, 2.0, journal, Interrupt()))


def numbered(*rows):
    return [
        {
            "domain": "code" if "tests" in row else "math", "source": "s", "origin": str(index),
            "id": str(index), **row,
        }
        for index, row in enumerate(rows)
    ]  # fmt: skip


def reasons(path, *rows):
    problems = numbered(*rows)
    kept, dropped = split(check(problems, path))
    found = {drop.problem["origin"]: drop.reason for drop in dropped}
    assert len(kept) + len(dropped) == len(rows)
    return [found.get(problem["origin"]) for problem in problems]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("\\frac{1}{2}", None),
        ("(1, 2]", None),
        ("\\text{Tuesday}", None),
        ("\\text{no real solution}", None),
        ("x \\in (-\\infty, 1) \\cup \\left[2, \\infty\\right)", None),
        ("\\frac{1", "answer that fits in no box"),
        ("1}{", "answer that fits in no box"),
        ("---", "unreadable answer"),
        ("?", "unreadable answer"),
        ("all of the numbers that are odd", "answer in prose"),
        ("1+" * 200 + "1", "answer in prose"),
    ],
)
def test_answers_must_stand_in_a_box_and_be_no_sentence(answer, reason, journal):
    assert reasons(journal, math("?", answer)) == [reason]


def test_golden_solutions_must_pass_all_tests_every_time(journal):
    assert reasons(
        journal,
        code("?", "def f(n):\n    return n", "assert f(1) == 1", "assert f(2) == 2"),
        code("?", "def f(n):\n    return 1", "assert f(1) == 1", "assert f(2) == 2"),
        code("?", "def f(n", "assert f(1) == 1"),
        code("?", None, "assert f(1) == 1"),
        {**code("?", "n = 1"), "tests": [{"odd": 1}]},
        {**code("?", "n = 1", "assert n == 1"), "levels": [[0], [1]]},
        {**code("?", "n = 1", "assert n == 1"), "levels": [[0]], "level_scores": [-1]},
        {**code("?", "print(int(input()) + 1)"), "tests": [{"stdin": "1\n", "stdout": "2\n"}]},
    ) == [
        None,
        "golden solution fails",
        "golden solution fails",
        None,
        "unusable tests",
        "unusable tests",
        "unusable tests",
        None,
    ]


def test_golden_solutions_that_pass_only_sometimes_are_noticed(journal):
    """Each fails by chance: with one run of each none would be found, with two every second one."""
    program = "import os\nx = os.urandom(1)[0] % 2"
    rows = [code(f"Question {n}", program + f" # {n}", "assert x == 1") for n in range(24)]
    found = reasons(journal, *rows)
    assert "golden solution passes only sometimes" in found


def golden(value: int):
    return code(f"Write f{value}.", f"f = {value}", f"assert f == {value}")


@pytest.fixture
def runs(monkeypatch):
    """The programs that are judged, without the comment that tells their runs apart."""
    programs = []
    submit = Judge.submit

    def spy(judge, program, *rest):
        programs.append(program.split("\n")[0])
        return submit(judge, program, *rest)

    monkeypatch.setattr(Judge, "submit", spy)
    return programs


def test_what_the_journal_knows_does_not_run_again(journal, runs):
    rows = [golden(1), code("Write g.", "g = 1", "assert g == 2"), math("What is 1?", "1")]
    first = check(numbered(*rows), journal)
    runs.clear()
    assert check(numbered(*rows), journal) == first
    assert not runs
    # In another order, with one new solution, and one that has a new test.
    changed = code("Write f1.", "f = 1", "assert f == 1", "assert f < 2")
    found = split(check(numbered(rows[1], golden(3), rows[0], changed), journal))
    assert sorted(set(runs)) == ["f = 1", "f = 3"]
    assert len(runs) == 4, "each twice"
    assert [drop.reason for drop in found[1]] == ["golden solution fails"]


def test_a_torn_line_costs_one_solution(journal, runs):
    rows = numbered(*map(golden, range(4)))
    first = check(rows, journal)
    journal.write_bytes(journal.read_bytes()[:-9])
    runs.clear()
    assert check(rows, journal) == first
    assert runs == ["f = 3", "f = 3"]
    assert len(list(read_records(journal, "key"))) == 4


def test_verdicts_are_written_while_others_are_out(journal):
    """Not at the end: a kill then loses those of a window at most, and no more are in memory."""
    rows = numbered(*map(golden, range(WINDOW + 3)))
    read = []
    with Journal(journal, "reason", "detail") as answers:
        stream = (read.append(row) or row for row in rows)
        sifted = check_references(stream, 2.0, answers, Interrupt())
        assert next(sifted) == rows[0]
        assert len(read) == WINDOW + 1
        assert len(list(read_records(journal, "key"))) == 1
        sifted.close()


class Failing(Judge):
    """A judge that loses its fork servers and gets no new one for `deaths` attempts, as on a
    machine without memory."""

    deaths = 0
    walls: list[float] = []

    def submit(self, program, tests, limits=None, **options):
        Failing.walls.append(limits.wall_seconds)
        if Failing.deaths:
            for worker in self._workers:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)
        return super().submit(program, tests, limits, **options)

    def _replace(self, slot, *attempts):
        if Failing.deaths:
            Failing.deaths -= 1
            raise OSError("no process for the program")
        super()._replace(slot, *attempts)


@pytest.mark.parametrize(("deaths", "undecided"), [(5, False), (99, True)])
def test_a_fault_of_the_judge_is_none_of_the_solution(
    deaths, undecided, journal: Path, monkeypatch
):
    """It runs once more with twice the time; then it is left to the next run, and counted."""
    monkeypatch.setattr("openmimo.curation.golden.open_judge", lambda _, workers: Failing(workers))
    monkeypatch.setattr("openmimo.curation.golden.RUNS", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    Failing.deaths, Failing.walls = deaths, []
    (problem,) = numbered(golden(1))
    (found,) = check([problem], journal)
    assert Failing.walls == [20.0, 40.0]
    if not undecided:
        assert found == problem
        return
    assert (found.reason, found.undecided) == (NOT_JUDGED, True)
    assert "no process" in found.detail
    Failing.deaths = 0
    assert check([problem], journal) == [problem], "nothing was written about it"
