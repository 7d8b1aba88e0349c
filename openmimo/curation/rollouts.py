"""How often a model solves each problem: sampled answers, each verified.

An answer is kept by what it depends on: the problem's content, the model's files, the sampling. So
a killed process goes on where it was, and of a changed problem set only new problems are answered.
Problems are read one by one, as the engine has room.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from openmimo.curation.formats import Problem
from openmimo.curation.golden import TEST_MEMORY_MB
from openmimo.curation.journal import Journal, problem_key
from openmimo.curation.keep import Outcomes
from openmimo.curation.solver import Sampling, Solver
from openmimo.errors import UserError
from openmimo.inference.choose import open_engine
from openmimo.inference.protocol import Completion, InferenceEngine, Request
from openmimo.inference.sampling import sample_seed
from openmimo.judge.connect import LOCAL
from openmimo.model.checkpoint import load_config
from openmimo.progress import Progress
from openmimo.rewards.code import program_limits
from openmimo.rewards.grading import ALL_TESTS
from openmimo.rewards.pool import RewardPool
from openmimo.rewards.verdict import Verdict
from openmimo.rewards.verdict_cache import verdict_of
from openmimo.runs import Interrupt
from openmimo.tokenizer import Tokenizer

SLOTS = 256
"""Answers generated at once. As many more may wait for the engine, and twice as many for their
verdicts, before more problems are read."""
REWARD_DEADLINE = 120.0
"""Seconds to wait for a verdict, beyond what the longest program may run."""
LINES = 10
"""Progress lines of one model."""
JUDGED_BY = ("domain", "prompt", "answer", "tests", "entry_point")
"""Fields of a problem that an answer and its verdict depend on."""


class _Task(NamedTuple):
    """One answer that is to be sampled. `key`: of the journal."""

    key: str
    problem: Problem
    sample: int
    prompt: list[int]


class _Answer(NamedTuple):
    """What came back, as tokens and as text."""

    task: _Task
    completion: Completion
    text: str


def open_journal(path: Path) -> Journal:
    """The answers of one solver; in memory are their verdicts alone."""
    return Journal(path, "correct", "passed")


def roll_out(
    name: str,
    solver: Solver,
    problems: Iterable[Problem],
    sampling: Sampling,
    journal: Journal,
    interrupt: Interrupt,
    judge_at: str = LOCAL,
) -> dict[str, Outcomes]:
    """Let a model answer all problems as often as the journal lacks; outcomes by problem id.

    A prompt that leaves the model no room for an answer gets no rollout. An answer that could not
    be judged says nothing, and is sampled again by the next call.

    Args:
        name: for the progress lines.
        problems: iterated over several times.
        judge_at: where programs are judged, see `open_judge`.

    Raises:
        UserError: no such model or engine, the judge cannot run here, or nothing comes back.
    """
    rollouts = _Rollouts(name, solver, problems, sampling, journal, interrupt, judge_at)
    rollouts.sample()
    interrupt.check()
    return rollouts.outcomes()


class _Rollouts:
    """See `roll_out`."""

    def __init__(
        self,
        name: str,
        solver: Solver,
        problems: Iterable[Problem],
        sampling: Sampling,
        journal: Journal,
        interrupt: Interrupt,
        judge_at: str,
    ) -> None:
        self._name, self._solver, self._problems = name, solver, problems
        self._sampling, self._journal, self._interrupt = sampling, journal, interrupt
        self._judge_at = judge_at
        self._tokenizer = Tokenizer.load(solver.folder)
        self._context = load_config(solver.folder).max_position_embeddings
        self._decoding: dict[str, _Task] = {}
        self._judging: list[tuple[_Answer, Future[Verdict]]] = []
        self._done = self._judged = self._right = 0
        self._patience = REWARD_DEADLINE  # longer than the longest program may run

    def sample(self) -> None:
        """Sample and judge what is missing. Once an interrupt is requested nothing more is decoded,
        but what is finished is still judged."""
        lengths = [len(task.prompt) for task in self._missing()]
        if not lengths:
            return
        limits = program_limits(self._sampling.test_seconds, TEST_MEMORY_MB)
        workers = os.cpu_count() or 1
        with (
            # Every test, not only up to the first failure: the rule on programs without a golden
            # solution and the tests' pass rates need all of them.
            RewardPool(
                workers, workers, ALL_TESTS, judge=limits, every_test=True, judge_at=self._judge_at
            ) as pool,
            open_engine(
                self._solver.engine,
                self._solver.folder,
                slots=min(SLOTS, len(lengths)),
                max_length=min(self._context, max(lengths) + self._sampling.tokens),
                used_vocab=self._tokenizer.vocab_size,
            ) as engine,
            Progress(self._name, len(lengths), every=max(1, len(lengths) // LINES)) as progress,
        ):
            pool.start_judge()
            self._drive(engine, pool, progress)

    def outcomes(self) -> dict[str, Outcomes]:
        """By id, of the problems that the model can read."""
        found = {}
        for problem in self._problems:
            if len(self._tokenizer.chat_prompt(problem["prompt"])) < self._context:
                key = problem_key(problem, JUDGED_BY)
                keys = (f"{key}/{number}" for number in range(self._sampling.rollouts))
                found[problem["id"]] = outcomes_of(map(self._journal.get, keys))
        return found

    def _missing(self) -> Iterator[_Task]:
        for problem in self._problems:
            prompt = self._tokenizer.chat_prompt(problem["prompt"])
            if len(prompt) >= self._context:
                continue
            key = problem_key(problem, JUDGED_BY)
            for number in range(self._sampling.rollouts):
                known = self._journal.get(f"{key}/{number}")
                if known is None or known[0] is None:
                    yield _Task(f"{key}/{number}", problem, number, prompt)

    def _drive(self, engine: InferenceEngine, pool: RewardPool, progress: Progress) -> None:
        tasks, more = self._missing(), True
        while more or self._decoding or self._judging:
            if self._interrupt.requested:
                more = False
                self._decoding.clear()
            room = 2 * SLOTS - len(self._decoding)
            if more and room >= SLOTS and len(self._judging) < 2 * SLOTS:
                new = {task.key: task for task in islice(tasks, room)}
                self._decoding |= new
                engine.submit(map(self._request, new.values()))
                more = len(new) == room
            before = self._done
            if self._decoding:
                for completion in engine.step():
                    self._receive(completion, pool)
            for answer, future in self._settled():
                self._keep(answer, verdict_of(future))
            for number in range(before + 1, self._done + 1):
                progress.step(number, pass_rate=self._right / max(1, self._judged))

    def _request(self, task: _Task) -> Request:
        return Request(
            id=task.key,
            prompt_ids=task.prompt,
            max_new_tokens=min(self._sampling.tokens, self._context - len(task.prompt)),
            temperature=self._sampling.temperature,
            seed=sample_seed(self._sampling.seed, "curate", task.problem["id"], task.sample),
            stop_ids=(self._tokenizer.eos_id, self._tokenizer.doc_end_id),
        )

    def _receive(self, completion: Completion, pool: RewardPool) -> None:
        """Have an answer judged; one that the engine gave up is no answer, and has no verdict."""
        task = self._decoding.pop(str(completion.request_id))
        answer = _Answer(task, completion, self._tokenizer.decode(completion.token_ids.tolist()))
        if completion.finish_reason == "failed":
            self._keep(answer, None)
        else:
            longest = pool.longest([task.problem])
            self._patience = max(self._patience, REWARD_DEADLINE + longest)
            self._judging.append((answer, pool.score(task.problem, answer.text)))

    def _settled(self) -> list[tuple[_Answer, Future[Verdict]]]:
        """Those judged by now; at least one if there is nothing else to do."""
        if self._judging and not self._decoding:
            futures = [future for _, future in self._judging]
            if not wait(futures, self._patience, FIRST_COMPLETED).done:
                raise UserError(
                    f"the verifiers gave no verdict for {self._patience:.0f} s; repeat the "
                    "command, it goes on from here"
                )
        unsettled, self._judging = self._judging, []
        settled: list[tuple[_Answer, Future[Verdict]]] = []
        for answer, future in unsettled:
            (settled if future.done() else self._judging).append((answer, future))
        return settled

    def _keep(self, answer: _Answer, verdict: Verdict | None) -> None:
        """Write an answer down; without a verdict it is there to be looked at, and made again."""
        correct, passed, status = None, "", "failed"
        detail = answer.completion.error or ""
        if verdict is not None:
            status, detail = verdict.status.value, verdict.detail
            passed = "".join("01"[each] for each in verdict.passed)
            correct = None if verdict.score is None else verdict.correct
        if correct is not None:
            self._right, self._judged = self._right + correct, self._judged + 1
        self._journal.add(
            answer.task.key,
            id=answer.task.problem["id"],
            sample=answer.task.sample,
            correct=correct,
            passed=passed,
            status=status,
            detail=detail,
            tokens=len(answer.completion.token_ids),
            truncated=answer.completion.finish_reason == "length",
            response=answer.text,
        )
        self._done += 1


def outcomes_of(answers: Iterable[tuple[Any, ...] | None]) -> Outcomes:
    """Of one problem's answers (correct, passed); those that could not be judged say nothing."""
    judged = [answer for answer in answers if answer is not None and answer[0] is not None]
    vectors = [passed for _, passed in judged if passed]
    tests = tuple(column.count("1") for column in zip(*vectors, strict=True))
    return Outcomes(len(judged), sum(correct for correct, _ in judged), tests)
