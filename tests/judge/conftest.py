"""Real services of the judge, in processes of their own."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import httpx
import pytest


class Service:
    """A `mimo judge-serve` process: url, process, and a client for plain HTTP."""

    def __init__(self, *options: str, key: str | None = None, port: int = 0) -> None:
        code = "import sys; from openmimo.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "judge-serve", "--port", str(port)]
        environment = {name: value for name, value in os.environ.items() if name != KEY}
        self.process = subprocess.Popen(
            [*command, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment | ({KEY: key} if key else {}),
        )
        watchdog = threading.Timer(60, self.process.kill)
        watchdog.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        watchdog.cancel()
        found = re.search(r"http://\S+", line)
        if not found:
            raise AssertionError(f"{line}{self.end()}")
        self.url = found[0]
        self.port = int(self.url.rpartition(":")[2])
        self.client = httpx.Client(base_url=self.url, timeout=60)

    def end(self) -> str:
        """Kill it; what it wrote to standard error."""
        self.process.kill()
        return self.process.communicate()[1]

    def metric(self, name: str) -> float:
        """The value of a metric, its labels part of the name; 0 if it was never counted."""
        text = self.client.get("/metrics").text
        found = re.search(rf"^openmimo_judge_{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0


KEY = "OPENMIMO_JUDGE_KEY"


@pytest.fixture(scope="session")
def start_service() -> Callable[..., contextlib.AbstractContextManager[Service]]:
    """Starts a service with the options given; it is gone afterwards, and wrote no traceback."""

    @contextlib.contextmanager
    def start(*options: str, **more: object) -> Iterator[Service]:
        service = Service(*options, **more)
        try:
            yield service
        finally:
            errors = service.end()
        assert "Traceback" not in errors, errors

    return start


@pytest.fixture(scope="session")
def service(start_service) -> Iterator[Service]:
    """One service for the tests that leave it as it was."""
    with start_service("--workers", "2") as service:
        yield service
