"""Which task is on which actor: pure bookkeeping, without Ray, threads or a clock.

Invariant: a task that was added is in exactly one place (waiting, or in one call on one actor)
until `finish`, `leave` or `drain` has handed it out, and it is handed out once.
"""

import heapq
import itertools
import math
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

A = TypeVar("A")  # what stands for an actor, hashable

_CHUNK = 16  # tasks in a call: a call costs Ray a millisecond, and its results come together
_CALL_SECONDS = 600.0  # a call of several tasks may take no longer, so that a hung one is found


@dataclass(eq=False, slots=True)
class Task:
    """`payload` is what the actor gets. `seconds`: the longest it may take there. `deaths`: how
    many actors died that had it."""

    payload: bytes
    seconds: float
    future: Future[Any] = field(default_factory=Future)
    deaths: int = 0


@dataclass(eq=False, frozen=True, slots=True)
class Call(Generic[A]):
    """Tasks that go to an actor together, and when it has to have answered (monotonic seconds)."""

    actor: A
    tasks: tuple[Task, ...]
    deadline: float


@dataclass(eq=False, slots=True)
class _Seat(Generic[A]):
    """An actor that works: how many tasks at once, and the calls it has not answered."""

    workers: int
    calls: dict[Call[A], None] = field(default_factory=dict)  # in the order they were sent
    reserved: bool = False  # for the one task that it has

    @property
    def load(self) -> float:
        """0: idle; 1: no more calls."""
        return len(self.calls) / (self.workers + 1)


class Dispatcher(Generic[A]):
    """Hands waiting tasks to actors, the most expensive first.

    An actor gets one call for each of its workers and one more, which is there when a worker
    becomes free. A call has a share of what waits, up to 16 tasks: many while the queue is long,
    one at its end, so no actor has a pile while others idle (guided self-scheduling,
    Polychronopoulos and Kuck, 1987).

    A task whose actors die is tried `attempts` times. After one death it has a call of its own,
    after half of its attempts an actor, so that a task which kills its actors is known for what it
    is and ends no other.
    """

    def __init__(self, attempts: int = 4) -> None:
        self._attempts = attempts
        self._waiting: list[tuple[float, int, Task]] = []
        self._suspects: deque[Task] = deque()
        self._seats: dict[A, _Seat[A]] = {}
        self._numbers = itertools.count()

    def add(self, task: Task, cost: float = 0.0) -> None:
        """Queue a task; `cost` is in any unit, and equal ones keep their order."""
        heapq.heappush(self._waiting, (-cost, next(self._numbers), task))

    def join(self, actor: A, workers: int) -> None:
        """An actor is ready for work."""
        self._seats[actor] = _Seat(workers)

    def next_call(self, now: float) -> Call[A] | None:
        """What to send now, taken down as sent; None if nothing waits or nobody has room."""
        open_seats = [actor for actor, seat in self._seats.items() if not seat.reserved]
        if not open_seats or not (self._waiting or self._suspects):
            return None
        freest = min(open_seats, key=lambda actor: self._seats[actor].load)
        if self._suspects:
            if not self._seats[freest].calls:
                self._seats[freest].reserved = True
                return self._call(freest, (self._suspects.popleft(),), now)
            open_seats.remove(freest)  # no new work until it is idle
            if not open_seats:
                return None
            freest = min(open_seats, key=lambda actor: self._seats[actor].load)
        if not self._waiting or self._seats[freest].load >= 1:
            return None
        return self._call(freest, self._chunk(), now)

    def finish(self, call: Call[A]) -> tuple[Task, ...]:
        """The tasks of a call that was answered; none if its actor has left before."""
        seat = self._seats.get(call.actor)
        if seat is None or call not in seat.calls:
            return ()
        del seat.calls[call]
        seat.reserved = False
        return call.tasks

    def leave(self, actor: A, guilty: Call[A] | None = None) -> list[Task]:
        """An actor is gone: its tasks wait again, but for those returned, whose attempts are spent.

        The death counts for all of its tasks, or only for those of the `guilty` call.
        """
        seat = self._seats.pop(actor, None)
        if seat is None:
            return []
        spent = []
        for call in seat.calls:
            for task in call.tasks:
                task.deaths += guilty is None or call is guilty
                if task.deaths >= self._attempts:
                    spent.append(task)
                elif task.deaths >= self._attempts // 2:
                    self._suspects.append(task)
                else:  # it has waited once already: before all others
                    self.add(task, math.inf)
        return spent

    def overdue(self, now: float) -> Call[A] | None:
        """A call that should have been answered."""
        return next((call for call in self._calls() if call.deadline <= now), None)

    def next_deadline(self) -> float:
        """When the next call becomes overdue, if it does; infinity if none is out."""
        return min((call.deadline for call in self._calls()), default=math.inf)

    def drain(self) -> list[Task]:
        """All tasks, wherever they are; they are handed out."""
        tasks = [*self._suspects, *(entry[-1] for entry in self._waiting)]
        for call in self._calls():
            tasks += self.finish(call)
        self._suspects.clear()
        self._waiting.clear()
        return tasks

    def _calls(self) -> list[Call[A]]:
        return [call for seat in self._seats.values() for call in seat.calls]

    def _chunk(self) -> tuple[Task, ...]:
        """The next tasks for a call; some must wait."""
        workers = sum(seat.workers for seat in self._seats.values())
        size = min(_CHUNK, math.ceil(len(self._waiting) / (2 * workers)))
        tasks = [heapq.heappop(self._waiting)[-1]]
        seconds = tasks[0].seconds
        while len(tasks) < size and not tasks[0].deaths:
            following = self._waiting[0][-1]
            seconds += following.seconds
            if following.deaths or seconds > _CALL_SECONDS:
                break
            tasks.append(heapq.heappop(self._waiting)[-1])
        return tuple(tasks)

    def _call(self, actor: A, tasks: tuple[Task, ...], now: float) -> Call[A]:
        """The calls of an actor may be answered one after the other."""
        seat = self._seats[actor]
        before = sum(task.seconds for call in seat.calls for task in call.tasks)
        call = Call(actor, tasks, now + before + sum(task.seconds for task in tasks))
        seat.calls[call] = None
        return call
