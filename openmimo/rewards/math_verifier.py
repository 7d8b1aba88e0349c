"""Math-Verify behind a deadline: worker processes that are killed and replaced when they hang."""

import json
import os
import queue
import struct
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from openmimo.judge.pipes import PipeProcess
from openmimo.judge.verdict import Status
from openmimo.rewards.math import normalise
from openmimo.rewards.verdict import RewardResult

_START_SECONDS = 60.0
_PACKAGE_ROOT = Path(__file__).parents[2]


class _Worker:
    """One lazily started Math-Verify process."""

    def __init__(self) -> None:
        self._process: PipeProcess | None = None

    def ask(self, gold: str, answer: str, seconds: float) -> dict[str, object]:
        """One comparison. TimeoutError after `seconds`; OSError or EOFError if the worker died."""
        process = self._started()
        request = json.dumps([gold, answer]).encode()
        process.send(struct.pack("<I", len(request)) + request, seconds)
        reply: dict[str, object] = json.loads(process.receive(seconds))
        return reply

    def _started(self) -> PipeProcess:
        if self._process is None or not self._process.alive():
            self.kill()
            paths = [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", "")]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
            command = [sys.executable, "-m", "openmimo.rewards.math_worker", str(os.getpid())]
            self._process = PipeProcess(command, environment)
            self._process.receive(_START_SECONDS)
        return self._process

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None


class MathVerifier:
    """Compares answers with Math-Verify, `workers` at a time, each within `seconds`.

    The processes start with the first request.
    """

    def __init__(self, workers: int = 1, seconds: float = 3.0) -> None:
        self._seconds = seconds
        self._workers = [_Worker() for _ in range(workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="math")

    def submit(self, gold: str, answer: str) -> Future[RewardResult]:
        """The future always gives a result; its score is None on a timeout or a worker's death."""
        return self._threads.submit(self._verify, normalise(gold), normalise(answer))

    def _verify(self, gold: str, answer: str) -> RewardResult:
        worker = self._idle.get()
        try:
            reply = worker.ask(gold, answer, self._seconds)
        except TimeoutError:
            worker.kill()
            return RewardResult(None, Status.TIMEOUT, f"no verdict within {self._seconds} s")
        except (OSError, EOFError, ValueError) as error:
            worker.kill()
            return RewardResult(None, Status.JUDGE_ERROR, f"the verifier failed: {error}")
        finally:
            self._idle.put(worker)
        if "error" in reply:
            return RewardResult(None, Status.JUDGE_ERROR, str(reply["error"]))
        if reply["equal"]:
            return RewardResult(1.0, Status.OK, "equivalent")
        return RewardResult(0.0, Status.WRONG, "not equivalent")

    def close(self) -> None:
        """Stop within one deadline: what is waiting is cancelled."""
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.kill()
