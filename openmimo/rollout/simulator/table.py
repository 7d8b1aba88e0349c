"""Ways to run a step, by the names that tables give them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from openmimo.rollout.policies import (
    Continuous,
    ContinuousAsyncReward,
    Greedy,
    Naive,
    NaiveAsyncReward,
    OneForOne,
    Ours,
    Policy,
    RefillTwice,
    Report,
    Static,
)
from openmimo.rollout.simulator.measure import Measures, measure
from openmimo.rollout.simulator.settings import Setting
from openmimo.rollout.simulator.simulate import simulate
from openmimo.rollout.simulator.trace import StepTrace
from openmimo.rollout.validity import Validity, every_group, valid_by_passrate


@dataclass(frozen=True)
class Row:
    """A way to run a step. `drafts`: with MTP speculation, where the batch is small."""

    policy: Policy
    validity: Validity = valid_by_passrate
    drafts: bool = False


def rows() -> dict[str, Row]:
    """Those of the report's Table 2, of other frameworks, ours, and ours without each of its
    parts."""
    ours = Ours()
    return {
        "static": Row(Naive(), every_group),
        "naive": Row(Naive()),
        "naive_async_reward": Row(NaiveAsyncReward()),
        "one_for_one": Row(OneForOne()),
        "greedy": Row(Greedy()),
        "refill_2k": Row(RefillTwice()),
        "continuous": Row(Continuous()),
        "continuous_async_reward": Row(ContinuousAsyncReward()),
        "report": Row(Report()),
        "ours": Row(ours),
        "ours_no_posterior": Row(replace(ours, posterior=False)),
        "ours_no_longest_first": Row(replace(ours, longest_first=False)),
        "ours_no_early_verdicts": Row(replace(ours, early_verdicts=False)),
        "ours_no_early_termination": Row(replace(ours, ends="drain")),
        "ours_mtp": Row(ours, drafts=True),
    }


def validation_rows() -> dict[str, Row]:
    """Those of the report's Table 3: all answers to a set of prompts are wanted."""
    return {
        "naive": Row(Naive(), every_group),
        "streaming": Row(Static(), every_group),
        "streaming_mtp": Row(Static(), every_group, drafts=True),
    }


def run_rows(trace: StepTrace, setting: Setting, chosen: Mapping[str, Row]) -> dict[str, Measures]:
    """Each row's step of the same trace."""
    measures = {}
    for name, row in chosen.items():
        cluster = setting.drafting if row.drafts else setting.cluster
        step = simulate(trace, row.policy, cluster, row.validity)
        measures[name] = measure(step, trace, cluster, row.validity)
    return measures


def mean(measures: Sequence[Measures], what: str) -> float:
    """Of one of the measures."""
    return sum(getattr(each, what) for each in measures) / len(measures)
