"""What a step's timeline amounts to: how busy the engines were, and what came of their work."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from openmimo.rollout.timeline import REWARD, Outcome, Span, StepTimeline

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
USED: tuple[Outcome, ...] = ("kept", "filtered")
"""Outcomes of work that the step could not do without."""
DOOMED: tuple[Outcome, ...] = ("aborted", "lost")
"""Outcomes of work that was stopped before it was done."""


@dataclass(frozen=True)
class Work:
    """Samples of one outcome; one that was lost and begun again counts twice.

    seconds: from start to end, added up.
    """

    prompts: int
    samples: int
    tokens: int
    seconds: float


@dataclass(frozen=True)
class EngineTime:
    """An engine's, as shares of the step; what is left of 1 is useful.

    idle: it generates nothing, having none to generate or computing a reward itself.
    doomed: all that it generates is aborted or lost later.
    """

    idle: float
    doomed: float


@dataclass(frozen=True)
class StepUsage:
    """One step.

    engines: by lane. idle, doomed: means of theirs.
    tail: seconds from the last launch to the end.
    generated: by outcome. wasted: share of its seconds that is neither kept nor filtered.
    rewards: of all outcomes. reward_peak: most computed at once.
    """

    engines: dict[str, EngineTime]
    idle: float
    doomed: float
    tail: float
    generated: dict[Outcome, Work]
    wasted: float
    rewards: Work
    reward_peak: int


def is_engine(lane: str) -> bool:
    """Whether a lane generates; else it computes rewards alone."""
    return lane.partition(" ")[0] != REWARD


def usage(step: StepTimeline) -> StepUsage:
    """The sums of a step's spans. A step without engines is not idle."""
    generated = [span for span in step.spans if span.kind == "generate"]
    rewards = [span for span in step.spans if span.kind == "reward"]
    by_lane: dict[str, list[Span]] = {lane: [] for lane in step.lanes if is_engine(lane)}
    for span in step.spans:
        if span.lane in by_lane:
            by_lane[span.lane].append(span)
    engines = {lane: _engine_time(spans, step.seconds) for lane, spans in by_lane.items()}
    work = {
        outcome: _work(span for span in generated if span.outcome == outcome)
        for outcome in OUTCOMES
    }
    total = sum(each.seconds for each in work.values())
    used = sum(work[outcome].seconds for outcome in USED)
    return StepUsage(
        engines=engines,
        idle=_mean([engine.idle for engine in engines.values()]),
        doomed=_mean([engine.doomed for engine in engines.values()]),
        tail=step.seconds - step.last_launch,
        generated=work,
        wasted=1 - used / total if total else 0.0,
        rewards=_work(rewards),
        reward_peak=_peak(rewards),
    )


def _engine_time(spans: list[Span], seconds: float) -> EngineTime:
    generated = [span for span in spans if span.kind == "generate"]
    pauses = [span for span in spans if span.kind == "reward"]
    useful = [span for span in generated if span.outcome not in DOOMED]
    # What decodes stands still in a pause, so pauses are taken out of both.
    paused = _covered(pauses)
    busy, any_work = _covered(useful + pauses) - paused, _covered(spans) - paused
    if not seconds:
        return EngineTime(0.0, 0.0)
    return EngineTime(1 - any_work / seconds, (any_work - busy) / seconds)


def _covered(spans: Iterable[Span]) -> float:
    """Seconds in which at least one of the spans runs."""
    total, until = 0.0, 0.0
    for start, end in sorted((span.start, span.end) for span in spans):
        if end > until:
            total += end - max(start, until)
            until = end
    return total


def _peak(spans: list[Span]) -> int:
    """Most spans at once; one that ends where another starts makes room for it."""
    most = running = 0
    changes = [(span.start, 1) for span in spans] + [(span.end, -1) for span in spans]
    for _, change in sorted(changes):
        running += change
        most = max(most, running)
    return most


def _work(spans: Iterable[Span]) -> Work:
    each = list(spans)
    return Work(
        prompts=len({span.prompt for span in each}),
        samples=len(each),
        tokens=sum(span.tokens for span in each),
        seconds=sum(span.end - span.start for span in each),
    )


def _mean(shares: list[float]) -> float:
    return sum(shares) / len(shares) if shares else 0.0
