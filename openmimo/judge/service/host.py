"""One address of a judge's service, as its client sees it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from openmimo.errors import UserError, shown
from openmimo.judge.service.wire import BadBodyError, parse_verdict
from openmimo.judge.verdict import SolutionVerdict

CONNECT_SECONDS = 5.0
SILENCE_SECONDS = 30.0
"""A service that sends nothing for so long, not even its empty line, is lost."""

LONGEST_REST = 5.0
"""Seconds between two tries at a host that is lost."""


class BusyError(Exception):
    """The service takes nothing more now (429, 503); try again after `seconds`."""

    def __init__(self, message: str, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class LostError(Exception):
    """No use at present: unreachable, gone in the midst of a reply, or it makes no sense.

    `accepted`: it had begun to reply, so that the request may be what it died of.
    `unreachable`: there was no reply at all.
    """

    def __init__(self, message: str, accepted: bool = False, unreachable: bool = False) -> None:
        super().__init__(message)
        self.accepted, self.unreachable = accepted, unreachable


class RefusedError(Exception):
    """The service does not take this request (400, 413); it may take others."""


@dataclass(frozen=True)
class About:
    """What a service says of itself."""

    workers: int
    unsafe: bool


class Host:
    """A service: requests to it, and when it is worth the next one.

    Args:
        url: such as http://10.0.0.5:8001.
        http: the client for all requests, with the API key.
    """

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url = url
        self.problem = ""
        self.about: About | None = None
        self._http = http
        self._failures = 0
        self._rests_until = 0.0

    @property
    def ready(self) -> bool:
        """Whether it is worth a try now."""
        return time.monotonic() >= self._rests_until

    @property
    def trusted(self) -> bool:
        """Whether it has given a verdict since it was lost last."""
        return not self._failures

    def rest(self, problem: str, seconds: float | None = None) -> None:
        """Leave it alone for a while: longer with each time (`seconds`: for that long)."""
        self.problem = problem
        if seconds is None:
            seconds = min(0.1 * 2**self._failures, LONGEST_REST)
            self._failures = min(self._failures + 1, 10)
            self.about = None  # another one may come back
        self._rests_until = max(self._rests_until, time.monotonic() + seconds)

    async def ask(self) -> About:
        """What it is. BusyError, LostError, RefusedError."""
        try:
            reply = await self._http.get(f"{self.url}/v1/about", timeout=CONNECT_SECONDS)
        except httpx.HTTPError as error:
            raise LostError(_words(error), unreachable=True) from error
        _check_status(reply)
        try:
            fields = reply.json()
            if fields["object"] != "judge":
                raise ValueError(f"it is a {shown(fields['object'])}")
            self.about = About(int(fields["workers"]), bool(fields["unsafe"]))
        except (ValueError, TypeError, KeyError) as error:
            raise LostError(f"no judge's service: {type(error).__name__}: {error}") from error
        return self.about

    async def judge(self, body: bytes) -> AsyncIterator[tuple[str, SolutionVerdict] | None]:
        """Send a request; its verdicts as they come, None for each sign of life between.

        Raises:
            BusyError, LostError, RefusedError: there will be no more of them.
        """
        accepted = False
        headers = {"Content-Type": "application/json"}
        try:
            async with self._http.stream(
                "POST", f"{self.url}/v1/judge", content=body, headers=headers
            ) as reply:
                if reply.status_code != httpx.codes.OK:
                    await reply.aread()
                _check_status(reply)
                accepted = True
                async for line in reply.aiter_lines():
                    self._failures = 0
                    yield parse_verdict(line) if line else None
        except httpx.HTTPError as error:
            raise LostError(_words(error), accepted) from error
        except BadBodyError as error:
            raise LostError(str(error), accepted) from error


def check_url(url: str) -> str:
    """An address without the slash at its end. UserError if it is none."""
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UserError(f"no address of a judge: {shown(url)} ({error})") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(f"no address of a judge: {shown(url)}; write http://HOST:PORT")
    return url.rstrip("/")


def new_http(key: str | None) -> httpx.AsyncClient:
    """The client for all hosts."""
    return httpx.AsyncClient(
        headers={b"Authorization": f"Bearer {key}".encode()} if key else None,
        timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS),
        limits=httpx.Limits(max_connections=None),
        trust_env=False,  # a service of one's own: no proxy of the web's knows it
    )


def _check_status(reply: httpx.Response) -> None:
    """Raise what a status other than 200 means. The reply has been read."""
    if reply.status_code == httpx.codes.OK:
        return
    message = f"HTTP {reply.status_code}: {_message(reply)}"
    if reply.status_code in (429, 503):
        raise BusyError(message, _retry_after(reply.headers))
    if reply.status_code in (400, 413):
        raise RefusedError(message)
    raise LostError(message)


def _message(reply: httpx.Response) -> str:
    try:
        return str(reply.json()["error"]["message"])
    except (ValueError, TypeError, KeyError):
        return shown(reply.text)


def _retry_after(headers: Mapping[str, Any]) -> float:
    """Seconds; a date, which it may be too, is taken for one."""
    text = str(headers.get("Retry-After", "1"))
    return min(float(text), 60.0) if text.isdecimal() else 1.0


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
