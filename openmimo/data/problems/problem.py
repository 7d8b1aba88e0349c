"""What a verifiable problem is, and how a teacher of a given care writes a response to it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Tier = str  # "train" | "hard"


@dataclass(frozen=True)
class Teacher:
    """Habits of whoever wrote a response; text in the wild comes from teachers of all kinds.

    Attributes:
        direct: share of mathematics answers given without any working.
        slip: probability that one step of the working is wrong (the rest follows from it).
        sloppy: probability that a clause of a program is written in its careless form.
    """

    direct: float
    slip: float
    sloppy: float


@dataclass(frozen=True)
class Problem:
    """One verifiable problem.

    Attributes:
        domain: "math" or "code".
        family: the generator's name.
        tier: "train", or "hard" for problems larger than any question that is trained on.
        prompt: what the model is asked.
        answer: mathematics: the expected content of the final box.
        entry_point: code: name of the function to define.
        tests: code: {"args": [...], "expected": ...} each, JSON values only.
        respond: writes a response as the given teacher would; not serialised.
    """

    domain: str
    family: str
    tier: Tier
    prompt: str
    answer: str = ""
    entry_point: str = ""
    tests: tuple[dict[str, Any], ...] = ()
    respond: Callable[[Teacher, random.Random], str] = field(
        default=lambda teacher, rng: "", compare=False, repr=False
    )

    @property
    def id(self) -> str:
        """Stable identity: a hash of the prompt."""
        return hashlib.blake2b(self.prompt.encode(), digest_size=8).hexdigest()

    def record(self) -> dict[str, Any]:
        """The JSON form that is written to disk and given to the verifier."""
        shared = {
            "id": self.id,
            "domain": self.domain,
            "family": self.family,
            "tier": self.tier,
            "prompt": self.prompt,
        }
        if self.domain == "math":
            return shared | {"answer": self.answer}
        return shared | {"entry_point": self.entry_point, "tests": list(self.tests), "levels": None}
