"""Held-out problems, answered with a step's weights in the slots that it leaves idle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from openmimo.config.schema import RLConfig
from openmimo.inference.protocol import Completion, Request, RequestId
from openmimo.inference.sampling import sample_seed
from openmimo.rewards.verdict import Verdict
from openmimo.rollout.background import Background
from openmimo.rollout.records import Prompt
from openmimo.tokenizer import Tokenizer


def validation_prompts(
    heldout: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, config: RLConfig, seed: int
) -> list[Prompt]:
    """`validation_problems` of the held-out problems, one sample each; none without validation.

    The same ones with the same seeds each time, so that two validations differ by the weights
    alone. Only problems of the configured domains; which of them is chance.
    """
    if not config.validate_every:
        return []
    usable = [problem for problem in heldout if problem["domain"] in config.domains]
    order = {problem["id"]: sample_seed(seed, "validation", problem["id"]) for problem in usable}
    chosen = sorted(usable, key=lambda problem: order[problem["id"]])[: config.validation_problems]
    return [
        Prompt(problem, tokenizer.chat_prompt(problem["prompt"]), (order[problem["id"]],))
        for problem in chosen
    ]


class Validation:
    """The validation of one step: give `background` to the step, then read `metrics`.

    Args:
        prompts: of `validation_prompts`.
        request, decode: see `rollout.driver.RolloutDriver`.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        request: Callable[[Prompt, int, RequestId], Request],
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self.background = Background(prompts, request, decode, self._record)
        self._correct: list[bool] = []
        self._tokens: list[int] = []

    def _record(self, _: Prompt, sample: int, completion: Completion, verdict: Verdict) -> None:
        if verdict.score is not None:
            self._correct.append(verdict.correct)
            self._tokens.append(len(completion.token_ids))

    def metrics(self) -> dict[str, float]:
        """Of the answers that could be scored; empty without any."""
        samples = len(self._correct)
        if not samples:
            return {}
        return {
            "validation_pass_rate": sum(self._correct) / samples,
            "validation_samples": samples,
            "validation_length": sum(self._tokens) / samples,
        }
