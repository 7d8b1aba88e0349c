"""Which prompts a step samples, and what it learns of them: all that RL keeps but the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from openmimo.config.schema import RLConfig
from openmimo.errors import UserError
from openmimo.inference.sampling import sample_seed
from openmimo.rl.stream import Draw, PromptStream
from openmimo.rl.visits import Visits
from openmimo.rollout.demand import PassRates
from openmimo.rollout.records import Prompt, Rollout

HISTORY = 4
"""Batches' worth of groups that the pass rates remember across steps."""


class Curriculum:
    """The stream of prompts, and the history that predicts how many of them a step needs.

    Args:
        problems: to train on. prompt_ids: their prompts' tokens.
        seed: of the run.

    rates: pass rates of the latest steps.
    """

    def __init__(
        self,
        problems: Sequence[Mapping[str, Any]],
        prompt_ids: Sequence[Sequence[int]],
        config: RLConfig,
        seed: int,
    ) -> None:
        self.problems, self._prompt_ids = problems, prompt_ids
        self._config, self._seed = config, seed
        self._stream = PromptStream(len(problems), seed, config.easy_share)
        self._visits = Visits()
        self._draws: list[Draw] = []
        self._short = 0
        self.rates = PassRates(config.group_size)

    def draw(self) -> Prompt:
        """The next prompt in selection order."""
        drawn = self._stream.draw()
        self._draws.append(drawn)
        numbers = range(self._config.group_size)
        seeds = [sample_seed(self._seed, drawn.number, n) for n in numbers]
        ids = self._prompt_ids[drawn.prompt]
        return Prompt(self.problems[drawn.prompt], ids, seeds, self._visits.prospect(drawn.prompt))

    def commit(self, rollout: Rollout) -> list[Draw]:
        """Learn from a step; prompts drawn beyond its committed groups will be drawn again.

        Returns:
            its draws; the first ones are the committed groups'.

        Raises:
            UserError: `max_short_steps` steps in a row found too few valid groups.
        """
        draws, self._draws = self._draws, []
        self._stream.commit(rollout.done.all_passed)
        self._visits.record([drawn.prompt for drawn in draws], rollout.groups)
        memory = HISTORY * self._config.prompts_per_step
        self.rates = rollout.learn(self.rates).limited(memory)
        self._short = self._short + 1 if rollout.done.short else 0
        if self._short >= self._config.max_short_steps:
            raise UserError(
                f"RL: {self._short} steps in a row found fewer than "
                f"{self._config.prompts_per_step} prompts that are neither solved nor "
                "failed by the whole group: the problems are too easy or too hard for this model"
            )
        return draws

    def metrics(self) -> dict[str, int]:
        """Where the stream is."""
        return {"easy_pool_size": self._stream.pool_size, "epoch": self._stream.epoch}

    def state_dict(self) -> dict[str, Any]:
        """JSON-able, as of the last commit."""
        return {
            "stream": self._stream.state_dict(),
            "rates": asdict(self.rates),
            "visits": self._visits.state_dict(),
            "short": self._short,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._stream.load_state_dict(state["stream"])
        self.rates = PassRates(**state["rates"])
        self._visits.load_state_dict(state["visits"])
        self._short = state["short"]
