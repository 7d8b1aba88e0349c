"""What a finished step says of itself."""

from collections.abc import Iterable, Sequence

from openmimo.rollout.events import Done, StepStats
from openmimo.rollout.groups import Group
from openmimo.rollout.validity import (
    passes,
    valid_by_passrate,
    valid_by_reward_std,
    whole_group_passes,
)


def summarise(
    groups: Sequence[Group], committed: int, selected: tuple[int, ...], wanted: int, lost: int
) -> Done:
    """The step's last word: the first `committed` of its groups count, `selected` are its batch."""
    chosen = set(selected)
    surplus = [group for index, group in enumerate(groups) if index not in chosen]
    scores = [group.in_order() for group in groups[:committed]]
    aborted = [group.aborted for group in groups[:committed]]
    all_passed = tuple(
        None if stopped else whole_group_passes(each)
        for stopped, each in zip(aborted, scores, strict=True)
    )
    return Done(
        selected=selected,
        all_passed=all_passed,
        short=len(selected) < wanted,
        stats=StepStats(
            launched=len(groups),
            aborted=_count(group.aborted for group in groups),
            surplus_valid=_count(group.valid and not group.aborted for group in surplus),
            lost=lost,
            committed=committed,
            valid_passrate=_count(map(valid_by_passrate, scores)),
            valid_reward_std=_count(map(valid_by_reward_std, scores)),
            all_passed=_count(passed is True for passed in all_passed),
            none_passed=_count(
                not any(score is not None and passes(score) for score in each) for each in scores
            ),
            failed=_count(group.failed for group in groups[:committed]),
            unscorable_samples=_count(score is None for each in scores for score in each),
        ),
    )


def _count(flags: Iterable[bool]) -> int:
    return sum(flags)
