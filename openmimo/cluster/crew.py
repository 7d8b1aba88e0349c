"""The actors of a pool: where one is wanted, whether it lives, and a new one where it does not.

Actors are not restarted by Ray but made anew here, so each answer belongs to one actor's life.
"""

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import openmimo
from openmimo.cluster.host import Factory, Host

_log = logging.getLogger(__name__)

_CLOSE_SECONDS = 5.0  # for the workers to end in an orderly way
_LONGEST_PAUSE = 60.0  # between attempts to start an actor where that fails


@dataclass(eq=False, slots=True)
class Place:
    """Where an actor is wanted: its options for Ray, and the actor that is there."""

    options: Mapping[str, Any]
    workers: int
    actor: "Actor | None" = None
    failures: int = 0  # starts that failed since the last that did not
    not_before: float = 0.0


@dataclass(eq=False, slots=True)
class Actor:
    """One life of an actor. Times are monotonic seconds; `pinged`: the ping without an answer."""

    place: Place
    handle: Any
    made: float
    ready: bool = False
    pinged: float | None = None


class Crew:
    """Keeps actors alive. For one thread: `later` brings what Ray reports back to it.

    Args:
        ray: the module, connected.
        factory, actors, options, silent_seconds, start_seconds: see `ActorPool`.
        later: called from Ray's threads with what is to be done in ours.
        on_ready, on_lost: told of an actor that can work, and of one that could and is gone.
        on_fault: told why a worker could not be made, which a new attempt may not change.
    """

    def __init__(
        self,
        ray: Any,
        factory: Factory,
        actors: int | None,
        options: Mapping[str, Any],
        silent_seconds: float,
        start_seconds: float,
        later: Callable[[Callable[[], None]], None],
        on_ready: Callable[[Actor], None],
        on_lost: Callable[[Actor], None],
        on_fault: Callable[[str], None],
    ) -> None:
        self._ray, self._factory, self._options = ray, factory, options
        self._silent_seconds, self._start_seconds = silent_seconds, start_seconds
        self._later = later
        self._on_ready, self._on_lost, self._on_fault = on_ready, on_lost, on_fault
        self._host = ray.remote(Host)
        self._each_node = actors is None
        spread = {"num_cpus": 1, "scheduling_strategy": "SPREAD", **options}
        self._places = {str(number): Place(spread, 1) for number in range(actors or 0)}
        self._seen = time.monotonic()  # when an actor last lived
        self._trouble = "no node has room for one"

    def look_after(self) -> None:
        """Find the actors that stand still or whose node is gone. For every few seconds."""
        now = time.monotonic()
        if self._each_node:
            self._follow_nodes()
        for place in list(self._places.values()):
            if place.actor is not None:
                self._check_life(place.actor, now)

    def fill(self) -> None:
        """Make the actors that are missing."""
        now = time.monotonic()
        for place in self._places.values():
            if place.actor is None and now >= place.not_before:
                place.actor = Actor(place, self._host.options(**place.options).remote(), now)
                start = place.actor.handle.start
                reference = start.remote(openmimo.__version__, self._factory, place.workers)
                self.when_done(reference, partial(self._started, place.actor))

    def missing(self) -> str:
        """Why there has been no actor for `start_seconds`; empty if there has been one."""
        now = time.monotonic()
        if any(place.actor is not None and place.actor.ready for place in self._places.values()):
            self._seen = now
        if now - self._seen <= self._start_seconds:
            return ""
        return f"no actor for {self._start_seconds:g} seconds: {self._trouble}"

    def lose(self, actor: Actor, reason: str) -> None:
        """Kill an actor, if it is not dead; `fill` makes the next one."""
        if actor.place.actor is not actor:
            return
        actor.place.actor = None
        if actor.ready:
            self._seen = time.monotonic()
            _log.warning("an actor of the cluster was lost: %s", reason)
            self._on_lost(actor)
        self._ray.kill(actor.handle)

    def when_done(self, reference: Any, event: Callable[[Future[Any]], None]) -> None:
        """Have an event in our thread when Ray has an answer, or knows that none will come."""
        reference.future().add_done_callback(lambda answer: self._later(partial(event, answer)))

    def stop(self) -> None:
        """End all actors, and their workers before, as far as they answer in time."""
        actors = [place.actor for place in self._places.values() if place.actor is not None]
        ends = [actor.handle.close.remote() for actor in actors if actor.ready]
        if ends:
            self._ray.wait(ends, num_returns=len(ends), timeout=_CLOSE_SECONDS)
        for actor in actors:
            self._ray.kill(actor.handle)

    def _follow_nodes(self) -> None:
        alive = {
            node["NodeID"]: int(node["Resources"]["CPU"])
            for node in self._ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU", 0) >= 1
        }
        for node in self._places.keys() - alive.keys():
            place = self._places.pop(node)
            if place.actor is not None:
                self.lose(place.actor, "its node is gone")
        for node in alive.keys() - self._places.keys():
            on = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
            # No CPU: a judge and a verifier, say, are to be on one node.
            here = {"num_cpus": 0, "scheduling_strategy": on(node, soft=False)}
            self._places[node] = Place({**here, **self._options}, alive[node])

    def _check_life(self, actor: Actor, now: float) -> None:
        if not actor.ready:
            if now - actor.made > self._start_seconds:  # or it waits for room, which is no harm
                self.lose(actor, "it did not start")
        elif actor.pinged is None:
            actor.pinged = now
            self.when_done(actor.handle.ping.remote(), partial(self._answered, actor))
        elif now - actor.pinged > self._silent_seconds:
            self.lose(actor, f"no sign of life for {self._silent_seconds:g} seconds")

    def _answered(self, actor: Actor, answer: Future[None]) -> None:
        actor.pinged = None
        error = answer.exception()
        if error is not None:
            self.lose(actor, reason_of(error))

    def _started(self, actor: Actor, answer: Future[None]) -> None:
        place, error = actor.place, answer.exception()
        if place.actor is not actor:
            return
        if error is None:
            actor.ready, place.failures = True, 0
            self._on_ready(actor)
            return
        self._trouble = reason_of(error)
        self.lose(actor, self._trouble)
        place.failures += 1
        place.not_before = time.monotonic() + min(_LONGEST_PAUSE, 2.0**place.failures)
        _log.warning("no worker could be made on the cluster: %s", self._trouble)
        if getattr(error, "cause", None) is not None or getattr(error, "actor_init_failed", False):
            self._on_fault(self._trouble)


def reason_of(error: BaseException) -> str:
    """What went wrong, in a line: of an error of a worker's own its message."""
    error = getattr(error, "cause", None) or error
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
