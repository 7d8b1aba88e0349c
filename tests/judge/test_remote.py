"""RemoteJudge: the verdicts of a judge in process, whatever happens to the services."""

import collections
import concurrent.futures
import contextlib
import http.server
import json
import signal
import socket
import threading
import time

import pytest

from openmimo.cli import main
from openmimo.errors import UserError
from openmimo.judge import (
    AssertTest,
    CallTest,
    Checker,
    Judge,
    Limits,
    Program,
    Rule,
    Status,
    StdioTest,
)
from openmimo.judge.connect import open_judge
from openmimo.judge.service.client import RemoteJudge
from openmimo.rewards.grading import Grading
from openmimo.rewards.pool import RewardPool

CHECKER = """
import sys
given, output, answer = (open(path, "rb").read() for path in sys.argv[1:4])
sys.exit(0 if sorted(output) == sorted(answer) else 1)
"""
ECHO = "import sys\nsys.stdout.buffer.write(sys.stdin.buffer.read())"
BYTES = bytes(range(256))
TIMES = [StdioTest(f"{n}\n", f"{2 * n}\n") for n in range(3)]
CALLS = [CallTest("f", [x], x) for x in (1, 2.5, "a\ud800", [1, [None]], {"k": True})]
ZOO = {
    "right": ("print(2 * int(input()))", TIMES, {}),
    "wrong": ("print(4)", TIMES, {}),
    "stop": ("print(4)", TIMES, {"order": [2, 1, 0], "stop_at_failure": True}),
    "crash": ("exit(3)", TIMES, {}),
    "compile": ("print(", TIMES, {}),
    "loop": ("while 1: pass", TIMES, {"limits": Limits(cpu_seconds=0.2, max_timeouts=1)}),
    "memory": ("x = 'a' * 10**9", TIMES, {"limits": Limits(memory_mb=64)}),
    "output": ("print('a' * 999)", TIMES, {"limits": Limits(output_bytes=100)}),
    "bytes": (ECHO, [StdioTest(BYTES, BYTES, Rule("exact")), StdioTest(BYTES, b"\xff")], {}),
    "surrogates": (ECHO, [StdioTest("a\udcff", b"a\xff", Rule("exact"))], {}),
    "surrogate in the source": ("print(ascii('\udc80'))", [StdioTest("", "'\\udc80'")], {}),
    "call": ("def f(x): return x", CALLS, {}),
    "tuple": ("def f(*x): return x", [CallTest("f", ((1, 2), 3), [[1, 2], 3])], {}),
    "tolerance": ("def f(): return 1.01", [CallTest("f", [], 1.0, Rule("floats", 0.1))], {}),
    "unordered": ("print('b\\na')", [StdioTest("", "a\nb", Rule("unordered"))], {}),
    "missing": ("def g(): pass", [CallTest("f", [], 1)], {}),
    "assert": (
        "def f(x): return x + k(1)\ndef k(x): return x",
        [AssertTest("assert f(n) == 5", "n = 4", ("f",)), AssertTest("assert f(1) == 1")],
        {},
    ),
    "checker": (ECHO, [StdioTest("ab", "ba", Checker(Program(CHECKER))),
                       StdioTest("ab", "b", Checker(Program(CHECKER)))], {}),
    "broken checker": (ECHO, [StdioTest("ab", "ba", Checker(Program("exit(9)")))], {}),
    "unicode": ("print('é漢😀\u2028')", [StdioTest("", "é漢😀\u2028\n", Rule("exact"))], {}),
}  # fmt: skip
GRADER = (("grader.cpp", '#include "g.h"\nint main() { return answer() - 42; }'),
          ("g.h", "int answer();"))  # fmt: skip
COMPILED = {
    "c++": (Program("#include <iostream>\nint main() { int n; std::cin >> n; "
                    "std::cout << 2 * n; }", "cpp"), TIMES, {}),
    "files": (Program('#include "g.h"\nint answer() { return 42; }', "cpp", GRADER),
              [StdioTest("", "")], {}),
    "no c++": (Program("print(1)", "cpp"), TIMES, {}),
}  # fmt: skip


def outcome(verdict):
    """What must not depend on where it was judged; times in details differ."""
    return [(test.status, test.unsafe, "" if test.status is Status.TIMEOUT else test.detail)
            for test in verdict.tests]  # fmt: skip


def outcomes(judge, zoo):
    futures = {name: judge.submit(program, tests, **options)
               for name, (program, tests, options) in zoo.items()}  # fmt: skip
    return {name: outcome(future.result(120)) for name, future in futures.items()}


def test_the_verdicts_are_those_of_a_judge_in_process(service):
    with RemoteJudge([service.url]) as remote, Judge(2) as local:
        there, here = outcomes(remote, ZOO), outcomes(local, ZOO)
    assert there == here
    statuses = {status for found in here.values() for status, *_ in found}
    assert statuses == set(Status) - {Status.UNPARSEABLE}


@pytest.mark.slow
def test_compiled_programs_and_their_files_reach_the_service(service):
    with RemoteJudge([service.url]) as judge:
        found = outcomes(judge, COMPILED)
    statuses = {name: {status for status, *_ in tests} for name, tests in found.items()}
    assert statuses == {"c++": {Status.OK}, "files": {Status.OK}, "no c++": {Status.COMPILE}}


def test_bad_tests_are_refused_at_once(service):
    with RemoteJudge([service.url]) as judge:
        for tests, options in (([], {}), (TIMES, {"order": [0]}), ([CallTest("f", [{1}], 1)], {})):
            with pytest.raises(UserError):
                judge.submit("", tests, **options)
        with pytest.raises(UserError, match="output only"):
            judge.submit(Program("", "cpp"), CALLS)
    with pytest.raises(UserError, match="closed"):
        judge.submit("", TIMES)


def test_what_a_service_refuses_spoils_nothing_else(start_service):
    with start_service("--max-body-bytes", "9000") as service, RemoteJudge([service.url]) as judge:
        futures = [judge.submit(f"print({n})#{'x' * (9000 * (n == 1))}", [StdioTest("", "2")])
                   for n in range(5)]  # fmt: skip
        found = [future.result(60).tests[0].status for future in futures]
        assert found == ["wrong", "judge_error", "ok", "wrong", "wrong"]
        assert "9000 bytes" in futures[1].result().tests[0].detail


def test_close_leaves_nothing_unanswered(service):
    judge = RemoteJudge([service.url])
    futures = [judge.submit(f"import time; time.sleep(3)#{n}", TIMES) for n in range(5)]
    time.sleep(0.3)
    began = time.monotonic()
    judge.close()
    judge.close()
    assert time.monotonic() - began < 2
    assert all(future.result(0).judge_failed for future in futures)


def free_port():
    with contextlib.closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_who_is_no_judge_is_told_at_once(service, start_service, monkeypatch):
    nobody = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=rf"no judge answers .*{nobody}"):
        RemoteJudge([nobody])
    for url in ("ftp://a", "127.0.0.1:80", "http://", "", "local "):
        with pytest.raises(UserError, match="address"):
            open_judge(url)
    with pytest.raises(UserError, match="once"):
        RemoteJudge([service.url, f"{service.url}/"])
    with start_service(key="secret") as guarded:
        with pytest.raises(UserError, match=r"401.*API key"):
            RemoteJudge([guarded.url], "wrong")
        monkeypatch.setenv("OPENMIMO_JUDGE_KEY", "secret")
        with contextlib.closing(open_judge(f"{guarded.url}, {nobody}")) as judge:
            assert outcome(judge.submit("print(1)", [StdioTest("", "1")]).result(60))[0][0] == "ok"


def test_a_service_without_a_sandbox_is_no_surprise(start_service):
    with start_service("--unsafe-local") as service:
        with pytest.raises(UserError, match="without a sandbox"):
            RemoteJudge([service.url])
        with RemoteJudge([service.url], unsafe=True) as judge:
            assert judge.submit("print(1)", [StdioTest("", "1")]).result(60).unsafe


class _Odd(http.server.BaseHTTPRequestHandler):
    """A service that says what it is and then breaks the rules, as `reply` says."""

    reply = b""
    posts = 0

    def do_GET(self):
        self._send(json.dumps({"object": "judge", "workers": 1, "unsafe": False}).encode())

    def do_POST(self):
        type(self).posts += 1
        self._send(self.answer(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, body):
        return self.reply

    def _send(self, content):
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class _Fragile(_Odd):
    """Says ok to everything, and nothing at all to a request with poison in it."""

    def answer(self, body):
        solutions = json.loads(body)["solutions"]
        if any(each["program"]["source"] == "poison" for each in solutions):
            return b""
        lines = [{"id": each["id"], "tests": [{"status": "ok"}]} for each in solutions]
        return "\n".join(map(json.dumps, lines)).encode()


@contextlib.contextmanager
def odd_service(reply=b"", kind=_Odd):
    handler = type("Odd", (kind,), {"reply": reply})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", handler
    finally:
        server.shutdown()
        server.server_close()


ODD = [
    b"",
    b"rubbish\n",
    b'{"id": "0", "tests": []}\n',
    b'{"id": "99", "tests": [{"status": "ok"}]}\n',
    b'{"id": "0", "tests": [{"status": "ok", "unsafe": true}]}\n',
    b'{"error": {"message": "I do not feel like it"}}\n',
]


@pytest.mark.parametrize("reply", ODD)
def test_a_service_that_talks_nonsense_is_left_for_another(service, reply):
    with odd_service(reply) as (url, handler), RemoteJudge([url, service.url]) as judge:
        futures = [judge.submit(f"print({n})", [StdioTest("", "1")]) for n in range(40)]
        assert [all(future.result(60).passed) for future in futures] == [n == 1 for n in range(40)]
        assert handler.posts


def test_without_any_sign_of_life_everything_fails_in_time():
    with odd_service(b"") as (url, _):
        judge = RemoteJudge([url], patience=1.0)
    with contextlib.closing(judge):
        began = time.monotonic()
        futures = [judge.submit(f"print({n})", TIMES) for n in range(100)]
        for future in futures:
            verdict = future.result(20)
            assert verdict.judge_failed
            assert "no judge answered for" in verdict.tests[0].detail
        assert 1 <= time.monotonic() - began < 10
        # Later ones get their own time.
        assert judge.submit("print(1)", TIMES).result(20).judge_failed


def test_a_solution_that_ends_every_service_is_given_up(monkeypatch):
    monkeypatch.setattr("openmimo.judge.service.host.LONGEST_REST", 0.1)
    with odd_service(b"") as (url, handler), RemoteJudge([url]) as judge:
        verdict = judge.submit("print(1)", TIMES).result(60)
        assert verdict.judge_failed
        assert "10 judges were lost" in verdict.tests[0].detail
        assert handler.posts == 10


def test_what_ends_a_service_does_not_take_others_with_it(monkeypatch):
    monkeypatch.setattr("openmimo.judge.service.host.LONGEST_REST", 0.02)
    with odd_service(kind=_Fragile) as (url, _), RemoteJudge([url]) as judge:
        programs = ["poison" if n in (10, 20, 40) else str(n) for n in range(100)]
        futures = [judge.submit(program, [StdioTest("", "")]) for program in programs]
        for program, future in zip(programs, futures, strict=True):
            assert future.result(60).judge_failed == (program == "poison")


@pytest.mark.slow
def test_a_full_service_is_waited_for(start_service):
    sleeper = "import time; time.sleep(0.3) # {}"
    full = {
        "suites": [{"tests": [{"stdin": "", "stdout": ""}]}],
        "solutions": [{"id": str(n), "program": sleeper.format(n)} for n in range(8)],
    }
    with (
        start_service("--workers", "1", "--max-queue", "8") as service,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        RemoteJudge([service.url]) as judge,
    ):
        others = pool.submit(service.client.post, "/v1/judge", json=full, timeout=60)
        while service.client.get("/health").json()["in_flight"] < 8:
            time.sleep(0.01)
        futures = [judge.submit(f"print({n})", [StdioTest("", "7")]) for n in range(20)]
        found = collections.Counter(future.result(120).tests[0].status for future in futures)
        assert found == {"ok": 1, "wrong": 19}
        assert service.metric('requests_total{outcome="429"}') > 0
        assert others.result(60).status_code == 200


@pytest.mark.slow
def test_a_lost_service_is_replaced_by_the_other_or_by_its_successor(start_service):
    """Killed, stopped in an orderly way, and back at the same address: nothing is lost."""
    verdicts = collections.Counter()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(start_service())
        second = stack.enter_context(start_service())
        judge = stack.enter_context(RemoteJudge([first.url, second.url]))

        def submit(start):
            program, tests = "import time; time.sleep(0.02); print({} % 2)", [StdioTest("", "1")]
            futures = [judge.submit(program.format(n), tests) for n in range(start, start + 100)]
            for number, future in enumerate(futures, start):
                future.add_done_callback(lambda done, n=number: verdicts.update([(n, done)]))
            return futures

        futures = submit(0)
        futures[5].result(60)
        first.process.kill()
        assert [all(future.result(120).passed) for future in futures] == [False, True] * 50
        second.process.send_signal(signal.SIGTERM)
        futures = submit(100)
        assert second.process.wait(60) == 0
        stack.enter_context(start_service(port=first.port))
        assert [all(future.result(120).passed) for future in futures] == [False, True] * 50
    assert len(verdicts) == 200
    assert set(verdicts.values()) == {1}


def test_the_reward_pool_judges_there(service):
    problem = {"id": "c", "domain": "code", "entry_point": "f",
               "tests": [{"args": [i], "expected": i * i} for i in range(4)]}  # fmt: skip
    with RewardPool(grading=Grading("soft"), judge_at=service.url) as pool:
        before = service.metric('requests_total{outcome="completed"}')
        result = pool.score(problem, "```python\ndef f(x): return x\n```").result(60)
    assert result.score == 0.5
    assert service.metric('requests_total{outcome="completed"}') == before + 1


def test_the_verb_judge_asks_a_server(service, tmp_path, capsys):
    (tmp_path / "a.py").write_text("print(input())")
    (tmp_path / "t.jsonl").write_text('{"stdin": "1", "stdout": "1"}\n{"stdin": "1", "stdout": ""}')
    arguments = ["judge", str(tmp_path / "a.py"), str(tmp_path / "t.jsonl")]
    with pytest.raises(SystemExit):
        main([*arguments, "--server", service.url])
    assert "1 of 2 tests" in capsys.readouterr().out
    assert main([*arguments, "--server", f"http://127.0.0.1:{free_port()}"]) == 2
    assert "no judge answers" in capsys.readouterr().err
