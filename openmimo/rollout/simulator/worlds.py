"""Generated traces: pass rates, lengths and reward times drawn from a few stated distributions."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from openmimo.rollout.demand import PassRates, Prospect
from openmimo.rollout.simulator.trace import StepTrace, TracePrompt

Floats = np.ndarray


@dataclass(frozen=True)
class World:
    """Distributions of what prompts and answers are like.

    prompts_per_step, group_size: of the step.
    valid_rate, pass_rate: pass rates of prompts are Beta-distributed with the mean `pass_rate` and
        so that a group has both outcomes with chance `valid_rate`, if no answer is cut.
    median_tokens: of an answer to a prompt of middling difficulty. Lengths are log-normal:
        `between` is the deviation of the log between prompts alike in difficulty, `within` that
        between samples of a prompt, `difficulty` the difference of the log between the prompts that
        always fail and those that always pass.
    max_tokens: longer answers are cut there, and fail.
    reward_seconds: median time of a reward of mathematics; log-normal, `reward_spread`.
    code_share, code_seconds: prompts that are code, and the median time of their rewards.
    visited: share of the prompts that an earlier policy sampled `group_size` times; since then
        the logit of the pass rate and the log of the length moved by normal `drift`.
    stream: prompts of a step's stream, in batches.
    """

    prompts_per_step: int = 512
    group_size: int = 16
    valid_rate: float = 0.407
    pass_rate: float = 0.5
    median_tokens: float = 3000.0
    between: float = 0.5
    within: float = 0.4
    difficulty: float = 1.0
    max_tokens: int = 32768
    reward_seconds: float = 0.1
    reward_spread: float = 1.0
    code_share: float = 0.25
    code_seconds: float = 1.0
    visited: float = 1.0
    drift: float = 0.3
    stream: int = 8

    def step(self, seed: int) -> StepTrace:
        """A step's trace, its history that of the step before it. Deterministic in the seed."""
        before = self._trace(np.random.default_rng([seed, 0]), None)
        return self._trace(np.random.default_rng([seed, 1]), before.rates())

    @cached_property
    def beta(self) -> tuple[float, float]:
        """(a, b) of the distribution of pass rates."""
        many = 1e9  # as if so many groups had been seen
        return PassRates(
            self.group_size, many, many * self.pass_rate, many * self.valid_rate
        ).belief

    def _trace(self, rng: np.random.Generator, history: PassRates | None) -> StepTrace:
        count = self.prompts_per_step * self.stream
        rates = rng.beta(*self.beta, count)
        level = self._level(rng, rates)
        earlier = self._visits(rng, rates, level)
        tokens, passed = self._samples(rng, rates, level)
        code = rng.random(count) < self.code_share
        median = np.where(code, self.code_seconds, self.reward_seconds)[:, None]
        seconds = median * np.exp(self.reward_spread * rng.standard_normal(tokens.shape))
        prompts = tuple(
            TracePrompt(
                str(index), tuple(tokens[index].tolist()), tuple(passed[index].tolist()),
                tuple(seconds[index].tolist()), earlier[index],
            )
            for index in range(count)
        )  # fmt: skip
        return StepTrace(self.prompts_per_step, self.group_size, prompts, history)

    def _level(self, rng: np.random.Generator, rates: Floats) -> Floats:
        """The log of each prompt's median length."""
        spread = self.between * rng.standard_normal(len(rates))
        return np.log(self.median_tokens) + self.difficulty * (0.5 - rates) + spread

    def _samples(
        self, rng: np.random.Generator, rates: Floats, level: Floats
    ) -> tuple[Floats, Floats]:
        """Lengths and scores of each prompt's samples, [prompts, group_size]."""
        shape = (len(rates), self.group_size)
        lengths = np.exp(level[:, None] + self.within * rng.standard_normal(shape))
        cut = lengths >= self.max_tokens
        tokens = np.clip(np.ceil(lengths), 1, self.max_tokens).astype(int)
        return tokens, ((rng.random(shape) < rates[:, None]) & ~cut).astype(float)

    def _visits(self, rng: np.random.Generator, rates: Floats, level: Floats) -> list[Prospect]:
        """What an earlier policy's samples said of each prompt."""
        odds = np.log(rates + 1e-12) - np.log1p(1e-12 - rates)
        moved = odds + self.drift * rng.standard_normal(len(rates))
        level = level + self.drift * rng.standard_normal(len(rates))
        tokens, passed = self._samples(rng, 1 / (1 + np.exp(-moved)), level)
        known = rng.random(len(rates)) < self.visited
        right, mean = passed.sum(1), tokens.mean(1)
        return [
            Prospect(float(right[index]), self.group_size - float(right[index]), float(mean[index]))
            if known[index]
            else Prospect()
            for index in range(len(rates))
        ]
