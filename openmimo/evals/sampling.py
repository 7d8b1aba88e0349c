"""Sampling a variant's answers: finished ones are graded while others are still decoded."""

from __future__ import annotations

from openmimo.errors import UserError
from openmimo.evals.exam import Exam, key_of
from openmimo.evals.samples import Sample, SampleFile
from openmimo.inference.protocol import Completion, RequestId
from openmimo.model.mimo import MiMo
from openmimo.progress import Progress
from openmimo.rewards.pool import RewardPool
from openmimo.rewards.verdict import Verdict
from openmimo.rollout.driver import REWARD_DEADLINE
from openmimo.runs import Interrupt

LINES = 4
"""Progress lines of one variant."""


def sample_missing(
    name: str, model: MiMo, exam: Exam, file: SampleFile, pool: RewardPool, interrupt: Interrupt
) -> None:
    """Generate and grade every sample that `file` lacks.

    Once an interrupt is requested nothing more is decoded, but what is finished is still graded.
    Whether a sample is there already changes no other one: each has a seed of its own.

    Args:
        name: for the progress lines.
        pool: idle.

    Raises:
        UserError: a prompt does not fit the model, or the verifiers do not answer.
    """
    keys = exam.sample_keys()
    context = model.config.max_position_embeddings
    requests = [exam.request(key, context) for key in keys if key not in file.samples]
    if not requests:
        return
    pool.start_judge()
    engine = exam.engine(model, requests)
    engine.submit(requests)
    grader = _Grader(exam, file, pool)
    decoding = True
    every = max(1, len(keys) // LINES)
    with Progress(name, len(keys), start=len(file.samples), every=every) as progress:
        while decoding or pool.in_flight:
            if decoding:
                for completion in engine.step():
                    grader.submit(completion)
                stats = engine.stats()
                decoding = bool(stats.active or stats.waiting) and not interrupt.requested
            for sample in grader.graded(wait=not decoding):
                file.add(sample)
                progress.step(len(file.samples), pass_rate=grader.pass_rate())


class _Grader:
    """Completions in, samples out."""

    def __init__(self, exam: Exam, file: SampleFile, pool: RewardPool) -> None:
        self._exam, self._pool = exam, pool
        self._completions: dict[RequestId, tuple[Completion, str]] = {}
        known = [s.correct for s in file.samples.values() if s.correct is not None]
        self._right, self._judged = sum(known), len(known)

    def submit(self, completion: Completion) -> None:
        problem, _ = key_of(completion.request_id)
        response = self._exam.tokenizer.decode(completion.token_ids.tolist())
        self._completions[completion.request_id] = completion, response
        self._pool.submit(completion.request_id, self._exam.problems[problem], response)

    def graded(self, wait: bool) -> list[Sample]:
        """The samples whose verdict is known by now; with `wait` at least one, if any is due."""
        if wait and self._pool.in_flight:
            results = self._pool.wait(REWARD_DEADLINE)
            if not results:
                raise UserError(
                    f"the verifiers gave no verdict for {REWARD_DEADLINE:.0f} s; repeat the "
                    "command, it goes on from here"
                )
        else:
            results = self._pool.poll()
        return [self._sample(request_id, result) for request_id, result in results]

    def pass_rate(self) -> float:
        """Share of the judged samples that are right; 0 before the first."""
        return self._right / max(1, self._judged)

    def _sample(self, request_id: RequestId, result: Verdict) -> Sample:
        completion, response = self._completions.pop(request_id)
        problem, number = key_of(request_id)
        correct = None if result.score is None else result.correct
        if correct is not None:
            self._right, self._judged = self._right + correct, self._judged + 1
        return Sample(
            id=problem,
            sample=number,
            response=response,
            tokens=len(completion.token_ids),
            truncated=completion.finish_reason == "length",
            correct=correct,
            status=result.status.value,
            detail=result.detail,
            passed="".join("01"[passed] for passed in result.passed),
        )
