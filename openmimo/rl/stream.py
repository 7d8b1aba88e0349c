"""Which prompt comes next: shuffled epochs, the easy pool, and drawing that can be undone.

A prompt whose whole group passes teaches nothing now, so it moves to the easy pool; with a small
probability a draw comes from that pool, because dropping easy prompts for good destabilises the
policy (MiMo report, "easy data filter and re-sampling"). A pool prompt that is no longer perfect
returns to the main stream.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from openmimo.errors import UserError


@dataclass(frozen=True)
class Draw:
    """`number` counts draws from 0 over the whole run; `prompt` indexes the problem list."""

    number: int
    prompt: int
    from_pool: bool


@dataclass(frozen=True)
class _Cursor:
    """Position in the main stream (the next place to look at), and the number of the next draw."""

    draws: int = 0
    epoch: int = 0
    offset: int = 0


class PromptStream:
    """An endless stream of prompts with an easy pool; its state is a few integers.

    `draw` hands out prompts provisionally. `commit` settles the outstanding draws: the first ones
    took part in a step and change the pool, the rest are undone and will be drawn again, in order.
    Since undoing rewinds everything, what is drawn after a commit depends on committed results
    alone, not on how far the rollout ran ahead.

    A prompt of the pool is skipped by the main stream, and is out at most once between two commits
    unless the pool is all there is left.
    """

    def __init__(self, size: int, seed: int, easy_share: float = 0.1) -> None:
        """size: number of problems. easy_share: the recipe's alpha, chance of a pool draw."""
        if size < 1:
            raise UserError("there are no problems to train on; check the data stage's output")
        if not 0 <= easy_share < 1:
            raise UserError(f"the easy pool's share is {easy_share}; it must be in [0, 1)")
        self.size = size
        self.seed = seed
        self.easy_share = easy_share
        self._cursor = _Cursor()
        self._pool: dict[int, None] = {}  # a set that keeps the order of insertion
        self._out: list[tuple[Draw, _Cursor]] = []  # each with the cursor just after it

    @property
    def pool_size(self) -> int:
        return len(self._pool)

    @property
    def epoch(self) -> int:
        """Passes over the problems finished by committed draws."""
        return self._cursor.epoch

    def draw(self) -> Draw:
        """The next prompt, outstanding until `commit`."""
        cursor = self._out[-1][1] if self._out else self._cursor
        draw, after = self._from_pool(cursor) or self._from_main(cursor)
        self._out.append((draw, after))
        return draw

    def commit(self, all_passed: Sequence[bool | None]) -> None:
        """Settle the outstanding draws, oldest first; those without an entry are undone.

        An entry says whether the prompt's whole group passed; None (could not be scored) leaves
        the pool as it is. Raises ValueError when there are more entries than outstanding draws.
        """
        if len(all_passed) > len(self._out):
            raise ValueError(f"{len(all_passed)} results for {len(self._out)} outstanding draws")
        for passed, (draw, after) in zip(all_passed, self._out, strict=False):
            self._cursor = after
            if passed:
                self._pool[draw.prompt] = None
            elif passed is not None:
                self._pool.pop(draw.prompt, None)
        self._out.clear()

    def state_dict(self) -> dict[str, Any]:
        """JSON-able state as of the last commit: a step cut short is drawn again, identically."""
        return {
            "size": self.size,
            "seed": self.seed,
            "draws": self._cursor.draws,
            "epoch": self._cursor.epoch,
            "offset": self._cursor.offset,
            "pool": list(self._pool),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; raises UserError if it belongs to other data or another seed."""
        for key, ours in (("size", self.size), ("seed", self.seed)):
            if state[key] != ours:
                raise UserError(
                    f"cannot resume the prompt stream: its {key} was {state[key]} and is now "
                    f"{ours}; use the run's own settings and data, or start a new run folder"
                )
        self._cursor = _Cursor(state["draws"], state["epoch"], state["offset"])
        self._pool = dict.fromkeys(state["pool"])
        self._out.clear()

    def _from_pool(self, cursor: _Cursor) -> tuple[Draw, _Cursor] | None:
        if not self._pool:
            return None
        only_pool = len(self._pool) == self.size
        chance = _random(self.seed, "easy", cursor.draws) / 2**64
        if chance >= self.easy_share and not only_pool:
            return None
        out = {draw.prompt for draw, _ in self._out}
        choices = [prompt for prompt in self._pool if prompt not in out]
        if not choices and only_pool:
            choices = list(self._pool)
        if not choices:
            return None
        pick = _random(self.seed, "pick", cursor.draws) % len(choices)
        draw = Draw(cursor.draws, choices[pick], from_pool=True)
        return draw, replace(cursor, draws=cursor.draws + 1)

    def _from_main(self, cursor: _Cursor) -> tuple[Draw, _Cursor]:
        # Some prompt is outside the pool (see _from_pool), so the search ends within two epochs.
        epoch, offset = cursor.epoch, cursor.offset
        while True:
            if offset == self.size:
                epoch, offset = epoch + 1, 0
            prompt = epoch_order(self.size, self.seed, epoch)[offset]
            offset += 1
            if prompt not in self._pool:
                return Draw(cursor.draws, prompt, from_pool=False), _Cursor(
                    cursor.draws + 1, epoch, offset
                )


@lru_cache(maxsize=2)
def epoch_order(size: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The order of 0..size-1 in an epoch, a pure function of its arguments.

    Sorting by a hash, unlike a library's shuffle, gives the same order on every version.
    """
    return tuple(sorted(range(size), key=lambda index: _random(seed, "epoch", epoch, index)))


def _random(*key: int | str) -> int:
    """64 random bits that depend on `key` alone (a counter-based generator)."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
