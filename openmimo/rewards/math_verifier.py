"""Verdicts on mathematics answers: the quick rules first, then Math-Verify behind a deadline."""

import atexit
import functools
import json
import os
import queue
import struct
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from openmimo.judge.pipes import PipeProcess
from openmimo.judge.verdict import Status
from openmimo.rewards.math import extract_answer, quick_verdict, too_long
from openmimo.rewards.math_spelling import normalise
from openmimo.rewards.verdict import Verdict, failed, unparseable
from openmimo.rewards.verdict_cache import VerdictCache, done, verdict_of

_START_SECONDS = 60.0
_WALL_FACTOR = 10  # a worker that is stopped, or starved by other processes
_ATTEMPTS = 3  # a worker killed from outside says nothing about the answer
_SCORES = {Status.OK: 1.0, Status.WRONG: 0.0, Status.UNPARSEABLE: 0.0}
_PACKAGE_ROOT = Path(__file__).parents[2]

NO_BOX = unparseable("no \\boxed{} answer")


@dataclass(frozen=True, slots=True)
class RawOptions:
    """Math-Verify's own settings, with its own defaults: `parse` above, `verify` below."""

    latex: bool = True
    expressions: bool = True
    boxed_match_priority: int = 50

    float_rounding: int = 6
    numeric_precision: int = 15
    strict: bool = True
    allow_set_relation_comp: bool = False


class _Worker:
    """One lazily started Math-Verify process."""

    def __init__(self) -> None:
        self._process: PipeProcess | None = None

    def ask(self, operation: str, arguments: Mapping[str, Any], seconds: float) -> list[str]:
        """One comparison as [status, detail]. OSError or EOFError if the process died.

        TimeoutError if it gives no sign of life; its own clock of CPU time is faster.
        """
        process = self._started()
        request = json.dumps([operation, seconds, arguments]).encode()
        process.send(struct.pack("<I", len(request)) + request, seconds * _WALL_FACTOR)
        reply: list[str] = json.loads(process.receive(seconds * _WALL_FACTOR))
        return reply

    def _started(self) -> PipeProcess:
        if self._process is None or not self._process.alive():
            self.kill()
            paths = [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
            command = [sys.executable, "-m", "openmimo.rewards.math_worker", str(os.getpid())]
            self._process = PipeProcess(command, environment)
            try:
                self._process.receive(_START_SECONDS)
            except TimeoutError as error:
                raise OSError("Math-Verify did not start") from error
        return self._process

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None


class MathVerifier:
    """Judges answers with Math-Verify, `workers` at a time, each within `seconds` of CPU time.

    The clock of an answer starts when a worker takes it up. The processes start with the first
    answer that needs one. The verdicts of `cache_size` (gold, answer) pairs are remembered.
    For use from several threads. Every future gives a verdict, unless `close` cancels it.
    """

    def __init__(self, workers: int = 1, seconds: float = 3.0, cache_size: int = 20_000) -> None:
        self._seconds = seconds
        self._workers = [_Worker() for _ in range(workers)]
        # Last in, first out: a process that runs is taken before one that would have to start.
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="math")
        self._cache = VerdictCache(cache_size)

    @property
    def scored(self) -> int:
        """How many answers were worked out."""
        return self._cache.scored

    @property
    def cached(self) -> int:
        """How many answers had a verdict already."""
        return self._cache.cached

    def submit(self, answer: str, gold: str) -> Future[Verdict]:
        """Judge an answer, as it stands in the box, by our rules."""
        if too_long(gold, answer):  # and never a key of the cache
            return self._judge(answer, gold)
        return self._cache.once((gold, answer), lambda: self._judge(answer, gold))

    def submit_raw(
        self, text: str, gold: str, options: RawOptions = RawOptions()
    ) -> Future[Verdict]:
        """Math-Verify's own verdict: `verify(parse(gold), parse(text))`, no rule of ours.

        Both are texts for `parse`, which looks for mathematics in `$...$`, `\\boxed{...}` and the
        like. Only the time limit differs: its own turns a timeout into "wrong".
        """
        verify_options = {
            name: getattr(options, name)
            for name in ("float_rounding", "numeric_precision", "strict", "allow_set_relation_comp")
        }
        arguments = {
            "gold": gold,
            "answer": text,
            "latex": options.latex,
            "expressions": options.expressions,
            "boxed_match_priority": options.boxed_match_priority,
            "verify_options": verify_options,
        }
        return self._threads.submit(self._work, "raw", arguments)

    def close(self) -> None:
        """Stop within one deadline: what is waiting is cancelled."""
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.kill()

    def __enter__(self) -> "MathVerifier":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _judge(self, answer: str, gold: str) -> Future[Verdict]:
        quick = quick_verdict(gold, answer)
        if quick is not None:
            return done(quick)
        arguments = {"gold": normalise(gold), "answer": normalise(answer)}
        return self._threads.submit(self._work, "compare", arguments)

    def _work(self, operation: str, arguments: Mapping[str, Any]) -> Verdict:
        worker = self._idle.get()
        try:
            for _ in range(_ATTEMPTS):
                try:
                    status, detail = worker.ask(operation, arguments, self._seconds)
                    return Verdict(_SCORES.get(Status(status)), Status(status), detail)
                except TimeoutError:
                    worker.kill()
                    return Verdict(None, Status.TIMEOUT, "no verdict: the worker stood still")
                except (OSError, EOFError, ValueError) as error:
                    worker.kill()
                    reason = str(error)
            return failed(f"the verifier died {_ATTEMPTS} times: {reason}")
        finally:
            self._idle.put(worker)


@functools.cache
def _shared_verifier() -> MathVerifier:
    verifier = MathVerifier(workers=os.cpu_count() or 1)
    atexit.register(verifier.close)
    return verifier


# A forked child must not write into its parent's pipes.
os.register_at_fork(after_in_child=_shared_verifier.cache_clear)


def verify_math(answer: str, gold: str, raw: RawOptions | None = None) -> Verdict:
    """Whether an answer equals the reference, by our rules (docs/rewards.md).

    Args:
        answer: an answer as it stands in a box, such as `\\frac12`; or a whole response, told by
            a `\\boxed` or `</think>` in it, whose last box after the thinking is the answer.
        gold: the reference answer, as it would stand in a box.
        raw: instead, the verdict of plain Math-Verify with these settings (`submit_raw`).

    Returns:
        status `ok` (score 1), `wrong` or `unparseable` (0), `timeout` or `judge_error` (None: says
        nothing about the answer, must not count as 0). Never raises for any pair of strings.
    """
    return verify_math_batch([(answer, gold)], raw)[0]


def verify_math_batch(
    pairs: Iterable[tuple[str, str]], raw: RawOptions | None = None
) -> list[Verdict]:
    """`verify_math` of many (answer, gold) pairs, on all cores, in their order."""
    verifier = _shared_verifier()
    if raw is not None:
        return [verdict_of(f) for f in [verifier.submit_raw(a, g, raw) for a, g in pairs]]
    return [verdict_of(f) for f in [_submit_text(verifier, a, g) for a, g in pairs]]


def _submit_text(verifier: MathVerifier, text: str, gold: str) -> Future[Verdict]:
    if "\\boxed" not in text and "</think>" not in text:
        return verifier.submit(text, gold)
    answer = extract_answer(text)
    return done(NO_BOX) if answer is None else verifier.submit(answer, gold)
