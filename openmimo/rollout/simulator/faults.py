"""What goes wrong in a simulated step: engines restart, rewards hang."""

import random
from collections.abc import Iterator
from typing import Literal


class NoFaults:
    """Nothing goes wrong."""

    max_losses = 3

    def crashes(self, engines: int) -> Iterator[tuple[float, int, float]]:
        """Time, engine and seconds until it is there again, for each crash."""
        return iter(())

    def reward_seconds(self, prompt: int, sample: int, attempt: int, seconds: float) -> float:
        """How long this attempt at a reward keeps its worker, if it would take `seconds`."""
        return seconds

    def reward_outcome(
        self, prompt: int, sample: int, attempt: int
    ) -> Literal["score", "again", "none"]:
        """What comes of it: the score, another attempt elsewhere, or no score at all."""
        return "score"


class Faults(NoFaults):
    """Faults at random, the same for the same seed, whatever else happens.

    Args:
        seed: of what happens when.
        seconds_between: mean time between two crashes of one engine, which is away for
            `restart_seconds`; its rows are lost.
        hung: share of attempts at a reward that hang, or whose worker dies. They end at `deadline`
            seconds; another worker tries again, `attempts` times in all.
    """

    max_losses = 10**9  # each loss is the engine's fault, not the sample's

    def __init__(
        self,
        seed: int,
        seconds_between: float,
        restart_seconds: float,
        hung: float,
        deadline: float,
        attempts: int = 2,
    ) -> None:
        self._seed = seed
        self._between, self._restart = seconds_between, restart_seconds
        self._hung, self._deadline, self._attempts = hung, deadline, attempts

    def crashes(self, engines: int) -> Iterator[tuple[float, int, float]]:
        for engine in range(engines):
            rnd = random.Random(f"{self._seed} {engine}")
            time = 0.0
            for _ in range(20):  # a step that sees them all has ended long since
                time += rnd.expovariate(1 / self._between)
                yield time, engine, self._restart
                time += self._restart

    def reward_seconds(self, prompt: int, sample: int, attempt: int, seconds: float) -> float:
        return self._deadline if self._hangs(prompt, sample, attempt) else seconds

    def reward_outcome(
        self, prompt: int, sample: int, attempt: int
    ) -> Literal["score", "again", "none"]:
        if not self._hangs(prompt, sample, attempt):
            return "score"
        return "again" if attempt < self._attempts else "none"

    def _hangs(self, prompt: int, sample: int, attempt: int) -> bool:
        key = f"{self._seed} {prompt} {sample} {attempt}"
        return random.Random(key).random() < self._hung
