"""Request bodies: within limits, in time, and never more of them than there is room for."""

import asyncio

import pytest
from starlette.requests import Request

from openmimo.web import http
from openmimo.web.errors import ApiError
from openmimo.web.http import BODIES, Bodies, DisconnectedError

MOST = 1000


class Client:
    """Sends pieces of a body; None is a disconnect. After the last it sends nothing more."""

    def __init__(self, *pieces, ends=True):
        self._pieces, self._ends = list(pieces), ends
        self.request = Request({"type": "http", "method": "POST", "headers": []}, self._receive)

    async def _receive(self):
        if not self._pieces:
            await asyncio.Event().wait()
        piece = self._pieces.pop(0)
        if piece is None:
            return {"type": "http.disconnect"}
        more = bool(self._pieces) or not self._ends
        return {"type": "http.request", "body": piece, "more_body": more}

    @property
    def unsent(self):
        return len(self._pieces)


async def read(bodies, *pieces, **options):
    async with bodies.read(Client(*pieces, **options).request) as body:
        return body


def status_of(error):
    return error.value.status, error.value.headers


def test_a_body_may_have_exactly_as_many_bytes_as_are_allowed():
    async def work():
        bodies = Bodies(MOST)
        assert await read(bodies, b"a" * 600, b"b" * 400) == b"a" * 600 + b"b" * 400
        with pytest.raises(ApiError) as error:
            await read(bodies, b"a" * 600, b"b" * 401)
        assert status_of(error) == (413, {"Connection": "close"})

    asyncio.run(work())


@pytest.mark.parametrize("first", [MOST + 1, 10])
def test_the_rest_of_a_refused_body_has_a_deadline(monkeypatch, first):
    """Also if the first piece was too long already."""
    monkeypatch.setattr(http, "DISCARD_SECONDS", 0.05)
    client = Client(b"a" * first, b"a" * MOST, b"a", ends=False)

    async def work():
        with pytest.raises(ApiError) as error:
            async with asyncio.timeout(5), Bodies(MOST).read(client.request):
                pass
        assert error.value.status == 413

    asyncio.run(work())
    assert not client.unsent  # what it had sent was read, or it would not read the reply


@pytest.mark.parametrize("pieces", [(), (b"a",), (b"a", b"b")])
def test_a_body_that_does_not_arrive_is_refused(monkeypatch, pieces):
    monkeypatch.setattr(http, "CLIENT_SECONDS", 0.05)

    async def work():
        with pytest.raises(ApiError) as error:
            await asyncio.wait_for(read(Bodies(MOST), *pieces, ends=False), 5)
        assert error.value.status == 408

    asyncio.run(work())


def test_a_client_that_leaves_is_no_fault():
    async def work():
        for pieces in ((None,), (b"a", None), (b"a" * (MOST + 1), None)):
            with pytest.raises(DisconnectedError):
                await read(Bodies(MOST), *pieces)

    asyncio.run(work())


def test_all_bodies_together_have_a_limit(monkeypatch):
    """Whatever becomes of a body, the room that it took is free again afterwards."""
    monkeypatch.setattr(http, "DISCARD_SECONDS", 0.01)
    monkeypatch.setattr(http, "CLIENT_SECONDS", 0.5)

    async def held(bodies, reading, leave, *pieces, **options):
        async with bodies.read(Client(*pieces, **options).request):
            reading.append(1)
            await leave.wait()
            raise RuntimeError

    async def fill(bodies):
        leave, reading = asyncio.Event(), []
        tasks = [
            asyncio.ensure_future(held(bodies, reading, leave, b"a" * MOST)) for _ in range(BODIES)
        ]
        while len(reading) < BODIES:
            await asyncio.sleep(0)
        with pytest.raises(ApiError) as error:
            await read(bodies, b"a")
        status, headers = status_of(error)
        assert status == 503
        assert int(headers["Retry-After"]) > 0
        leave.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def work():
        bodies = Bodies(MOST)
        for pieces in ((b"a" * 900, b"a" * 900), (b"a" * 900, None)):
            with pytest.raises((ApiError, DisconnectedError)):
                await read(bodies, *pieces)
        with pytest.raises(ApiError):
            await read(bodies, b"a" * 900, ends=False)
        cancelled = asyncio.ensure_future(read(bodies, b"a" * 900, ends=False))
        await asyncio.sleep(0.01)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        for _ in range(2):
            await fill(bodies)
        assert await read(bodies, b"a" * MOST)

    asyncio.run(work())
