"""How fast an engine decodes, and one that does so on a virtual clock."""

import heapq
from dataclasses import dataclass
from functools import cached_property

from openmimo.errors import UserError


@dataclass(frozen=True)
class EngineSpeed:
    """Seconds of a decode step: `base` + `per_row` * rows; each row gets one token.

    With drafts a step costs `draft_cost` * `base` more and reads two places a row, and gives
    1 + `acceptance` tokens a row in the mean. It is taken where it is faster: up to some number of
    rows, the break-even.

    slots: samples decoded at once. prefill: seconds to read a prompt that the engine does not hold,
    in which nothing is decoded.
    """

    base: float
    per_row: float
    slots: int
    prefill: float = 0.0
    acceptance: float = 0.0
    draft_cost: float = 0.0

    def __post_init__(self) -> None:
        if self.base <= 0 or self.per_row < 0 or self.slots < 1:
            raise UserError(f"no engine has base {self.base}, per_row {self.per_row}, "
                            f"slots {self.slots}")  # fmt: skip
        if not 0 <= self.acceptance <= 1:
            raise UserError(f"acceptance is {self.acceptance}; it must be between 0 and 1")

    def rate(self, rows: int) -> float:
        """Tokens a second of each of so many rows."""
        return self._rates[rows]

    def seconds(self, longest: float, tokens: float) -> float:
        """For samples of `tokens` tokens in all that start together, the longest with `longest`."""
        plain = self.base * longest + self.per_row * tokens
        drafting = self.base * (1 + self.draft_cost) * longest + 2 * self.per_row * tokens
        return min(plain, drafting / (1 + self.acceptance))

    @cached_property
    def _rates(self) -> list[float]:
        rates = [0.0]
        for rows in range(1, self.slots + 1):
            plain = 1 / (self.base + self.per_row * rows)
            step = self.base * (1 + self.draft_cost) + 2 * self.per_row * rows
            rates.append(max(plain, (1 + self.acceptance) / step) if self.acceptance else plain)
        return rates

    @property
    def break_even(self) -> int:
        """The most rows for which drafts pay, at most `slots`; 0 without them."""
        plain = [1 / (self.base + self.per_row * rows) for rows in range(1, self.slots + 1)]
        return sum(rate > slow for rate, slow in zip(self._rates[1:], plain, strict=True))

    @cached_property
    def throughput(self) -> float:
        """Most tokens a second of all rows together."""
        return max(rows * rate for rows, rate in enumerate(self._rates))


class SimulatedEngine:
    """Decodes all its rows in lockstep: what a row needs is counted in tokens of a common clock."""

    def __init__(self, speed: EngineSpeed, now: float = 0.0) -> None:
        """`now`: the time from which it is there."""
        self.speed = speed
        self._rows: list[tuple[float, int, int, int]] = []  # heap: clock at the end, serial, sample
        self._live: dict[tuple[int, int], tuple[int, float]] = {}  # of a sample: serial, its start
        self._prompts: set[int] = set()  # read and still held
        self._clock = 0.0  # tokens that each row has got since the beginning
        self._now = now  # when it stood so; later than the present while something else is done
        self._serial = 0

    @property
    def rows(self) -> list[tuple[int, int]]:
        """(prompt, sample) of what is decoded."""
        return list(self._live)

    def advance(self, now: float) -> None:
        """Decode until `now`; no row may end before."""
        if now > self._now:
            if self._live:
                self._clock += (now - self._now) * self.speed.rate(len(self._live))
            self._now = now

    def pause(self, now: float, seconds: float) -> float:
        """Do something else for so long, after what is done besides already; returns the end."""
        self.advance(now)
        self._now += seconds
        return self._now

    def start(self, prompt: int, sample: int, tokens: int, now: float) -> None:
        """Decode a sample of `tokens` tokens."""
        self.advance(now)
        if prompt not in self._prompts:
            self._prompts.add(prompt)
            self._now += self.speed.prefill
        self._serial += 1
        self._live[prompt, sample] = (self._serial, self._clock)
        heapq.heappush(self._rows, (self._clock + tokens, self._serial, prompt, sample))

    def next_end(self) -> float | None:
        """When the next row ends, if nothing changes."""
        rows = self._rows
        while rows and self._live.get((rows[0][2], rows[0][3]), (0, 0.0))[0] != rows[0][1]:
            heapq.heappop(rows)
        if not rows:
            return None
        left = max(0.0, rows[0][0] - self._clock)
        return self._now + left / self.speed.rate(len(self._live))

    def finish(self, now: float) -> tuple[int, int]:
        """The row that ends at `now`, which `next_end` has given."""
        self.advance(now)
        end, _, prompt, sample = heapq.heappop(self._rows)
        self._clock = end  # free of rounding
        del self._live[prompt, sample]
        return prompt, sample

    def stop(self, prompt: int, sample: int, now: float) -> int:
        """Take a row out; returns the tokens it has got."""
        self.advance(now)
        _, begun = self._live.pop((prompt, sample))
        return int(self._clock - begun + 1e-6)  # whole tokens, but for rounding
