"""What each prompt's last visit showed: for predicting the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openmimo.rollout.demand import Prospect
from openmimo.rollout.records import Group
from openmimo.rollout.validity import passes


class Visits:
    """The last committed group of every prompt: samples passed and failed, mean length."""

    def __init__(self) -> None:
        self._last: dict[int, Prospect] = {}
        self._mean_tokens: float | None = None

    def prospect(self, prompt: int) -> Prospect:
        """What is known of a prompt (its index in the list of problems). One that was never seen
        is expected to have answers as long as the others'."""
        return self._last.get(prompt) or Prospect(tokens=self._mean_tokens)

    def record(self, prompts: Sequence[int], groups: Sequence[Group]) -> None:
        """Committed groups, and the prompts that they are of: the first of `prompts`."""
        for prompt, group in zip(prompts, groups, strict=False):
            scored = [score for score in group.scores if score is not None]
            lengths = [len(c.token_ids) for c in group.completions if c is not None]
            if scored and lengths:
                passed = sum(map(passes, scored))
                mean = sum(lengths) / len(lengths)
                self._last[prompt] = Prospect(passed, len(scored) - passed, mean)
        self._average()

    def state_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {str(k): [p.passed, p.failed, p.tokens] for k, p in self._last.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self._last = {int(prompt): Prospect(*values) for prompt, values in state.items()}
        self._average()

    def _average(self) -> None:
        lengths = [last.tokens for last in self._last.values() if last.tokens is not None]
        self._mean_tokens = sum(lengths) / len(lengths) if lengths else None
