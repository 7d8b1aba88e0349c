"""Asynchronous rewards: submit a response as it finishes, collect results as they come.

The pool starts its processes with the first response that needs one, scores equal answers to one
problem once, and never waits for ever: each test and each comparison has a deadline of its own.
"""

import queue
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import CancelledError, Future
from types import TracebackType
from typing import Any

from openmimo.errors import UserError
from openmimo.judge.judge import Judge
from openmimo.judge.verdict import SolutionVerdict, Status
from openmimo.rewards import code, math
from openmimo.rewards.difficulty import Scheme
from openmimo.rewards.math_verifier import MathVerifier
from openmimo.rewards.verdict import RewardResult

JUDGE_LIMITS = {"cpu_seconds": 0.5, "wall_seconds": 5.0, "max_timeouts": 1}
"""For programs of a rollout: a loop costs one timeout, not one a test."""

_NO_BOX = RewardResult(0.0, Status.UNPARSEABLE, "no \\boxed{} answer")


def _done(result: RewardResult) -> Future[RewardResult]:
    future: Future[RewardResult] = Future()
    future.set_result(result)
    return future


class RewardPool:
    """Scores responses to problems (records as in the problem files, "math" or "code").

    `scheme` is the reward of code problems that have levels. `judge` holds keyword arguments of
    `Judge` (limits, `unsafe`); `math_seconds` bounds one comparison by Math-Verify. `cache_size`
    results are kept; `scored` and `cached` count what was worked out and what was remembered.

    Not for use from several threads at once. `submit` raises UserError where the judge cannot set
    its sandbox up, so call `start_judge` first to learn it early.
    """

    def __init__(
        self,
        math_workers: int = 1,
        judge_workers: int = 1,
        scheme: Scheme = "strict",
        math_seconds: float = 3.0,
        judge: Mapping[str, Any] | None = None,
        cache_size: int = 20_000,
    ) -> None:
        self._scheme = scheme
        self._judge_workers, self._judge_settings = judge_workers, dict(judge or {})
        self._judge: Judge | None = None
        self._math = MathVerifier(math_workers, math_seconds)
        self._cache: OrderedDict[Hashable, Future[RewardResult]] = OrderedDict()
        self._cache_size = cache_size
        self._finished: queue.SimpleQueue[tuple[Any, RewardResult]] = queue.SimpleQueue()
        self.in_flight = 0
        self.scored = 0
        self.cached = 0

    def start_judge(self) -> Judge:
        """Start the code judge now rather than with the first program."""
        if self._judge is None:
            self._judge = Judge(self._judge_workers, **self._judge_settings)
        return self._judge

    def submit(self, key: Any, problem: Mapping[str, Any], response: str) -> None:
        """Queue one response; its result comes out of `poll` or `wait` as (key, result)."""
        future = self._score(problem, response)
        self.in_flight += 1
        future.add_done_callback(lambda done: self._finished.put((key, _result(done))))

    def poll(self) -> list[tuple[Any, RewardResult]]:
        """The results that are ready, without waiting."""
        results = []
        while not self._finished.empty():
            results.append(self._finished.get())
        self.in_flight -= len(results)
        return results

    def wait(self, timeout: float | None = None) -> list[tuple[Any, RewardResult]]:
        """At least one result, unless none is in flight or `timeout` seconds pass."""
        if not self.in_flight:
            return []
        try:
            first = self._finished.get(timeout=timeout)
        except queue.Empty:
            return []
        self.in_flight -= 1
        return [first, *self.poll()]

    def close(self) -> None:
        """Stop all processes; what is unfinished becomes `judge_error`."""
        if self._judge is not None:
            self._judge.close()
        self._math.close()

    def __enter__(self) -> "RewardPool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _score(self, problem: Mapping[str, Any], response: str) -> Future[RewardResult]:
        if problem["domain"] == "math":
            answer = math.extract_answer(response)
            if answer is None:
                return _done(_NO_BOX)
            quick = math.quick_result(problem["answer"], answer)
            if quick is not None:
                return _done(quick)
            gold = problem["answer"]
            return self._once(("math", gold, answer), lambda: self._math.submit(gold, answer))
        if problem["domain"] == "code":
            program = code.extract_program(response)
            if program is None:
                return _done(code.NO_PROGRAM)
            key = ("code", problem["id"], program)
            return self._once(key, lambda: self._judge_program(problem, program))
        raise UserError(f"problem {problem['id']}: no reward for domain {problem['domain']!r}")

    def _judge_program(self, problem: Mapping[str, Any], program: str) -> Future[RewardResult]:
        tests = problem["tests"]
        verdict = self.start_judge().submit(
            program,
            problem["entry_point"],
            [test["args"] for test in tests],
            [test["expected"] for test in tests],
        )
        result: Future[RewardResult] = Future()

        def finish(done: Future[SolutionVerdict]) -> None:
            try:
                scored = code.score_verdict(done.result(), self._scheme, problem.get("levels"))
                result.set_result(scored)
            except (Exception, CancelledError) as error:
                result.set_exception(error)

        verdict.add_done_callback(finish)
        return result

    def _once(
        self, key: Hashable, work: Callable[[], Future[RewardResult]]
    ) -> Future[RewardResult]:
        """The cached future of `key`, or that of `work()`. A failed judgement is not remembered."""
        future = self._cache.pop(key, None)
        if future is not None and not (future.done() and _failed(future)):
            self.cached += 1
        else:
            future = work()
            self.scored += 1
        self._cache[key] = future
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return future


def _result(future: Future[RewardResult]) -> RewardResult:
    try:
        return future.result()
    except CancelledError:
        return RewardResult(None, Status.JUDGE_ERROR, "cancelled: the pool was closed")
    except Exception as error:
        return RewardResult(None, Status.JUDGE_ERROR, f"{type(error).__name__}: {error}")


def _failed(future: Future[RewardResult]) -> bool:
    return _result(future).status is Status.JUDGE_ERROR
