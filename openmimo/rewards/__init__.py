"""Rewards: rule-based accuracy only (MiMo report, section 3.3). Mathematics and code."""

from openmimo.rewards.grading import Grading, score
from openmimo.rewards.math import extract_answer
from openmimo.rewards.math_verifier import MathVerifier, RawOptions, verify_math, verify_math_batch
from openmimo.rewards.verdict import Verdict

__all__ = [
    "Grading",
    "MathVerifier",
    "RawOptions",
    "Verdict",
    "extract_answer",
    "score",
    "verify_math",
    "verify_math_batch",
]
