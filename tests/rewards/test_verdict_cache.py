"""What is remembered, what is forgotten, and what is tried again."""

from concurrent.futures import Future

import pytest

from openmimo.judge.verdict import Status
from openmimo.rewards.verdict import failed, right, wrong
from openmimo.rewards.verdict_cache import VerdictCache, done, verdict_of


def never():
    raise AssertionError("worked out twice")


def test_a_verdict_is_worked_out_once_even_before_it_is_there():
    cache = VerdictCache(5)
    future: Future = Future()
    assert cache.once("a", lambda: future) is future
    assert cache.once("a", never) is future
    future.set_result(wrong("no"))
    assert cache.once("a", never).result() == wrong("no")
    assert (cache.scored, cache.cached) == (1, 2)


def test_a_failure_is_tried_again():
    cache = VerdictCache(5)
    cancelled: Future = Future()
    cancelled.cancel()
    broken: Future = Future()
    broken.set_exception(ValueError("why"))
    for bad in (done(failed("died")), cancelled, broken):
        cache.once("a", lambda bad=bad: bad)
    assert cache.once("a", lambda: done(right("yes"))).result().correct
    assert (cache.scored, cache.cached) == (4, 0)
    assert "why" in verdict_of(broken).detail
    assert verdict_of(cancelled).status is Status.JUDGE_ERROR


def test_the_least_recently_used_is_forgotten():
    cache = VerdictCache(2)
    for key in "abab":
        cache.once(key, lambda: done(right("")))
    cache.once("a", never)
    cache.once("c", lambda: done(right("")))
    cache.once("a", never)
    with pytest.raises(AssertionError):
        cache.once("b", never)
