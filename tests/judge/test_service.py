"""`mimo judge-serve` against clients of every kind."""

import concurrent.futures
import contextlib
import json
import signal
import socket
import time

import httpx
import pytest

from openmimo.cli import main

ECHO = {"id": "a", "program": "print(input())"}
SUITE = {"tests": [{"stdin": "1", "stdout": "1"}]}
SLEEPER = {"id": "slow", "program": "import time\ntime.sleep(1)\nprint(input())"}


def body(*solutions, suite=SUITE):
    return {"suites": [suite], "solutions": list(solutions)}


def post(service, content, **options):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return service.client.post("/v1/judge", content=content, **options)


def lines(reply):
    assert reply.status_code == 200, reply.text
    return {line["id"]: [test["status"] for test in line["tests"]]
            for line in map(json.loads, filter(None, reply.text.split("\n")))}  # fmt: skip


def wait_for(condition, seconds=15):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_verdicts_by_the_clients_ids(service):
    solutions = [
        ECHO,
        {"id": "wrong", "program": "print(2)"},
        {"id": "crash", "program": {"source": "exit(3)", "language": "python"}},
        {"id": "é", "program": "x ="},
    ]
    reply = post(service, body(*solutions))
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert lines(reply) == {"a": ["ok"], "wrong": ["wrong"], "crash": ["crash"], "é": ["compile"]}


def test_verdicts_come_as_they_finish(service):
    fast = [{"id": str(n), "program": f"print(1) # {n}"} for n in range(5)]
    content = json.dumps(body(SLEEPER, *fast)).encode()
    began = time.monotonic()
    with httpx.stream("POST", f"{service.url}/v1/judge", content=content, timeout=60) as reply:
        order = [(json.loads(line)["id"], time.monotonic() - began)
                 for line in reply.iter_lines() if line]  # fmt: skip
    assert [id for id, _ in order[-1:]] == ["slow"]
    assert order[0][1] < 0.9 < order[-1][1]


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (b"\x00\xff", None),
        (b"{" * 50_000, None),
        ({"solutions": [ECHO]}, "suites"),
        (body({"id": "a", "program": 5}), "solutions.0.program"),
        (body(ECHO, ECHO), "solutions.1.id"),
        (body({**ECHO, "program": {"source": "", "language": "cpp"}},
              suite={"tests": [{"code": "assert f()"}]}), "solutions.0"),
    ],
)  # fmt: skip
def test_a_bad_request_is_a_400_that_names_the_field(service, content, field):
    reply = post(service, content)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == field
    assert field is None or field in reply.json()["error"]["message"]


def test_unknown_paths_and_methods(service):
    assert service.client.get("/v1/judge").status_code == 405
    assert service.client.post("/health").status_code == 405
    assert service.client.get("/nowhere").status_code == 404


def test_health_and_metrics(service):
    assert service.client.get("/health").json() == {
        "status": "ok", "workers": 2, "alive": 2, "in_flight": 0, "unsafe": False
    }  # fmt: skip
    wrong = service.metric('solutions_total{status="wrong"}')
    post(service, body({"id": "a", "program": "print(3)  # new"}))
    post(service, b"?")
    assert service.metric('solutions_total{status="wrong"}') == wrong + 1
    assert service.metric('requests_total{outcome="400"}') >= 1
    assert service.metric("workers_alive") == 2
    assert service.metric("waiting") == 0


def test_a_hundred_clients_at_once(service):
    def one(number):
        solutions = [
            {"id": f"{number}.{n}", "program": f"print({number % 3} - {n % 2})"} for n in range(4)
        ]
        reply = post(service, body(*solutions))
        while reply.status_code == 429:
            time.sleep(float(reply.headers["Retry-After"]))
            reply = post(service, body(*solutions))
        return number, lines(reply)

    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        for number, found in pool.map(one, range(100)):
            right = {f"{number}.{n}": ["ok" if number % 3 - n % 2 == 1 else "wrong"]
                     for n in range(4)}  # fmt: skip
            assert found == right


@pytest.mark.slow
def test_limits_of_a_request_and_of_the_queue(start_service):
    options = ("--workers", "1", "--max-queue", "3", "--max-body-bytes", "5000")
    with start_service(*options, "--max-seconds", "30", "--max-memory-mb", "500") as service:
        for name, most in (("cpu_seconds", 30), ("wall_seconds", 30), ("memory_mb", 500)):
            asked = body(ECHO, suite={**SUITE, "limits": {name: most}})
            assert lines(post(service, asked)) == {"a": ["ok"]}
            refused = post(service, body(ECHO, suite={**SUITE, "limits": {name: most + 1}}))
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == f"suites.0.limits.{name}"
        big = post(service, body({"id": "a", "program": "#" * 6000}))
        assert big.status_code == 413
        many = post(service, body(*({**ECHO, "id": str(n)} for n in range(4))))
        assert many.status_code == 413
        assert many.json()["error"]["code"] == "too_many_solutions"
        with concurrent.futures.ThreadPoolExecutor() as pool:
            slow = [{**SLEEPER, "id": str(n), "program": SLEEPER["program"] + f"#{n}"}
                    for n in range(3)]  # fmt: skip
            running = pool.submit(post, service, body(*slow))
            wait_for(lambda: service.client.get("/health").json()["in_flight"] == 3)
            full = post(service, body(ECHO))
            assert full.status_code == 429
            assert int(full.headers["Retry-After"]) > 0
            assert len(lines(running.result())) == 3
        assert lines(post(service, body(ECHO))) == {"a": ["ok"]}


@pytest.mark.slow
def test_a_key_is_asked_for(start_service):
    with start_service(key="näme 1") as service:
        for given in (None, "Bearer", "Bearer other", "Basic näme 1"):
            headers = {"Authorization": given.encode()} if given else {}
            for path in ("/v1/judge", "/v1/about", "/metrics"):
                assert httpx.get(service.url + path, headers=headers).status_code == 401
            assert post(service, body(ECHO), headers=headers).status_code == 401
        headers = {"Authorization": "Bearer näme 1".encode()}
        assert lines(post(service, body(ECHO), headers=headers)) == {"a": ["ok"]}
        assert service.client.get("/health").status_code == 200


@pytest.mark.slow
def test_a_client_that_leaves_takes_nothing_with_it(start_service):
    """What it asked for is judged and counted out, and known when it comes again."""
    with start_service("--workers", "1") as service:
        content = json.dumps(body(SLEEPER)).encode()
        with httpx.stream("POST", f"{service.url}/v1/judge", content=content) as reply:
            assert reply.status_code == 200
        wait_for(lambda: service.metric('requests_total{outcome="disconnected"}') == 1)
        assert lines(post(service, content)) == {"slow": ["ok"]}
        assert service.metric("cached_total") == 1
        assert service.client.get("/health").json()["in_flight"] == 0


@pytest.mark.slow
@pytest.mark.slow
def test_clients_that_leave_cannot_fill_the_memory(start_service):
    # What they sent is kept until it is judged, so it still counts against the room for bodies.
    with start_service("--workers", "8", "--max-body-bytes", "1000") as service:
        for number in range(16):
            program = f"import time; time.sleep(4) #{number}"
            content = json.dumps(body({"id": "a", "program": program})).encode().ljust(1000)
            with pytest.raises(httpx.ReadTimeout):
                post(service, content, timeout=0.1)
        assert post(service, body(ECHO)).status_code == 503
        wait_for(lambda: post(service, body(ECHO)).status_code == 200)
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(timeout=10) == 0


def test_sigterm_lets_running_requests_end_and_refuses_new_ones(start_service):
    with start_service() as service, concurrent.futures.ThreadPoolExecutor() as pool:
        running = pool.submit(post, service, body(SLEEPER))
        wait_for(lambda: service.client.get("/health").json()["in_flight"] == 1)
        service.process.send_signal(signal.SIGTERM)
        wait_for(lambda: service.client.get("/health").status_code == 503)
        refused = post(service, body(ECHO))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert lines(running.result()) == {"slow": ["ok"]}
        assert service.process.wait(15) == 0


@pytest.mark.slow
def test_after_the_drain_deadline_requests_are_told(start_service):
    with (
        start_service("--drain", "0.2") as service,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        running = pool.submit(post, service, body(ECHO, SLEEPER))
        wait_for(lambda: service.client.get("/health").json()["in_flight"] == 1)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(15) == 0
        *judged, last = filter(None, running.result().text.split("\n"))
        assert [json.loads(line)["id"] for line in judged] == ["a"]
        assert json.loads(last)["error"]["code"] == "draining"


@pytest.mark.slow
def test_who_reads_nothing_stops_nobody(start_service):
    """8 MB of details wait for one client while another is served."""
    with start_service() as service:
        tests = [{"args": [n], "expected": 0, "entry_point": "f"} for n in range(50)]
        program = "def f(n): return 'x' * 90"  # judged once
        many = [{"id": str(n), "program": program} for n in range(1000)]
        content = json.dumps(body(*many, suite={"tests": tests})).encode()
        head = f"POST /v1/judge HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\n\r\n"
        with contextlib.closing(socket.create_connection(("127.0.0.1", service.port))) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(head.encode() + content)
            assert lines(post(service, body(ECHO))) == {"a": ["ok"]}
            wait_for(lambda: service.client.get("/health").json()["in_flight"] == 0, 60)
        assert lines(post(service, body({**ECHO, "id": "b"}))) == {"b": ["ok"]}


def test_impossible_settings_are_told(service, capsys):
    for options, text in (
        (["--port", str(service.port)], "cannot listen"),
        (["--port", "70000"], "--port"),
        (["--workers", "0"], "--workers"),
        (["--max-queue", "0"], "--max-queue"),
        (["--max-seconds", "nan"], "--max-seconds"),
        (["--max-memory-mb", "0"], "--max-memory-mb"),
        (["--api-key", " "], "API key"),
    ):
        assert main(["judge-serve", *options]) == 2
        assert text in capsys.readouterr().err
