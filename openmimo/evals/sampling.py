"""Sampling a variant's answers: finished ones are graded while others are still decoded."""

from __future__ import annotations

from dataclasses import dataclass, replace

from openmimo.config.schema import ComputeConfig
from openmimo.evals.exam import Exam, SampleKey
from openmimo.evals.samples import Sample, SampleFile
from openmimo.inference.protocol import Completion, Request, RequestId
from openmimo.model.mimo import MiMo
from openmimo.progress import Progress
from openmimo.rewards.pool import RewardPool
from openmimo.rewards.verdict import Verdict
from openmimo.rollout.driver import Patience, RolloutDriver
from openmimo.rollout.engines import open_engines
from openmimo.rollout.records import Prompt
from openmimo.rollout.validation import answer_all
from openmimo.runs import Interrupt

LINES = 4
"""Progress lines of one variant."""
HERE = ComputeConfig()


@dataclass(frozen=True)
class _Question(Prompt):
    """One sample of the exam."""

    key: SampleKey = ("", 0)


def sample_missing(
    name: str,
    model: MiMo,
    exam: Exam,
    file: SampleFile,
    pool: RewardPool,
    interrupt: Interrupt,
    compute: ComputeConfig = HERE,
) -> None:
    """Generate and grade every sample that `file` lacks.

    Once an interrupt is requested nothing more is decoded, but what is finished is still graded.
    Whether a sample is there already changes no other one: each has a seed of its own.

    Args:
        name: for the progress lines.
        compute: where it is generated (`compute.rollouts`).

    Raises:
        UserError: a prompt does not fit the model, or the engine or the verifiers stand still.
    """
    keys = exam.sample_keys()
    context = model.config.max_position_embeddings
    requests = {key: exam.request(key, context) for key in keys if key not in file.samples}
    if not requests:
        return
    pool.start_judge()
    settings = exam.engine_settings(list(requests.values()))
    questions = [
        _Question(exam.problems[key[0]], request.prompt_ids, (request.seed,), key=key)
        for key, request in requests.items()
    ]
    known = [s.correct for s in file.samples.values() if s.correct is not None]
    right, judged = sum(known), len(known)
    every = max(1, len(keys) // LINES)

    def request_of(prompt: Prompt, sample: int, request_id: RequestId) -> Request:
        assert isinstance(prompt, _Question)
        return replace(requests[prompt.key], id=request_id)

    patience = Patience.beyond(pool.longest(exam.problems.values()), pool.at_once)
    with (
        Progress(name, len(keys), start=len(file.samples), every=every) as progress,
        open_engines(compute, settings, model) as seats,
        RolloutDriver(seats, pool, exam.tokenizer.decode, request_of, patience=patience) as driver,
    ):
        driver.update_weights(dict(model.state_dict()))

        def save(prompt: Prompt, _: int, completion: Completion, verdict: Verdict) -> None:
            nonlocal right, judged
            assert isinstance(prompt, _Question)
            response = exam.tokenizer.decode(completion.token_ids.tolist())
            sample = _sample(prompt.key, completion, response, verdict)
            if sample.correct is not None:
                right, judged = right + sample.correct, judged + 1
            file.add(sample)
            progress.step(len(file.samples), pass_rate=right / max(1, judged))

        answer_all(driver, questions, save, interrupt)


def _sample(key: SampleKey, completion: Completion, response: str, verdict: Verdict) -> Sample:
    problem, number = key
    return Sample(
        id=problem,
        sample=number,
        response=response,
        tokens=len(completion.token_ids),
        truncated=completion.finish_reason == "length",
        correct=None if verdict.score is None else verdict.correct,
        status=verdict.status.value,
        detail=verdict.detail,
        passed="".join("01"[passed] for passed in verdict.passed),
    )
