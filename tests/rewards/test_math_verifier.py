"""Math-Verify's workers: deadlines, deaths, hostile answers, and processes that outlive nobody."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from math_verify import parse, verify

from openmimo.judge.verdict import Status
from openmimo.rewards import MathVerifier, RawOptions, verify_math, verify_math_batch

from .test_math_decisions import ROWS

# The filter lets it pass, as the reference is as costly. Minutes for sympy.
TOWERS = ("9^{9^{8}}", "9^{9^{9}}")


def processes(parent=None):
    """The ids of all Math-Verify processes of `parent`, this process if None."""
    ids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        owner = str(os.getpid() if parent is None else parent).encode()
        if b"openmimo.rewards.math_worker" in arguments and owner in arguments and state != "Z":
            ids.append(int(folder.name))
    return ids


@pytest.fixture
def started():
    """A function: the ids of the Math-Verify processes that the test has started."""
    before = set(processes())
    return lambda: set(processes()) - before


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(seconds=20.0) as verifier:
        yield verifier


def test_a_response_or_a_bare_answer():
    assert verify_math(r"\frac{2}{4}", "0.5").score == 1
    assert verify_math(r"so \boxed{1+x}", "x+1").status is Status.OK
    assert verify_math(r"so \boxed{x}", "x+1").status is Status.WRONG
    assert verify_math(r"<think>\boxed{x}</think> x+1", "x+1").status is Status.UNPARSEABLE
    assert verify_math("", "x+1").status is Status.UNPARSEABLE
    assert verify_math(r"\frac{", "x+1").status is Status.UNPARSEABLE


@pytest.mark.parametrize("gold", ["", r"\frac{", "\x00"])
def test_a_reference_that_cannot_be_parsed_is_an_error_and_no_zero(gold):
    verdict = verify_math("1", gold)
    assert verdict.score is None
    assert verdict.status is Status.JUDGE_ERROR
    assert "reference" in verdict.detail


def test_batches_keep_their_order_and_async_code_can_wait(verifier):
    pairs = [(f"{i}+x", f"x+{i + i % 2}") for i in range(20)]
    assert [v.score for v in verify_math_batch(pairs)] == [1.0, 0.0] * 10

    async def wait():
        return await asyncio.gather(*[asyncio.wrap_future(verifier.submit(*p)) for p in pairs])

    assert [v.score for v in asyncio.run(wait())] == [1.0, 0.0] * 10


def test_from_many_threads_each_answer_is_worked_out_once(verifier):
    scored, cached = verifier.scored, verifier.cached
    with ThreadPoolExecutor(8) as threads:
        verdicts = list(threads.map(lambda i: verifier.submit(f"{i % 5}+y", "y+3"), range(200)))
    assert [v.result().correct for v in verdicts] == [i % 5 == 3 for i in range(200)]
    assert (verifier.scored - scored, verifier.cached - cached) == (5, 195)


def test_a_timeout_has_no_score_and_the_worker_goes_on(started):
    with MathVerifier(seconds=0.5) as verifier:
        assert verifier.submit("1+x", "x+1").result().score == 1
        before = started()
        verdict = verifier.submit(*TOWERS).result(timeout=60)
        assert (verdict.score, verdict.status) == (None, Status.TIMEOUT)
        assert verifier.submit("2+x", "x+2").result().score == 1
        assert len(before & started()) == 1  # a new child of the same process


def test_the_clock_starts_with_the_work_not_in_the_queue():
    with MathVerifier(seconds=1.5) as verifier:
        hog = verifier.submit(*TOWERS)
        queued = [verifier.submit(f"{i}+x", f"x+{i}") for i in range(5)]
        assert hog.result(timeout=60).status is Status.TIMEOUT
        assert [future.result(timeout=60).score for future in queued] == [1] * 5


def test_a_worker_that_stands_still_is_replaced(started):
    with MathVerifier(seconds=0.2) as verifier:
        verifier.submit("1+x", "x+1").result()
        stopped = started()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        verdict = verifier.submit("2+x", "x+2").result(timeout=60)
        assert (verdict.score, verdict.status) == (None, Status.TIMEOUT)
        verifier.submit("3+x", "x+3").result(timeout=60)
        assert not stopped & started()


HOSTILE = {
    "power": "9^{9^{9}}",
    "bare power": "9^9^9^9",
    "factorial": "(10^9)!",
    "factorials": "5!!!!!",
    "braces": "{" * 50_000 + "5" + "}" * 50_000,
    "open braces": "{" * 100_000,
    "parentheses": "(" * 200 + "5" + ")" * 200,
    "roots": r"\sqrt{1+" * 60 + "2" + "}" * 60,
    "digits": "7" * 100_000,
    "many digits": "7" * 299,
    "fractions": r"\frac" * 60,
    "nul": "5\x00",
    "nuls": "\x00" * 200,
    "surrogate": "\ud8005",
    "emoji": "😀" * 100,
    "combining": "5" + "\u0301" * 200,
    "right to left": "\u202e5",
    "newlines": "\n" * 100 + "6",
    "underscores": "_" * 200,
    "not a number": r"\frac{0}{0}",
}
SLOW = {
    "continued fraction": r"\frac{1}{1+" * 19 + "2" + "}" * 19,
    "nested sines": r"\sin(" * 19 + "1" + ")" * 19,
    "binomial": r"\binom{10^9}{10^8}",
    "product": r"x\prod_{i=1}^{10^6} i",
    "polynomial": "(x+y+z)^{300}",
    "exponentials": "e^{e^{e^{e^{e}}}}",
    "logarithm": r"\log(\log(10^{10^{10}}))",
}


def check_hostile(answers, seconds):
    with MathVerifier(seconds=seconds) as verifier:
        verifier.submit("1+x", "x+1").result()
        for name, answer in answers.items():
            clock = time.process_time()
            start = time.monotonic()
            for text in (answer, f"x + {answer}"):
                verdict = verifier.submit(text, "5").result(timeout=10 * seconds + 60)
                honest = {Status.WRONG, Status.UNPARSEABLE, Status.TIMEOUT}
                assert verdict.status in honest, (name, verdict)
                assert (verdict.score is None) == (verdict.status is Status.TIMEOUT)
            assert time.process_time() - clock < 1, f"{name}: busy in the caller's process"
            assert time.monotonic() - start < 20 * seconds + 5
        assert verifier.submit("3+x", "x+3").result().score == 1


def test_hostile_answers_are_wrong_or_unparseable_at_once():
    check_hostile(HOSTILE, seconds=5.0)


@pytest.mark.slow
def test_costly_answers_end_with_their_time():
    check_hostile(SLOW, seconds=1.0)


def kill_one(ids, generator):
    """kill -9 of any of the processes; whether there was one."""
    try:
        os.kill(generator.choice(sorted(ids)), signal.SIGKILL)
    except (IndexError, ProcessLookupError):
        return False
    return True


def test_a_death_is_not_the_answers_fault(started):
    with MathVerifier(seconds=1.0) as verifier:
        verifier.submit("1+x", "x+1").result()
        slow = verifier.submit(*TOWERS)
        time.sleep(0.2)
        for pid in started():
            os.kill(pid, signal.SIGKILL)
        assert slow.result(timeout=60).status is Status.TIMEOUT  # tried again on a new worker


def kill_during(started, answers, every):
    """The verdicts on `answers` sums, with a worker killed after each `every` of them."""
    generator = random.Random(0)
    verdicts = []

    def arrived(done):
        verdicts.append(done.result())
        if len(verdicts) % every == 0:
            kill_one(started(), generator)

    with MathVerifier(workers=2, seconds=20.0) as verifier:
        futures = []
        for i in range(answers):
            futures.append(verifier.submit(f"{i}+x", f"x+{i + i % 2}"))
            futures[-1].add_done_callback(arrived)
        results = [future.result(timeout=240) for future in futures]
    assert len(verdicts) == answers  # each exactly once
    return results


def check_killed(results):
    for i, verdict in enumerate(results):
        assert verdict.status is Status.JUDGE_ERROR or verdict.score == float(i % 2 == 0)
        assert (verdict.score is None) == (verdict.status is Status.JUDGE_ERROR)


def test_workers_are_killed_and_no_verdict_is_lost_or_false(started):
    results = kill_during(started, 60, every=20)
    check_killed(results)


@pytest.mark.slow
def test_workers_are_killed_during_2000_verifications(started):
    results = kill_during(started, 2000, every=50)
    check_killed(results)
    assert sum(verdict.score is None for verdict in results) <= 4, "a death costs a verdict"


def test_raw_mode_is_parse_and_verify():
    pairs = [(f"So \\boxed{{{answer}}}.", f"${gold}$") for _, gold, answer, _, _ in ROWS]
    raw = verify_math_batch(pairs, RawOptions())
    plain = [verify(parse(gold), parse(text)) for text, gold in pairs]
    assert [verdict.correct for verdict in raw] == plain
    assert 0 < sum(plain) < len(plain)


def test_raw_mode_has_math_verifys_settings():
    assert verify_math("$0.3333$", r"$\frac{1}{3}$", RawOptions()).score == 0
    assert verify_math("$0.3333$", r"$\frac{1}{3}$", RawOptions(float_rounding=4)).score == 1
    assert verify_math("$f(y)$", "$f(x)$", RawOptions(strict=False)).score == 1
    assert verify_math("the answer is 5", "$5$", RawOptions(expressions=False)).score == 0
    assert verify_math(r"$1<x<2$", "$(1,2)$", RawOptions(allow_set_relation_comp=True)).score == 1


_PARENT = """
import os, time
from openmimo.rewards import MathVerifier, verify_math
assert verify_math("1+x", "x+1").correct
if os.fork() == 0:  # the child has workers of its own
    assert verify_math("2+x", "x+2").correct
    os._exit(7)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
assert verify_math("3+x", "x+3").correct
MathVerifier(seconds=100.0).submit("9^{9^{8}}", "9^{9^{9}}")
print("busy", flush=True)
time.sleep(99)
"""


def test_a_fork_has_its_own_workers_and_a_busy_one_dies_with_its_parent():
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with parent:
        assert parent.stdout.readline() == "busy\n"
        deadline = time.monotonic() + 20
        while len(processes(parent.pid)) < 4:
            assert time.monotonic() < deadline, "no worker"
            time.sleep(0.05)
        parent.kill()
    deadline = time.monotonic() + 10
    while processes(parent.pid):
        assert time.monotonic() < deadline, "an orphan"
        time.sleep(0.01)
