"""Who answers the problems, and how."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from openmimo.config.base import config_hash
from openmimo.data.rows import digest
from openmimo.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Of rollouts. `tokens`: an answer's longest length. `test_seconds`: CPU time of one test."""

    rollouts: int
    tokens: int
    temperature: float
    test_seconds: float
    seed: int


@dataclass(frozen=True)
class Solver:
    """A model folder, and the engine that runs it (`inference.choose.open_engine`)."""

    folder: Path
    engine: str = "native"

    def fingerprint(self, sampling: Sampling) -> str:
        """Changes with the model's files and the settings, but for the number of answers.

        Not with the engine: the samples of one are as good as those of another.

        Raises UserError if there is no such folder.
        """
        if not self.folder.is_dir():
            raise UserError(f"no model folder {self.folder}")
        files = {path.name: digest(path) for path in self.folder.iterdir() if path.is_file()}
        settings = {name: value for name, value in asdict(sampling).items() if name != "rollouts"}
        return config_hash({"model": files, **settings})
