"""A pool of workers on a Ray cluster that loses no task: each `submit` gets exactly one result."""

import logging
import pickle
import queue
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from threading import Lock, Thread
from typing import Any

from openmimo.cluster import session
from openmimo.cluster.crew import Actor, Crew, reason_of
from openmimo.cluster.dispatch import Call, Dispatcher, Task
from openmimo.cluster.host import Factory
from openmimo.errors import UserError

_log = logging.getLogger(__name__)

_SLACK_SECONDS = 60.0  # beyond our own deadlines, for Ray's calls that have none


class ActorLost(Exception):
    """A task has no result: its actors died, there were none, or the pool was closed."""


class ActorPool:
    """Workers in Ray actors, kept alive; a context manager; safe to use from threads.

    One thread owns everything. It sleeps until an event (a task, an answer, the end of an actor)
    or a deadline. What a lost actor had goes to others.

    Args:
        factory: makes an actor's worker (`host.Worker`); pickled.
        actors: how many, spread over the nodes; each does one task at a time and takes a CPU. None:
            one on each node, which does as many tasks as the node has CPUs, and takes none of them
            from Ray, so that pools share a node; nodes that come and go are followed.
        address: of the cluster (`session.join`).
        options: more options of the actors, by Ray's names (`num_gpus`, `resources`, ...).
        attempts: how many actors may die with a task until its result is `ActorLost`.
        silent_seconds: an actor that gives no sign of life for so long is killed.
        start_seconds: how long tasks wait while there is no actor at all.

    Raises:
        UserError: Ray is missing, the cluster is not there or has no room for an actor within
            `start_seconds`, or no worker can be made: the message says why.
    """

    def __init__(
        self,
        factory: Factory,
        actors: int | None = None,
        address: str = "",
        options: Mapping[str, Any] | None = None,
        attempts: int = 4,
        silent_seconds: float = 30.0,
        start_seconds: float = 120.0,
    ) -> None:
        if actors is not None and actors < 1:
            raise UserError("a pool on a Ray cluster needs at least one actor")
        self._dispatcher: Dispatcher[Actor] = Dispatcher(attempts)
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._started: Future[None] = Future()
        self._lock = Lock()  # of `_closed`, so that nothing is queued after the last event
        self._closed = self._stopped = False
        self._tick_seconds = min(5.0, silent_seconds / 4)
        session.join(address, actors or 1)
        self._crew = Crew(
            session.ray(), factory, actors, dict(options or {}), silent_seconds, start_seconds,
            self._events.put, self._on_ready, self._on_lost, self._on_fault,
        )  # fmt: skip
        self._thread = Thread(target=self._work, name="actor-pool", daemon=True)
        self._thread.start()
        try:
            self._started.result(timeout=start_seconds + _SLACK_SECONDS)
        except TimeoutError as error:
            self.close()
            raise UserError("the Ray cluster does not answer: see `ray status`") from error
        except BaseException:
            self.close()
            raise

    def submit(self, *arguments: Any, seconds: float, cost: float = 0.0) -> Future[Any]:
        """Queue a task: `submit(*arguments)` of a worker, whose result the future gets.

        `seconds` is the longest that it takes there, waiting for other tasks aside; an actor that
        takes longer is killed. The most expensive task is done first; equals keep their order.
        The future's exception is the worker's own, or `ActorLost`. It cannot be cancelled.
        """
        task = Task(pickle.dumps(arguments), seconds)
        task.future.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                raise UserError("the pool on the Ray cluster was closed")
            self._events.put(partial(self._dispatcher.add, task, cost))
        return task.future

    def close(self) -> None:
        """Stop all actors; what has no result yet gets `ActorLost`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._events.put(self._stop)
        self._thread.join(timeout=_SLACK_SECONDS)  # longer only where Ray itself stands still
        session.leave()

    def __enter__(self) -> "ActorPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The rest runs in the thread.

    def _work(self) -> None:
        tick_at = 0.0
        while not self._stopped:
            try:
                now = time.monotonic()
                self._end_overdue(now)
                if now >= tick_at:
                    self._tick()
                    tick_at = now + self._tick_seconds
                self._crew.fill()
                self._send()
                self._do_events(min(tick_at, self._dispatcher.next_deadline()))
            except Exception:  # of Ray's: the cluster may come back, and no task may be lost
                _log.exception("the pool on the Ray cluster goes on after an error")
                time.sleep(1.0)

    def _do_events(self, until: float) -> None:
        """Sleep until something happened, or until then; do what happened."""
        try:
            self._events.get(timeout=max(0.0, until - time.monotonic()))()
            while not self._events.empty():
                self._events.get()()
        except queue.Empty:
            pass

    def _tick(self) -> None:
        self._crew.look_after()
        reason = self._crew.missing()
        if reason:
            self._on_fault(reason)
            _fail(self._dispatcher.drain(), reason)

    def _end_overdue(self, now: float) -> None:
        while (call := self._dispatcher.overdue(now)) is not None:
            self._retire(call.actor, guilty=call)
            self._crew.lose(call.actor, "a task took longer than it can")

    def _send(self) -> None:
        while (call := self._dispatcher.next_call(time.monotonic())) is not None:
            try:
                answer = call.actor.handle.call.remote([task.payload for task in call.tasks])
            except Exception as error:  # no connection to the cluster, say
                self._crew.lose(call.actor, reason_of(error))
            else:
                self._crew.when_done(answer, partial(self._got, call))

    def _got(self, call: Call[Actor], answer: Future[list[bytes]]) -> None:
        error = answer.exception()
        if error is not None:
            self._crew.lose(call.actor, reason_of(error))
            return
        tasks = self._dispatcher.finish(call)
        for task, outcome in zip(tasks, answer.result(), strict=bool(tasks)):
            _settle(task, outcome)

    def _on_ready(self, actor: Actor) -> None:
        self._dispatcher.join(actor, actor.place.workers)
        if not self._started.done():
            self._started.set_result(None)

    def _on_lost(self, actor: Actor) -> None:
        self._retire(actor)

    def _on_fault(self, reason: str) -> None:
        if not self._started.done():
            self._started.set_exception(UserError(f"the Ray cluster cannot do the work: {reason}"))

    def _retire(self, actor: Actor, guilty: Call[Actor] | None = None) -> None:
        spent = self._dispatcher.leave(actor, guilty)
        _fail(spent, "each of its actors died, or was killed as it took too long")

    def _stop(self) -> None:
        self._stopped = True
        _fail(self._dispatcher.drain(), "the pool on the Ray cluster was closed")
        self._crew.stop()


def _settle(task: Task, outcome: bytes) -> None:
    """Give a task what `Host.call` returned for it."""
    try:
        succeeded, value = pickle.loads(outcome)
    except Exception as error:  # an exception that cannot be made of its own arguments
        succeeded, value = False, ActorLost(f"a result that cannot be read: {error}")
    if succeeded:
        task.future.set_result(value)
    else:
        task.future.set_exception(value)


def _fail(tasks: Iterable[Task], reason: str) -> None:
    for task in tasks:
        task.future.set_exception(ActorLost(reason))
