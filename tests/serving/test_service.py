"""The engine's thread and its flights, without HTTP."""

import asyncio
from dataclasses import replace

import pytest

from openmimo.errors import UserError
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request
from openmimo.serving.service import (
    DrainingError,
    EngineDiedError,
    EngineService,
    QueueFullError,
)


@pytest.fixture
def engine(model):
    return Engine(model, slots=2, max_length=200)


def request(tokens=100, **changes):
    return Request(0, [1, 2, 3], tokens, **changes)


def run(engine, work, max_queue=2):
    """`work(service)` in an event loop; the service ends afterwards."""

    async def main():
        service = EngineService(engine, 2, max_queue)
        try:
            async with asyncio.timeout(30):
                return await work(service)
        finally:
            service.stop(5)

    return asyncio.run(main())


async def collect(flight):
    tokens = [[] for _ in flight.ids]
    pieces = 0
    while news := await flight.news():
        for item in news:
            tokens[item.index] += item.tokens.token_ids.tolist()
            pieces += 1
    return tokens, pieces


def test_pieces_join_to_the_completion(engine, model):
    requests = [request(seed=seed) for seed in range(4)]
    offline = Engine(model, slots=4, max_length=200)
    expected = [offline.run([each])[0].token_ids.tolist() for each in requests]

    async def work(service):
        with service.submit(requests, True, 30) as flight:
            in_pieces, count = await collect(flight)
        with service.submit(requests, False, 30) as flight:
            whole, ends = await collect(flight)
        return in_pieces, whole, count, ends

    in_pieces, whole, count, ends = run(engine, work)
    assert in_pieces == whole == expected
    assert count > ends == 4


def test_who_does_not_ask_is_sent_nothing_but_the_end(engine):
    """So that the memory of a slow reader's flight is bounded."""

    async def work(service):
        with service.submit([request(150), request(150, seed=1)], True, 30) as flight:
            seen = sum(len(item.tokens.token_ids) for item in await flight.news())
            while flight.open:  # the reader is busy sending
                assert len(flight._news) <= 2 + 2
                await asyncio.sleep(0.005)
            tokens, pieces = await collect(flight)
        assert pieces <= 2 + 2
        assert seen + sum(map(len, tokens)) == 300

    run(engine, work)


def test_leaving_early_frees_the_slots(engine):
    async def work(service):
        with service.submit([request(190), request(190, seed=1)], True, 30) as flight:
            await flight.news()
        with service.submit([request(5)], False, 30) as flight:
            await collect(flight)
        while service.in_flight:
            await asyncio.sleep(0.005)
        assert service.stats.active == 0
        assert service.stats.generated_tokens < 350

    run(engine, work)


def test_more_than_the_queue_holds_is_refused(engine):
    async def work(service):
        with service.submit([request()] * 3, False, 30):
            with pytest.raises(QueueFullError), service.submit([request()] * 2, False, 30):
                pass
            with service.submit([request(2)], False, 30) as last:
                assert [len(ids) for ids in (await collect(last))[0]] == [2]

    run(engine, work)


def test_what_the_engine_refuses_fails_that_flight_alone(engine):
    async def work(service):
        with (
            service.submit([request(5)], False, 30) as good,
            service.submit([request(5), request(500)], True, 30) as bad,
        ):
            with pytest.raises(UserError, match="max_length is 200"):
                await bad.news()
            assert len((await collect(good))[0][0]) == 5
        assert service.in_flight == 0

    run(engine, work)


def test_a_request_that_the_engine_gives_up_is_no_short_answer(engine, monkeypatch):
    step = engine.step

    def failing():
        return [replace(done, finish_reason="failed", error="too odd") for done in step()]

    async def work(service):
        monkeypatch.setattr(engine, "step", failing)
        with (
            service.submit([request(3), request(190)], False, 30) as flight,
            pytest.raises(UserError, match="too odd"),
        ):
            await collect(flight)
        while service.in_flight:
            await asyncio.sleep(0.005)

    run(engine, work)


def test_a_refusal_before_anyone_waits_is_not_an_empty_answer(engine):
    async def work(service):
        with service.submit([request(500)], True, 30) as flight:
            while service.in_flight:
                await asyncio.sleep(0.01)
            with pytest.raises(UserError, match="max_length is 200"):
                await flight.news()

    run(engine, work)


def test_the_deadline_of_a_flight(engine):
    async def work(service):
        with service.submit([request(190)], False, 0.01) as flight, pytest.raises(TimeoutError):
            await flight.news()

    run(engine, work)


def test_drain_waits_then_fails_the_rest(engine):
    async def work(service):
        with service.submit([request(20)], False, 30) as flight:
            await service.drain(20)
            assert len((await collect(flight))[0][0]) == 20
        with pytest.raises(DrainingError), service.submit([request()], False, 30):
            pass

    run(engine, work)


def test_a_dead_engine_is_reported_to_all(engine, monkeypatch):
    async def work(service):
        with (
            service.submit([request()], True, 30) as one,
            service.submit([request()], False, 30) as two,
        ):
            await one.news()
            monkeypatch.setattr(engine, "step", lambda: 1 / 0)
            for flight in (one, two):
                with pytest.raises(EngineDiedError, match="ZeroDivisionError"):
                    await collect(flight)
        with pytest.raises(EngineDiedError), service.submit([request()], False, 30):
            pass
        await service.died.wait()
        assert isinstance(service.error, ZeroDivisionError)
        await service.drain(5)  # ends: nothing runs any more

    run(engine, work)
