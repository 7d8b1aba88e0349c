"""How many tokens to draft in the next step: whatever measured fastest. No clock, no torch.

A step with k drafts takes longer than a plain one and yields 1 + A_1 + .. + A_k tokens a row, A_j
being the share of steps whose first j drafts are right. Which k yields most a second depends on the
machine, the model, the number of rows and the text, so it is measured while the engine works:
durations for each power of two of rows, acceptance as a running mean. The other choices are tried
again and again. All losses against plain decoding are paid from a budget, which gets a small share
of the time (`SHARE`, and `LOAN` once) and what drafting saves. Without budget nothing is drafted.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

SHARE = 0.015
"""Share of the decoding time that may be lost."""
LOAN = 0.2
"""Seconds that may be lost beyond that, once, so that short answers profit too."""
PURSE = 1.0
"""Most seconds in the budget, or else the duration of a hundred steps."""
TRIAL = 3
"""Steps of a trial, and fewest durations to judge by."""
MEMORY = 12
"""Durations that are remembered of each choice."""
MARGIN = 1.02
"""Drafting has to be this much faster than not drafting."""
DECAY = 0.98
"""Weight that acceptance of one step keeps in the next."""
PRIOR = 2.0
"""Drafts' worth of a hopeful guess, so that a choice is not given up after a few wrong drafts."""
AGE = 200
"""Steps after which a duration is measured again."""


@dataclass
class _Durations:
    """Of one number of drafts at about one number of rows. seconds: latest last."""

    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=MEMORY))
    last_step: int = 0

    @property
    def known(self) -> bool:
        return len(self.seconds) >= TRIAL

    @property
    def typical(self) -> float:
        return statistics.median(self.seconds)


class DraftPolicy:
    """Chooses 0 to `drafts` drafts.

    saved_seconds: estimated gain over a plain step for every token, trials included.
    """

    def __init__(self, drafts: int) -> None:
        self.saved_seconds = 0.0
        self._durations: dict[int, list[_Durations]] = {}
        self._drafts = drafts
        # Of the latest steps, weighted: draft j had all before it right; it was right as well.
        self._reached = [0.0] * drafts
        self._right = [0.0] * drafts
        self._budget = LOAN
        self._step = 0
        self._trial: list[int] = []

    def choose(self, rows: int, backlog: Sequence[float]) -> int:
        """The number of drafts for a step with `rows` rows.

        Args:
            backlog: [drafts + 1], seconds of work that k drafts would first have to make up for.
        """
        table = self._table(rows)
        if self._trial:
            return self._trial.pop()
        if not table[0].known:
            return 0
        best = self._best(table)
        for k in sorted(range(len(table)), key=lambda k: table[k].last_step):
            due = not table[k].known or self._step - table[k].last_step > AGE
            if k != best and due and self._price(table, k, best) + backlog[k] <= self._budget:
                self._doubt()
                # A trial's first step may be unlike the others: it makes up for the backlog.
                self._trial = [k] * (TRIAL - 1 if table[k].known else TRIAL)
                return k
        return best if backlog[best] < self._budget else 0

    def _doubt(self) -> None:
        """Before a trial: what was seen of the acceptance long ago counts for less."""
        self._reached = [0.5 * reached for reached in self._reached]
        self._right = [0.5 * right for right in self._right]

    def record(self, rows: int, drafts: int, seconds: float, accepted: Sequence[int]) -> None:
        """A step took `seconds`.

        Args:
            accepted: [drafts], in how many rows draft j and all before it were right.
        """
        self._step += 1
        table = self._table(rows)
        table[drafts].seconds.append(seconds)
        table[drafts].last_step = self._step
        reached = float(rows)
        for j, right in enumerate(accepted):
            self._reached[j] = DECAY * self._reached[j] + reached
            self._right[j] = DECAY * self._right[j] + right
            reached = right
        self._budget += SHARE * seconds
        if not table[0].known:
            return
        tokens = 1 + sum(accepted) / rows
        # A step that was held up by something else says nothing about drafting.
        seconds = table[drafts].typical
        saved = tokens * table[0].typical - seconds
        best = self._best(table)
        if drafts:
            self.saved_seconds += saved
        if drafts != best:
            self._budget -= max(seconds - tokens / self._speed(table, best), 0.0)
        elif drafts:
            self._budget += saved
        self._budget = min(self._budget, max(PURSE, 100 * seconds))

    def spend(self, seconds: float) -> None:
        """Time that went into making up for steps without drafts."""
        self._budget -= seconds
        self.saved_seconds -= seconds

    def _table(self, rows: int) -> list[_Durations]:
        size = rows.bit_length()
        if size not in self._durations:
            self._durations[size] = [_Durations() for _ in range(self._drafts + 1)]
        return self._durations[size]

    def _yield(self, drafts: int) -> float:
        """Expected tokens a row and step."""
        total, through = 1.0, 1.0
        for j in range(drafts):
            through *= (self._right[j] + PRIOR * 0.7) / (self._reached[j] + PRIOR)
            total += through
        return total

    def _speed(self, table: list[_Durations], drafts: int) -> float:
        return self._yield(drafts) / table[drafts].typical

    def _best(self, table: list[_Durations]) -> int:
        measured = [k for k in range(1, len(table)) if table[k].known]
        best = max(measured, key=lambda k: self._speed(table, k), default=0)
        return best if best and self._speed(table, best) > MARGIN * self._speed(table, 0) else 0

    def _price(self, table: list[_Durations], drafts: int, best: int) -> float:
        """Expected loss of a trial against going on with `best`, in seconds."""
        guess = (2 + drafts) * table[0].typical  # on the dear side
        step = table[drafts].typical if table[drafts].known else guess
        return TRIAL * max(0.0, step - self._yield(drafts) / self._speed(table, best))
