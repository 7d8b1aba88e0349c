"""What users of a judge rely on, wherever its workers are: here, behind HTTP, or on a cluster."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Protocol

from openmimo.judge.cases import Limits, Program, Test
from openmimo.judge.verdict import SolutionVerdict


class SolutionJudge(Protocol):
    """Judges programs; `submit` may be called from any thread and never waits for a verdict."""

    def submit(
        self,
        program: Program | str,
        tests: Sequence[Test],
        limits: Limits | None = None,
        order: Sequence[int] | None = None,
        stop_at_failure: bool = False,
    ) -> Future[SolutionVerdict]:
        """Queue a program: see `Judge.submit`. The future always gets exactly one verdict."""

    def close(self) -> None:
        """Stop at once: what is running or waiting gives `judge_error`."""
