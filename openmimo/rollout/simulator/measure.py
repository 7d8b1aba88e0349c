"""What a step's timeline amounts to, and the best that any step could have done."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from openmimo.rollout.events import Done
from openmimo.rollout.simulator.simulate import Cluster, SimulatedStep
from openmimo.rollout.simulator.trace import StepTrace
from openmimo.rollout.usage import usage
from openmimo.rollout.validity import Validity


@dataclass(frozen=True)
class Measures:
    """Of one step.

    seconds: from the first launch to the complete batch, rewards included.
    bound: seconds that no schedule can be faster than, even one that knows all lengths and scores.
    blind_bound: seconds that are to be expected at least without knowing which sample of the batch
        will be the longest.
    idle: 1 - busy time / (engines * seconds). An engine is busy while it decodes at least one
        sample that is neither stopped nor lost later.
    waste: valid groups finished and not needed, as a share of the batch.
    length_bias: mean tokens of the batch's answers, less those of the right batch.
    slot_use: share of all slots' time in which a sample was decoded.
    discarded: share of the generated tokens that were stopped, lost or not needed.
    tail: seconds from the last launch to the end.
    """

    seconds: float
    bound: float
    blind_bound: float
    idle: float
    waste: float
    length_bias: float
    slot_use: float
    discarded: float
    tail: float

    @property
    def share_of_bound(self) -> float:
        return self.bound / self.seconds

    @property
    def share_of_blind_bound(self) -> float:
        return self.blind_bound / self.seconds


def measure(
    step: SimulatedStep, trace: StepTrace, cluster: Cluster, validity: Validity
) -> Measures:
    """Of a simulated step of `trace`."""
    timeline, done = step.timeline, step.done
    used = usage(timeline)
    generated = [span for span in timeline.spans if span.kind == "generate"]
    capacity = cluster.engines * timeline.seconds
    tokens = sum(span.tokens for span in generated)
    needed = sum(span.tokens for span in generated if span.outcome in ("kept", "filtered"))
    occupied = sum(span.end - span.start for span in generated)
    return Measures(
        seconds=timeline.seconds,
        bound=clairvoyant_bound(trace, cluster, validity),
        blind_bound=blind_bound(trace, cluster, validity),
        idle=used.idle + used.doomed,
        waste=done.stats.surplus_valid / trace.prompts_per_step,
        length_bias=length_bias(done, trace, validity),
        slot_use=occupied / (capacity * cluster.speed.slots),
        discarded=1 - needed / tokens,
        tail=used.tail,
    )


def length_bias(done: Done, trace: StepTrace, validity: Validity) -> float:
    """Mean tokens of the answers in the batch, less those of the oracle's."""
    right, _ = trace.oracle(validity)
    return _mean_tokens(trace, done.selected) - _mean_tokens(trace, right)


def _mean_tokens(trace: StepTrace, indices: Iterable[int]) -> float:
    lengths = [trace.prompts[index].tokens for index in indices]
    return float(np.mean(lengths)) if lengths else 0.0


def clairvoyant_bound(trace: StepTrace, cluster: Cluster, validity: Validity) -> float:
    """Seconds that the right batch takes at least, with the prompts before it that are not valid.

    The larger of two: the time of the sample that takes longest, alone on its engine, and its
    reward; and the tokens of all, decoded at the rate of full engines from beginning to end.
    """
    _, end = trace.oracle(validity)
    prompts, speed = trace.prompts[:end], cluster.speed
    longest = max(
        tokens / speed.rate(1) + seconds
        for prompt in prompts
        for tokens, seconds in zip(prompt.tokens, prompt.reward_seconds, strict=True)
    )
    work = sum(sum(prompt.tokens) for prompt in prompts)
    return max(speed.prefill + longest, work / (cluster.engines * speed.throughput))


def blind_bound(trace: StepTrace, cluster: Cluster, validity: Validity) -> float:
    """The bound without foresight of single samples: the longest sample has average company.

    All that the batch needs starts at once, evenly spread. While the longest sample is decoded, so
    are the others of its engine, whose tokens delay it. An engine with less company would have been
    lucky: as long as nothing tells the longest sample from others, it is as likely on any. Delaying
    others for its sake delays it as likely. (What is known of prompts tells a little, so a good
    placement can come out slightly below.)
    """
    _, end = trace.oracle(validity)
    prompts, speed = trace.prompts[:end], cluster.speed
    longest = max(max(prompt.tokens) for prompt in prompts)
    company = max(longest, sum(sum(prompt.tokens) for prompt in prompts) / cluster.engines)
    together = speed.seconds(longest, company)
    return max(speed.prefill + together, clairvoyant_bound(trace, cluster, validity))
