"""What is known of prompts from their last visits."""

import json

import numpy as np

from openmimo.inference.protocol import Completion
from openmimo.rewards.verdict import failed, right, wrong
from openmimo.rl.visits import Visits
from openmimo.rollout.demand import Prospect
from openmimo.rollout.records import Group, Prompt


def group(lengths: list[int], passed: list[bool | None]) -> Group:
    made = Group(Prompt({}, [1], range(len(lengths))))
    for sample, (length, each) in enumerate(zip(lengths, passed, strict=True)):
        ids, log_probs = np.zeros(length, np.int32), np.zeros(length, np.float32)
        made.completions[sample] = Completion(sample, ids, log_probs, "stop")
        made.results[sample] = failed("") if each is None else right("") if each else wrong("")
    return made


def test_the_last_visit_counts_and_what_was_never_seen_is_of_average_length() -> None:
    visits = Visits()
    assert visits.prospect(7) == Prospect()
    # The last two prompts were drawn and not committed.
    visits.record([3, 5, 8, 9], [group([10, 30], [True, False]), group([4, 6], [True, None])])
    visits.record([3], [group([100, 100], [False, False])])
    expected = {3: Prospect(0, 2, 100.0), 5: Prospect(1, 0, 5.0), 8: Prospect(tokens=52.5)}
    loaded = Visits()
    loaded.load_state_dict(json.loads(json.dumps(visits.state_dict())))
    for prompt, prospect in expected.items():
        assert visits.prospect(prompt) == loaded.prospect(prompt) == prospect


def test_a_group_without_any_score_says_nothing() -> None:
    visits = Visits()
    visits.record([1], [group([10, 30], [None, None])])
    assert visits.prospect(1) == Prospect()
