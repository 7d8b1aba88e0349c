"""From the files of a run folder to typed values. A stage that has not run is simply absent."""

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from openmimo.data.documents import read_records
from openmimo.errors import REDO, UserError
from openmimo.metrics import read_metrics
from openmimo.rollout.timeline import StepTimeline, read_timelines

STAGES = ("data", "pretrain", "mtp_heads", "sft", "difficulty", "rl_zero", "rl", "eval", "release")
"""In the order in which a run does them."""


class _Record(BaseModel):
    # Unknown keys pass: a stage may write more than the report shows.
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Score(_Record):
    """Mean pass@1 over ``n`` problems, with its 95 % interval; all in 0..1."""

    pass_at_1: float
    low: float
    high: float
    n: int


class Example(_Record):
    prompt: str
    response: str
    answer: str
    correct: bool


class Variant(Score):
    """One variant on the held-out problems. ``truncated`` is a share of the samples (0..1),
    ``response_length`` a mean in tokens, ``unscorable`` a count of samples."""

    samples: int
    pass_at_k: dict[int, float] = {}
    by_domain: dict[str, Score] = {}
    by_tier: dict[str, Score] = {}
    by_family: dict[str, Score] = {}
    truncated: float | None = None
    response_length: float | None = None
    unscorable: int = 0
    examples: list[Example] = []


class Acceptance(_Record):
    """Speculative decoding with the MTP layers, layer 0 first. ``acceptance[i]`` is the share of
    drafts accepted up to and including layer i, ``conditional[i]`` given that layer i-1 was."""

    acceptance: list[float]
    conditional: list[float] = []
    tokens_per_forward: float
    prompts: int
    plain_seconds: float
    speculative_seconds: float
    identical: bool


class GradedTests(_Record):
    """A programming problem's tests: each one's pass rate (0..1), and their levels of difficulty,
    easiest first."""

    pass_rates: list[float]
    levels: list[list[int]]


class EvalResults(_Record):
    sampling: dict[str, Any] = {}
    variants: dict[str, Variant] = {}
    mtp: dict[str, Acceptance] = {}


class SourceSize(_Record):
    documents: int
    tokens: int
    characters: int


class Mixture(_Record):
    """Share of the tokens of each source in one pre-training stage (0..1)."""

    target: dict[str, float]
    realised: dict[str, float]


class DataStats(_Record):
    sources: dict[str, SourceSize] = {}
    dedup: dict[str, Any] = {}
    domains: dict[str, Any] = {}
    decontamination: dict[str, Any] = {}


class Mixtures(_Record):
    """What pre-training read, by stage."""

    mixture: dict[str, Mixture] = {}


class Done(_Record):
    seconds: float
    peak_memory_gb: float


@dataclass(frozen=True)
class Run:
    """Everything that the report shows, as it lay in the run folder."""

    folder: Path
    config: dict[str, Any]
    config_text: str
    done: dict[str, Done]
    """Finished stages only."""
    metrics: dict[str, list[dict[str, Any]]]
    """Records in step order for every stage; an empty list where there are none."""
    stats: DataStats | None
    mixture: dict[str, Mixture]
    results: EvalResults | None
    tests: list[GradedTests]
    """Of every programming problem for RL; an empty list where the stage has not run."""
    rollouts: list[StepTimeline]
    """The latest steps of RL-Zero and of RL."""

    def missing(self) -> list[str]:
        """What a finished run would have and this one does not, in plain words."""
        parts = [f"stage {stage} has not finished" for stage in STAGES if stage not in self.done]
        parts += [
            f"stage {stage} has no metrics"
            for stage in ("pretrain", "mtp_heads", "sft", "rl_zero", "rl")
            if stage in self.done and not self.metrics[stage] and not self._handed_on(stage)
        ]
        if "data" in self.done and self.stats is None:
            parts.append("stages/data/stats.json is missing")
        if "eval" in self.done and self.results is None:
            parts.append("stages/eval/results.json is missing")
        return parts

    def _handed_on(self, stage: str) -> bool:
        """Whether the stage had no step to make: pre-training that only takes `init_from`."""
        return stage == "pretrain" and self.config.get("pretrain", {}).get("schedule") == []


def load_run(folder: Path) -> Run:
    """Read a run folder, finished or not. Raises UserError: no run folder, or a corrupt file."""
    stages = folder / "stages"
    if not stages.is_dir():
        raise UserError(f"{folder} is not a run folder (no stages/ in it): give a speedrun's --out")
    config_text = _text(folder / "config.toml") or ""
    try:
        config = tomllib.loads(config_text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{folder / 'config.toml'} is not TOML ({error}): restore it") from error
    finished = {stage: _parse(stages / stage / "done.json", Done) for stage in STAGES}
    return Run(
        folder=folder,
        config=config,
        config_text=config_text,
        done={stage: record for stage, record in finished.items() if record is not None},
        metrics={stage: _metrics(stages / stage / "metrics.jsonl") for stage in STAGES},
        stats=_parse(stages / "data" / "stats.json", DataStats),
        mixture=(_parse(stages / "pretrain" / "mixture.json", Mixtures) or Mixtures()).mixture,
        results=_parse(stages / "eval" / "results.json", EvalResults),
        tests=_tests(stages / "difficulty" / "problems.jsonl"),
        rollouts=_rollouts(stages / name / "rollout_timeline.jsonl" for name in ("rl_zero", "rl")),
    )


RecordT = TypeVar("RecordT", bound=_Record)


def _parse(path: Path, kind: type[RecordT]) -> RecordT | None:
    text = _text(path)
    if text is None:
        return None
    try:
        return kind.model_validate(json.loads(text, parse_constant=_refuse))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "top level"
        message = f"{path}: {where}: {first['msg']}: {REDO}"
        raise UserError(message) from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): {REDO}") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path} ({error}): {REDO}") from error


def _tests(path: Path) -> list[GradedTests]:
    if not path.exists():
        return []
    try:
        return [
            GradedTests.model_validate(record)
            for _, record in read_records(path)
            if record.get("domain") == "code"
        ]
    except ValidationError as error:
        raise UserError(f"{path}: {error.errors()[0]['msg']}: {REDO}") from error


def _rollouts(paths: Iterable[Path]) -> list[StepTimeline]:
    return [step for path in paths if path.exists() for step in read_timelines(path)]


def _metrics(path: Path) -> list[dict[str, Any]]:
    try:
        rows = read_metrics(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is corrupt ({error}): {REDO}") from error
    if not all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows):
        raise UserError(
            f'{path} has a line that is no {{"step": ...}} record: repeat the stage, with --force'
        )
    return rows
