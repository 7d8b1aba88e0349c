"""The trace view: rollout steps as one HTML file that needs nothing else, neither net nor server.

What the page says in words and tables is computed here; its scripts draw the spans.
"""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from openmimo.report.pages import page
from openmimo.rollout.timeline import Kind, StepTimeline
from openmimo.rollout.usage import OUTCOMES, StepUsage, usage

KINDS: tuple[Kind, ...] = ("generate", "reward")

COLUMNS = {
    "start": "<f4", "end": "<f4", "prompt": "<u4", "sample": "<u4", "tokens": "<u4", "lane": "<u4",
    "code": "u1",
}  # fmt: skip
"""Of the spans, each as base64: 33 characters a span. `lane` is an index into the step's lanes,
`code` the outcome's number, 8 more for a reward. float32 has a resolution of 0.1 ms at 1,000 s."""


def render_trace(steps: Sequence[StepTimeline]) -> str:
    """The page, of one step or several to choose from."""
    shown = [(step, usage(step)) for step in steps]
    return page(
        "rollout_trace.html.j2",
        {
            "steps": shown,
            "outcomes": OUTCOMES,
            "data": [encode(step, used) for step, used in shown],
        },
    )


def encode(step: StepTimeline, used: StepUsage) -> dict[str, Any]:
    """A step for JSON, its spans as `COLUMNS` and by start, which the scripts rely on."""
    spans = sorted(step.spans, key=lambda span: span.start)
    lanes = {lane: number for number, lane in enumerate(step.lanes)}
    codes = {
        (kind, outcome): 8 * KINDS.index(kind) + OUTCOMES.index(outcome)
        for kind in KINDS
        for outcome in OUTCOMES
    }
    values = {
        "start": [span.start for span in spans],
        "end": [span.end for span in spans],
        "prompt": [span.prompt for span in spans],
        "sample": [span.sample for span in spans],
        "tokens": [span.tokens for span in spans],
        "lane": [lanes[span.lane] for span in spans],
        "code": [codes[span.kind, span.outcome] for span in spans],
    }
    return {
        "name": step.name,
        "lanes": step.lanes,
        "seconds": step.seconds,
        "last_launch": step.last_launch,
        "engines": [{"lane": lanes[lane], "idle": of.idle} for lane, of in used.engines.items()],
        "spans": {
            name: base64.b64encode(np.array(values[name], dtype).tobytes()).decode()
            for name, dtype in COLUMNS.items()
        },
    }
