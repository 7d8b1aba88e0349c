"""Verdicts that are being worked out or were worked out, each once."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import CancelledError, Future

from openmimo.judge.verdict import Status
from openmimo.rewards.verdict import Verdict, failed


class VerdictCache:
    """The `size` last used futures by key. For use from several threads.

    `scored` and `cached` count what was worked out and what was remembered.
    """

    def __init__(self, size: int) -> None:
        self._futures: OrderedDict[Hashable, Future[Verdict]] = OrderedDict()
        self._size = size
        self._lock = threading.Lock()
        self.scored = 0
        self.cached = 0

    def once(self, key: Hashable, work: Callable[[], Future[Verdict]]) -> Future[Verdict]:
        """The future of `key`, or that of `work()`. A failed judgement is not remembered."""
        with self._lock:
            future = self._futures.pop(key, None)
            if future is not None and not (future.done() and _failed(future)):
                self.cached += 1
            else:
                future = work()
                self.scored += 1
            self._futures[key] = future
            if len(self._futures) > self._size:
                self._futures.popitem(last=False)
            return future


def done(verdict: Verdict) -> Future[Verdict]:
    """A future that has its result already."""
    future: Future[Verdict] = Future()
    future.set_result(verdict)
    return future


def verdict_of(future: Future[Verdict]) -> Verdict:
    """The verdict of a future, waited for; one that failed or was cancelled is a failure."""
    try:
        return future.result()
    except CancelledError:
        return failed("cancelled: the verifier was closed")
    except Exception as error:
        return failed(f"{type(error).__name__}: {error}")


def _failed(future: Future[Verdict]) -> bool:
    return verdict_of(future).status is Status.JUDGE_ERROR
