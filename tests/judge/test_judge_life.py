"""Deaths of servers and judges, hosts without a sandbox: every solution gets one verdict."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openmimo.errors import UserError
from openmimo.judge import Judge, Limits, Status

from .calls import run, submit


def test_a_dead_server_is_replaced_and_nothing_is_lost():
    with Judge() as judge:
        pid = judge._workers[0].pid
        idle = len(_descendants(pid))
        slow = submit(judge, "import time\ndef f(): time.sleep(1)", [[]], [None])
        while len(_descendants(pid)) == idle:
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        assert slow.result(timeout=30).passed == (True,)
        os.kill(judge._workers[0].pid, signal.SIGKILL)  # while idle
        while judge._workers[0].alive():
            time.sleep(0.01)
        assert run(judge, "def f(): return 1", [[]], [1]).passed == (True,)


def test_whoever_kills_workers_may_kill_their_successors_before_they_are_ready():
    with Judge() as judge:
        pids = [judge._workers[0].pid]
        os.kill(pids[0], signal.SIGKILL)
        while judge._workers[0].alive():
            time.sleep(0.01)
        future = submit(judge, "def f(): return 1", [[]], [1])
        while len(pids) < 6:
            if (pid := judge._workers[0].pid) not in pids:
                os.kill(pid, signal.SIGKILL)
                pids.append(pid)
            time.sleep(0.001)
        assert future.result(timeout=60).passed == (True,)
        assert judge.stats().restarts == 6


def test_a_server_that_dies_five_times_is_a_judge_error():
    with Judge() as judge:
        slow = submit(judge, "import time\ndef f(): time.sleep(3)", [[]], [None])
        killed = set()
        while not slow.done():
            pid = judge._workers[0].pid
            if pid not in killed and len(_descendants(pid)) > 1:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            time.sleep(0.01)
        assert len(killed) == 5
        assert slow.result().judge_failed
        assert run(judge, "def f(): return 1", [[]], [1]).passed == (True,)


def test_close_does_not_wait_for_a_long_run():
    judge = Judge(limits=Limits(wall_seconds=100.0))
    idle = len(_descendants(judge._workers[0].pid))
    programs = [f"import time\ndef f(): time.sleep({seconds})" for seconds in (90, 91)]
    running, waiting = [submit(judge, program, [[]], [None]) for program in programs]
    while len(_descendants(judge._workers[0].pid)) == idle:
        time.sleep(0.01)
    start = time.monotonic()
    judge.close()
    assert time.monotonic() - start < 5
    assert running.result(timeout=0).judge_failed
    assert waiting.result(timeout=0).judge_failed
    with pytest.raises(UserError, match="closed"):
        submit(judge, programs[0], [[]], [None])


def test_unsafe_judges_without_the_sandbox_and_says_so():
    with Judge(limits=Limits(cpu_seconds=0.2), unsafe=True) as judge:
        verdict = run(judge, "import os\ndef f(): return os.path.exists('/')", [[]], [True])
        assert verdict.passed == (True,)
        assert verdict.unsafe
        assert run(judge, "while True: pass", [[]], [1]).tests[0].status is Status.TIMEOUT


# Forbids some system calls with a filter of its own, as a container may, then starts a judge.
_HANDICAPPED = """
import ctypes, os, struct, sys
from openmimo.errors import UserError
from openmimo.judge import CallTest, Judge
from openmimo.judge.sandbox.seccomp import Filter
x86 = os.uname().machine == "x86_64"
op = lambda code, k, t=0, f=0: struct.pack("=HBBI", code, t, f, k)
program = op(0x20, 0)
if sys.argv[1] == "seccomp":  # prctl(PR_SET_SECCOMP): once for this filter, never again
    program += op(0x15, 157 if x86 else 167, 0, 3)
    program += op(0x20, 16) + op(0x15, 22, 0, 1) + op(6, 0x50000 | 22)
else:
    numbers = (444, 445, 446) if sys.argv[1] == "landlock" else (272 if x86 else 97,)
    program += b"".join(op(0x15, number, 0, 1) + op(6, 0x50000 | 38) for number in numbers)
program += op(6, 0x7FFF0000)
ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # no_new_privs, without which nobody may install filters
Filter(program).install()
for unsafe in (False, True):
    try:
        with Judge(unsafe=unsafe) as judge:
            print(*judge.run("def f(): return 1", [CallTest("f", [], 1)]))
    except UserError as error:
        print("refused:", error)
"""


def handicapped(missing):
    output = subprocess.run(
        [sys.executable, "-c", _HANDICAPPED, missing],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert output.stdout.count("\n") == 2, output.stderr
    return output.stdout.splitlines()


@pytest.mark.parametrize("missing", ["landlock", "seccomp"])
def test_refuses_to_run_where_the_sandbox_cannot_be_installed(missing):
    safe, unsafe = handicapped(missing)
    assert safe.startswith("refused: judge: ")
    assert missing in safe
    assert "--unsafe-local" in safe
    assert "unsafe=True" in unsafe


def test_works_where_namespaces_are_forbidden():
    safe, _ = handicapped("namespaces")
    assert safe.startswith("Verdict(status=<Status.OK")
    assert "unsafe=False" in safe


@pytest.mark.slow
def test_every_solution_gets_one_verdict_while_servers_are_killed():
    programs = [f"def f(x): return x + 1  # {number}" for number in range(600)]
    with Judge(workers=2) as judge:
        futures = [submit(judge, program, [[1], [2]], [2, 3]) for program in programs]
        killed = set()
        while not all(future.done() for future in futures):
            pid = judge._workers[len(killed) % 2].pid
            if pid not in killed and len(killed) < 12:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            time.sleep(0.3)
        verdicts = [future.result(timeout=60) for future in futures]
    failed = sum(verdict.judge_failed for verdict in verdicts)
    assert len(killed) > 2
    assert failed <= len(killed) // 2  # one whose second server was killed, too
    assert sum(verdict.passed == (True, True) for verdict in verdicts) == 600 - failed


_ORPHANS = """
import time
from openmimo.judge import CallTest, Judge, Limits
judge = Judge(limits=Limits(wall_seconds=100.0))
judge.submit("import time\\ndef f(): time.sleep(99)", [CallTest("f", [], 1)])
print(judge._workers[0].pid, flush=True)
time.sleep(99)
"""


def test_no_process_outlives_a_killed_parent():
    parent = subprocess.Popen(
        [sys.executable, "-c", _ORPHANS],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with parent:
        server = int(parent.stdout.readline())
        deadline = time.monotonic() + 20
        while len(children := _descendants(server)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        parent.kill()
    while any(_running(pid) for pid in (server, *children)):
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.01)


def _descendants(pid):
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    children = [int(child) for child in text.split()]
    return children + [below for child in children for below in _descendants(child)]


def _running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
