"""What the samples of a step turned out to be: traces of generated and of real steps.

A trace holds, for each prompt of a step's stream, the length, score and reward time of every
sample. As file it is JSONL: a head, then one line a prompt in stream order.

    {"format": "openmimo-rollout-trace", "prompts_per_step": 32, "group_size": 8}
    {"step": 0, "prompt": "gsm8k/17", "tokens": [81, 95, ...], "scores": [1.0, null, ...],
     "reward_seconds": [0.002, 0.001, ...]}
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from openmimo.errors import UserError
from openmimo.rollout.demand import PassRates, Prospect
from openmimo.rollout.validity import Scores, Validity, passes, valid_by_passrate

FORMAT = "openmimo-rollout-trace"


@dataclass(frozen=True)
class TracePrompt:
    """A prompt's samples: tokens of the answers, scores (None: not scorable), seconds that the
    rewards take; and what earlier visits say of the prompt."""

    key: str
    tokens: tuple[int, ...]
    scores: tuple[float | None, ...]
    reward_seconds: tuple[float, ...]
    prospect: Prospect = field(default_factory=Prospect)

    def as_prospect(self) -> Prospect:
        """What a later step knows from this visit."""
        passed = sum(score is not None and passes(score) for score in self.scores)
        scored = sum(score is not None for score in self.scores)
        return Prospect(passed, scored - passed, sum(self.tokens) / len(self.tokens))


@dataclass(frozen=True)
class StepTrace:
    """One step: prompts in stream order, more than it should need; `history` as the scheduler has
    it from earlier steps."""

    prompts_per_step: int
    group_size: int
    prompts: tuple[TracePrompt, ...]
    history: PassRates | None = None

    def oracle(self, validity: Validity = valid_by_passrate) -> tuple[list[int], int]:
        """The right batch, which is the first valid groups, and how many prompts it takes; of all
        prompts if they hold too few."""
        batch: list[int] = []
        for index, prompt in enumerate(self.prompts):
            if validity(prompt.scores):
                batch.append(index)
                if len(batch) == self.prompts_per_step:
                    return batch, index + 1
        return batch, len(self.prompts)

    def rates(self) -> PassRates:
        """The pass rates of the prompts up to the batch's last, with those of earlier steps."""
        rates = self.history or PassRates(self.group_size)
        for prompt in self.prompts[: self.oracle()[1]]:
            seen = prompt.as_prospect()
            scored = int(seen.passed + seen.failed)
            rates = rates.plus(int(seen.passed), scored, valid_by_passrate(prompt.scores))
        return rates

    def without_visits(self) -> "StepTrace":
        """The same step of a run that has not seen any of its prompts before."""
        prompts = tuple(replace(prompt, prospect=Prospect()) for prompt in self.prompts)
        return replace(self, prompts=prompts)


class TraceWriter:
    """Writes a trace file; to be called by a driver of real steps, in stream order.

    Only groups whose samples all ended should be written, or others would have to be made up.
    """

    def __init__(self, path: Path, prompts_per_step: int, group_size: int) -> None:
        self._group_size = group_size
        self._file = path.open("w", encoding="utf-8")
        head = {"format": FORMAT, "prompts_per_step": prompts_per_step, "group_size": group_size}
        self._file.write(json.dumps(head) + "\n")

    def write(
        self,
        step: int,
        prompt: str,
        tokens: Sequence[int],
        scores: Scores,
        reward_seconds: Sequence[float],
    ) -> None:
        """One group; each sequence has an entry a sample. ValueError if not."""
        lengths = {len(tokens), len(scores), len(reward_seconds)}
        if lengths != {self._group_size}:
            raise ValueError(f"a group of {self._group_size} samples was given {lengths} entries")
        entry = {
            "step": step, "prompt": prompt, "tokens": list(tokens), "scores": list(scores),
            "reward_seconds": [round(seconds, 6) for seconds in reward_seconds],
        }  # fmt: skip
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_trace(path: Path) -> list[StepTrace]:
    """The steps of a trace file.

    A step's stream goes on with the prompts of the steps after it, and of the first ones after the
    last, so that a policy that wants more prompts than the recorded run used gets them. A prompt's
    visits in earlier steps are its prospect.

    Raises:
        UserError: the file is not there or not a trace; with the line that is wrong.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the trace {path}: {error}") from error
    head = _entry(path, 1, lines[0]) if lines else {}
    if head.get("format") != FORMAT:
        raise UserError(f'{path} is no rollout trace: its first line lacks "format": "{FORMAT}"')
    wanted, group_size = _count(path, head, "prompts_per_step"), _count(path, head, "group_size")
    steps: dict[int, list[TracePrompt]] = {}
    visits: dict[str, Prospect] = {}
    for number, line in enumerate(lines[1:], 2):
        step, prompt = _prompt(path, number, _entry(path, number, line), group_size)
        if steps and step < max(steps):
            raise UserError(f"{path}, line {number}: step {step} after step {max(steps)}")
        earlier = visits.get(prompt.key, Prospect())
        steps.setdefault(step, []).append(replace(prompt, prospect=earlier))
        visits[prompt.key] = prompt.as_prospect()
    if not steps:
        raise UserError(f"{path} has no prompts")
    return _streams(list(steps.values()), wanted, group_size)


def _streams(steps: list[list[TracePrompt]], wanted: int, group_size: int) -> list[StepTrace]:
    traces: list[StepTrace] = []
    history: PassRates | None = None
    for number in range(len(steps)):
        stream = [prompt for step in steps[number:] + steps[:number] for prompt in step]
        trace = StepTrace(wanted, group_size, tuple(stream), history)
        traces.append(trace)
        history = trace.rates()
    return traces


def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}, line {number}: not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise UserError(f"{path}, line {number}: not an object")
    return entry


def _count(path: Path, head: dict[str, Any], key: str) -> int:
    value = head.get(key)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{path}, line 1: {key} is {value!r}; it must be a whole number from 1")
    return value


def _prompt(
    path: Path, number: int, entry: dict[str, Any], group_size: int
) -> tuple[int, TracePrompt]:
    where = f"{path}, line {number}"
    missing = {"step", "prompt", "tokens", "scores", "reward_seconds"} - entry.keys()
    if missing:
        raise UserError(f"{where}: lacks {', '.join(sorted(missing))}")
    if not isinstance(entry["step"], int) or entry["step"] < 0:
        raise UserError(f"{where}: step is {entry['step']!r}; it must be a whole number from 0")
    for key in ("tokens", "scores", "reward_seconds"):
        values = entry[key]
        if not isinstance(values, list) or len(values) != group_size:
            raise UserError(f"{where}: {key} must be a list of {group_size}, one for each sample")
        for value in values:
            if value is None and key == "scores":
                continue
            if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise UserError(f"{where}: {key} has {value!r}; it must be a number from 0")
    if min(entry["tokens"]) < 1 or any(not isinstance(count, int) for count in entry["tokens"]):
        raise UserError(f"{where}: tokens must be whole numbers from 1")
    return entry["step"], TracePrompt(
        str(entry["prompt"]),
        tuple(entry["tokens"]),
        tuple(entry["scores"]),
        tuple(entry["reward_seconds"]),
    )
