"""One prompt's samples on their way through a step."""

from openmimo.rollout.events import Event, Scored


class Group:
    """A launched prompt. Each of its samples is in one of `waiting` (for a slot), `generating`,
    `scoring` (also while it waits for a barrier) and `_scores`.

    valid: sure to be, whatever the samples still to come.
    spare: launched though enough groups were expected to be valid without it.
    tokens: expected length of an answer; None: nothing is known of the prompt.
    """

    __slots__ = (
        "_losses", "_scores", "aborted", "generating", "scoring", "spare", "tokens", "valid",
        "waiting",
    )  # fmt: skip

    def __init__(self, size: int, tokens: float | None) -> None:
        self.waiting = set(range(size))
        self.generating: set[int] = set()
        self.scoring: set[int] = set()
        self._scores: dict[int, float | None] = {}
        self._losses: dict[int, int] = {}
        self.tokens = tokens
        self.valid = self.aborted = self.spare = False

    @property
    def left(self) -> int:
        """Samples without a score."""
        return len(self.waiting) + len(self.generating) + len(self.scoring)

    @property
    def finished(self) -> bool:
        return not self.left

    @property
    def failed(self) -> bool:
        """Whether too few samples have a score to say anything of the prompt."""
        scored = sum(score is not None for score in self._scores.values())
        return self.finished and scored < min(2, len(self._scores))

    def in_order(self) -> list[float | None]:
        """Scores received so far, by sample number."""
        return [self._scores[sample] for sample in sorted(self._scores)]

    def begin(self, sample: int) -> None:
        self.waiting.remove(sample)
        self.generating.add(sample)

    def move(self, event: Event, source: set[int], target: set[int]) -> None:
        """Move an event's sample; ValueError if it is not where the event says."""
        if event.sample not in source:
            raise ValueError(f"{event} is about a sample in another state")
        source.remove(event.sample)
        target.add(event.sample)

    def take_score(self, event: Scored, score: float | None) -> None:
        if event.sample not in self.scoring:
            raise ValueError(f"{event} is about a sample in another state")
        self.scoring.remove(event.sample)
        self._scores[event.sample] = score

    def lose(self, sample: int) -> int:
        """How often the sample was lost by now."""
        self._losses[sample] = self._losses.get(sample, 0) + 1
        return self._losses[sample]

    def was_lost(self, sample: int) -> bool:
        return sample in self._losses

    def give_up(self, sample: int) -> None:
        """Nothing can generate the sample: it counts as unscorable."""
        self.waiting.remove(sample)
        self._scores[sample] = None
