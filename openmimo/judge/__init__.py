"""The judge: runs untrusted programs against tests, in separate, locked-down processes."""

from openmimo.judge.cases import AssertTest, CallTest, Checker, Limits, Program, StdioTest, Test
from openmimo.judge.compare import Rule
from openmimo.judge.judge import Judge
from openmimo.judge.verdict import SolutionVerdict, Status, Verdict

__all__ = [
    "AssertTest",
    "CallTest",
    "Checker",
    "Judge",
    "Limits",
    "Program",
    "Rule",
    "SolutionVerdict",
    "Status",
    "StdioTest",
    "Test",
    "Verdict",
]
