"""What each worker did in a step, and when: for metrics, for the trace view, simulated and real.

A driver calls `Recorder` with its own clock (seconds since the step began); the simulator with its
virtual one. A finished step is a `StepTimeline`, which `write_timelines` puts into a JSONL file.
"""

import json
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from openmimo.errors import UserError
from openmimo.rollout.events import Done
from openmimo.runs import atomic_write

ENGINE, REWARD = "engine", "reward"
"""The lanes' first words: "engine 3", "reward 0"."""

Kind = Literal["generate", "reward"]
Outcome = Literal["kept", "filtered", "surplus", "aborted", "lost"]


@dataclass(frozen=True, slots=True)
class Span:
    """A worker's time for one sample.

    lane: the worker, one of `StepTimeline.lanes`; an engine has many spans at a time. A reward on
        an engine's lane is computed by the engine's own process, which decodes nothing meanwhile.
    prompt: stream index within the step. sample: number within the group.
    start, end: seconds since the step began.
    kind: whether the sample was generated or its reward computed.
    outcome: "kept" in the batch; "filtered" as its group, inside the committed prefix, is not
        valid; "surplus" if finished and not needed; "aborted" with its group; "lost" with its
        worker, so that it had to be done again.
    tokens: generated (0 for a reward, and where unknown).
    """

    lane: str
    prompt: int
    sample: int
    start: float
    end: float
    kind: Kind
    outcome: Outcome
    tokens: int = 0


@dataclass(frozen=True)
class StepTimeline:
    """One step.

    name: for its heading, such as the policy's.
    lanes: all workers in the order to show them, idle ones too.
    seconds: the step's length. last_launch: when its last prompt was launched.
    spans: by start.
    """

    name: str
    lanes: tuple[str, ...]
    seconds: float
    last_launch: float
    spans: tuple[Span, ...]


class Recorder:
    """Collects one step's spans while it runs. Times never go back for one sample."""

    def __init__(self, name: str, lanes: Iterable[str]) -> None:
        self._name, self._lanes = name, tuple(lanes)
        self._open: dict[int, dict[tuple[Kind, int], tuple[str, float]]] = {}  # by prompt
        self._closed: list[tuple[Kind, int, int, str, float, float, bool, int]] = []
        self._last_launch = 0.0

    def launch(self, now: float) -> None:
        """A prompt is launched."""
        self._last_launch = now

    def begin(self, kind: Kind, prompt: int, sample: int, lane: str, now: float) -> None:
        """`lane` begins to generate or to score a sample."""
        self._open.setdefault(prompt, {})[kind, sample] = (lane, now)

    def end(
        self, kind: Kind, prompt: int, sample: int, now: float, tokens: int = 0, lost: bool = False
    ) -> None:
        """It is done, or lost; nothing happens if it has been ended already."""
        begun = self._open.get(prompt, {}).pop((kind, sample), None)
        if begun is not None:
            lane, start = begun
            self._closed.append((kind, prompt, sample, lane, start, now, lost, tokens))

    def abort(self, prompt: int, now: float) -> None:
        """All that runs of a prompt is stopped."""
        for kind, sample in list(self._open.get(prompt, ())):
            self.end(kind, prompt, sample, now)

    def oldest(self) -> tuple[Kind, tuple[int, int], str, float] | None:
        """What has been running longest: its kind, prompt and sample, lane and start."""
        running = [
            (start, kind, (prompt, sample), lane)
            for prompt, spans in self._open.items()
            for (kind, sample), (lane, start) in spans.items()
        ]
        if not running:
            return None
        start, kind, key, lane = min(running)
        return kind, key, lane, start

    def finish(self, done: Done, aborted: Iterable[int], now: float) -> StepTimeline:
        """The step is over; `aborted` are the prompts that were stopped."""
        for prompt in list(self._open):
            self.abort(prompt, now)
        stopped, selected = set(aborted), set(done.selected)

        def outcome(prompt: int, lost: bool) -> Outcome:
            if lost:
                return "lost"
            if prompt in stopped:
                return "aborted"
            if prompt in selected:
                return "kept"
            return "filtered" if prompt < done.stats.committed else "surplus"

        spans = [
            Span(lane, prompt, sample, start, end, kind, outcome(prompt, lost), tokens)
            for kind, prompt, sample, lane, start, end, lost, tokens in self._closed
        ]
        spans.sort(key=lambda span: (span.start, span.prompt, span.sample))
        # Lanes that were not announced follow as they came.
        lanes = tuple(dict.fromkeys([*self._lanes, *(span.lane for span in spans)]))
        return StepTimeline(self._name, lanes, now, self._last_launch, tuple(spans))


def write_timelines(path: Path, steps: Iterable[StepTimeline]) -> None:
    """One line a step with its name, lanes and times, then one line a span (about 150 bytes).

    The file is there whole or as it was before.
    """
    lines = []
    for step in steps:
        head = {
            "step": step.name, "lanes": step.lanes, "seconds": step.seconds,
            "last_launch": step.last_launch,
        }  # fmt: skip
        lines += [json.dumps(entry) + "\n" for entry in (head, *map(asdict, step.spans))]
    atomic_write(path, "".join(lines))


class LatestTimelines:
    """A file of the last `keep` steps of a run, rewritten with each; none if `keep` is 0."""

    def __init__(self, path: Path, keep: int) -> None:
        self._path, self._steps = path, deque[StepTimeline](maxlen=keep)

    def add(self, name: str, step: StepTimeline) -> None:
        """`name`, such as "rl step 7", stands before the step's own."""
        if self._steps.maxlen:
            self._steps.append(replace(step, name=f"{name}, {step.name}"))
            write_timelines(self._path, self._steps)


def read_timelines(path: Path) -> Iterator[StepTimeline]:
    """The steps of a file of `write_timelines`.

    Raises:
        UserError: the file is not there, or a line is not what it should be.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the timeline {path}: {error}") from error
    head: StepTimeline | None = None
    spans: list[Span] = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            if "step" in entry:
                if head is not None:
                    yield replace(head, spans=tuple(spans))
                head, spans = _head(entry), []
            elif head is None:
                raise ValueError("a span before any step")
            else:
                spans.append(_span(entry, head))
        except (ValueError, TypeError) as error:
            raise UserError(f"{path}, line {number}: not of a timeline: {_why(error)}") from error
    if head is not None:
        yield replace(head, spans=tuple(spans))


_HEAD, _SPAN = TypeAdapter(StepTimeline), TypeAdapter(Span)


def _head(entry: dict[str, Any]) -> StepTimeline:
    head = _HEAD.validate_python({**entry, "name": entry["step"], "spans": ()})
    if not 0 <= head.last_launch <= head.seconds < math.inf:
        raise ValueError("no 0 <= last_launch <= seconds")
    return head


def _span(entry: dict[str, Any], head: StepTimeline) -> Span:
    span = _SPAN.validate_python(entry)
    if not 0 <= span.start <= span.end <= head.seconds:
        raise ValueError("no 0 <= start <= end <= the step's seconds")
    if not all(0 <= number < 2**31 for number in (span.prompt, span.sample, span.tokens)):
        raise ValueError("prompt, sample and tokens must be from 0 to 2^31 - 1")
    if span.lane not in head.lanes:
        raise ValueError(f"lane {span.lane!r} is not one of the step's")
    return span


def _why(error: Exception) -> str:
    """In one line; pydantic's own text has one for each fault."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)
