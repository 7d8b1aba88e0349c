"""Limits, keys, and how a server ends."""

import concurrent.futures
import contextlib
import json
import signal
import socket
import time

import httpx
import pytest

from openmimo.cli import main
from openmimo.errors import UserError
from openmimo.inference import memory
from openmimo.serving import serve
from openmimo.web.listening import bind

LONG = {"prompt": "a", "max_tokens": 1000, "ignore_eos": True}


def post(server, body, **options):
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=60, **options)


def wait_until_active(server, count=1):
    deadline = time.monotonic() + 10
    while server.metric("active") < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def threads():
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.mark.slow
def test_sigterm_lets_running_requests_end_and_refuses_new_ones(start, threads):
    with start() as server:
        running = threads.submit(post, server, LONG)
        wait_until_active(server)
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        while server.client.get("/health").status_code != 503:
            assert time.monotonic() < deadline
        refused = post(server, LONG)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "draining"
        assert "Retry-After" in refused.headers
        assert running.result().json()["usage"]["completion_tokens"] == 1000
        assert server.process.wait(15) == 0
        assert "Traceback" not in server.process.stderr.read()


@pytest.mark.slow
def test_after_the_drain_deadline_requests_are_told_and_aborted(start, threads):
    with start("--drain", "0.2") as server:
        running = threads.submit(post, server, LONG)
        streamed = threads.submit(post, server, {**LONG, "stream": True})
        wait_until_active(server, 2)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) == 0
        assert running.result().status_code == 503
        last = streamed.result().text.strip().splitlines()[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
        assert "Traceback" not in server.process.stderr.read()


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(start, threads):
    with start() as server:
        threads.submit(post, server, LONG)
        wait_until_active(server)
        server.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 5
        while server.client.get("/health").status_code != 503:
            assert time.monotonic() < deadline
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(1) == 128 + signal.SIGINT


BROKEN = """
from openmimo.inference.engine import Engine
step = Engine.step
def broken(self):
    if self.stats().steps > 20:
        raise RuntimeError("out of memory")
    return step(self)
Engine.step = broken
"""


@pytest.mark.slow
def test_a_dead_engine_fails_all_requests_and_ends_the_process(start, threads):
    with start("--slots", "1", first=BROKEN) as server:
        bodies = [LONG, LONG, {**LONG, "stream": True, "prompt": "b"}]
        replies = [threads.submit(post, server, body) for body in bodies]
        for reply in replies[:2]:
            assert reply.result().status_code == 500
            assert "RuntimeError: out of memory" in reply.result().json()["error"]["message"]
        assert "RuntimeError: out of memory" in replies[2].result().text
        assert server.process.wait(20) == 1
        assert "RuntimeError: out of memory" in server.process.stderr.read()


@pytest.mark.slow
def test_a_full_queue_is_refused_and_a_deadline_kept(start, threads):
    with start("--slots", "1", "--max-queue", "1", "--timeout", "1") as server:
        body = {**LONG, "stop": ["never \x00 there"]}
        running = [threads.submit(post, server, body) for _ in range(2)]
        deadline = time.monotonic() + 5
        while server.metric("active") + server.metric("waiting") < 2:
            assert time.monotonic() < deadline
        refused = post(server, body)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 0
        statuses = sorted(reply.result().status_code for reply in running)
        assert statuses[-1] == 504
        assert set(statuses) <= {200, 504}
        assert post(server, {**LONG, "max_tokens": 2}).status_code == 200


@pytest.mark.slow
def test_a_key_is_asked_for(start):
    environment = {"OPENMIMO_API_KEY": "another"}
    with start("--api-key", "näme 1", environment=environment) as server:
        for given in (
            None,
            "Bearer",
            "Bearer näme",
            "näme 1",
            "Bearer näme 11",
            "Bearer another",
            "Basic näme 1",
            "Bearer  näme 1",
            "bearer",
        ):
            headers = {"Authorization": given.encode()} if given else {}
            for path in ("/v1/models", "/metrics", "/nowhere"):
                reply = httpx.get(server.url + path, headers=headers)
                assert reply.status_code == 401
                assert reply.json()["error"]["code"] == "invalid_api_key"
            assert post(server, {}, headers=headers).status_code == 401
        headers = {"Authorization": "bEARER näme 1".encode()}
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200
        headers = {"Authorization": "Bearer näme 1".encode()}
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200
        assert post(server, {"prompt": "a"}, headers=headers).status_code == 200
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert httpx.get(server.url).status_code == 200


def connect(server, receive_buffer=None):
    """A connection without a request."""
    connection = socket.socket()
    if receive_buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    host, port = server.url.removeprefix("http://").split(":")
    connection.settimeout(10)
    connection.connect((host, int(port)))
    return connection


def raw_request(server, body, receive_buffer=None):
    """A connection that has sent a request and read nothing."""
    connection = connect(server, receive_buffer)
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


IMPATIENT = "import openmimo.web.http as http; http.CLIENT_SECONDS = 0.5"
# The kernel would take megabytes before anybody noticed that they are not read.
SMALL_BUFFER = """
import socket, openmimo.serving.serve as serve
bind = serve.bind
def small(host, port):
    listener = bind(host, port)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return listener
serve.bind = small
"""


@pytest.mark.slow
@pytest.mark.parametrize("stream", [True, False])
def test_a_slow_reader_stops_nobody_and_is_cut_off(start, stream):
    with start("--slots", "8", first=f"{IMPATIENT}\n{SMALL_BUFFER}") as server:
        body = {**LONG, "stream": stream, "n": 7, "logprobs": 0}
        with raw_request(server, body, receive_buffer=4096):
            wait_until_active(server, 7)
            assert post(server, {"prompt": "b", "max_tokens": 20}).status_code == 200
            deadline = time.monotonic() + 20
            label = 'requests_total{endpoint="/v1/completions",outcome="disconnected"}'
            while not server.metric(label):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert server.metric("active") + server.metric("waiting") == 0


@pytest.mark.slow
def test_who_never_finishes_a_request_is_cut_off(start):
    """Nor does one byte now and then keep the connection, not even after a good request."""
    with start(first=IMPATIENT) as server:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"
        good = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
        unread = b"GET /health HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"
        for sent, reply in (
            (b"", b""),
            (b"POST /v1", b""),
            (head, b"HTTP/1.1 408 "),
            (head + b"{", b"HTTP/1.1 408 "),
            (good + b"GET /he", b"HTTP/1.1 200 "),
            (unread, b"HTTP/1.1 200 "),
        ):
            began = time.monotonic()
            assert drip(connect(server), sent).startswith(reply)
            assert time.monotonic() - began < 5


def drip(connection, sent):
    """Send it, and a byte now and then until the server closes; everything it replied."""
    connection.settimeout(0.1)
    connection.sendall(sent)
    reply, deadline = b"", time.monotonic() + 10
    with connection:
        while time.monotonic() < deadline:
            try:
                if not (data := connection.recv(1000)):
                    break
                reply += data
            except TimeoutError:
                with contextlib.suppress(OSError):
                    connection.sendall(b"a" if sent else b"")
            except ConnectionResetError:
                break
    return reply


@pytest.mark.slow
def test_many_clients_that_hold_back_the_end_of_a_body_are_refused(start):
    with start("--max-body-bytes", "50000") as server:
        body = b'{"prompt": "a", "user": "' + b"x" * 49_000
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
        held = [connect(server) for _ in range(40)]
        try:
            for connection in held:
                connection.sendall(head % (len(body) + 2) + body)
            deadline = time.monotonic() + 10
            large = {"prompt": "a", "max_tokens": 1, "user": "x" * 49_000}
            while (reply := post(server, large)).status_code != 503:
                assert time.monotonic() < deadline
            assert reply.json()["error"]["code"] == "bodies_full"
            assert "Retry-After" in reply.headers
            assert server.client.get("/health").status_code == 200
            for connection in held:
                with contextlib.suppress(OSError):
                    connection.sendall(b'"}')
            replies = [connection.recv(12) for connection in held]
            assert replies.count(b"HTTP/1.1 200") >= 16
            assert set(replies) <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}
        finally:
            for connection in held:
                connection.close()
        assert post(server, large).status_code == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--slots", "0"), "--slots is 0"),
        (("--max-length", "5000"), "context has 1024 tokens"),
        (("--drafts", "7"), "the model has 2 MTP layers"),
        (("--max-n", "0"), "--max-n is 0"),
        (("--timeout", "nan"), "--timeout is nan"),
        (("--port", "99999"), "--port is 99999"),
        (("--host", "no.such.host.invalid"), "cannot listen at"),
        (("--timeout", "0"), "--timeout is 0"),
        (("--device", "toaster"), "--device toaster"),
        (("--device", "meta"), "use cpu or cuda"),
        (("--api-key", " "), "key is empty"),
        (("--api-key", ""), "key is empty"),
        (("--api-key", " x "), "white space around"),
        (("--api-key", "x\n"), "white space around"),
        (("--api-key", "x\ny"), "control characters"),
    ],
)
def test_impossible_settings_are_one_line(folder, capsys, options, message):
    assert main(["serve", str(folder), *options]) == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1


def test_what_does_not_fit_the_memory_is_refused_before_loading(folder, capsys, monkeypatch):
    monkeypatch.setattr(serve, "load_release", lambda *_: pytest.fail("the model was loaded"))
    for options in (("--slots", str(10**7)), ("--max-length", "5000")):
        assert main(["serve", str(folder), "--port", "0", *options]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(memory, "free_memory", lambda device: 1e5)
    assert main(["serve", str(folder), "--port", "0"]) == 2
    assert "0.0 GB are free: lower --slots" in capsys.readouterr().err


def test_a_taken_port_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1:{port}"):
            bind("127.0.0.1", port)


def test_a_missing_folder_is_one_line(tmp_path, capsys):
    assert main(["serve", str(tmp_path / "nothing")]) == 2
    assert "no folder" in capsys.readouterr().err
