"""Which source the next document comes from.

A mixture's weights are shares of tokens. The source furthest behind its share goes next, so the
realised shares follow the weights from the first document on, with no random numbers, and the only
state is the number of tokens read from each source.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from openmimo.errors import UserError


class MixtureOrder:
    """Chooses sources by the largest deficit, in exact integer arithmetic.

    With documents of at most D tokens, and N sources of positive weight, every source holds
    to the end `tokens <= share * total + D` and `tokens >= share * total - (N - 1) * D`.

    weights: a number >= 0 for each source; they need not sum to 1. A source of weight 0 is never
    chosen. Raises UserError for a negative or non-finite weight, and if none is positive.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        for source, weight in weights.items():
            if not math.isfinite(weight) or weight < 0:
                raise UserError(f"mixture weight of {source!r} must be >= 0, got {weight}")
        if not any(weights.values()):
            raise UserError(f"no source of the mixture has a positive weight: {dict(weights)}")
        # The shortest decimal of each float, 0.7 = 7/10, makes small integers of usual weights.
        exact = {source: Fraction(repr(float(weight))) for source, weight in weights.items()}
        scale = math.lcm(*(weight.denominator for weight in exact.values()))
        self._parts = {source: int(weight * scale) for source, weight in exact.items()}
        self._whole = sum(self._parts.values())

    def next_source(self, tokens_so_far: Mapping[str, int]) -> str:
        """Return the source furthest behind its share; on a tie, the first of the weights.

        tokens_so_far: tokens read from each source since this mixture began; a source left out
        counts as 0. Raises UserError for a source that has no weight here.
        """
        self._check(tokens_so_far)
        total = sum(tokens_so_far.values())

        def deficit(source: str) -> int:
            return self._parts[source] * total - self._whole * tokens_so_far.get(source, 0)

        return max((s for s, part in self._parts.items() if part), key=deficit)

    def _check(self, tokens_so_far: Mapping[str, int]) -> None:
        if unknown := sorted(set(tokens_so_far) - set(self._parts)):
            raise UserError(
                f"the mixture has no weight for {unknown[0]!r}; it has {', '.join(self._parts)}"
            )
