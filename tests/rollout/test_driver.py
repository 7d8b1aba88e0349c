"""The driver with the real engine and the real rewards: what it selects depends on nothing else."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Completion, Request, RequestId
from openmimo.model.mimo import MiMo
from openmimo.rewards.pool import RewardPool
from openmimo.rl.stream import PromptStream
from openmimo.rollout.driver import EngineSeat, RolloutDriver
from openmimo.rollout.policies import Continuous, Naive, NaiveAsyncReward, Ours, Policy, Report
from openmimo.rollout.records import Group, Prompt, Rollout
from openmimo.rollout.scheduler import StepSettings
from openmimo.tokenizer import Tokenizer

Taught = tuple[MiMo, Tokenizer, list[dict[str, Any]]]
GROUP, NEW_TOKENS = 4, 16


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool(math_seconds=60.0) as pool:
        yield pool


class Setup:
    """A driver with all that it needs, for rounds one after the other."""

    def __init__(
        self,
        taught: Taught,
        pool: RewardPool,
        slots: int,
        lag: int | None,
        max_length: int = 64,
        kind: type[Engine] = Engine,
    ) -> None:
        model, self.tokenizer, self.problems = taught
        self.slots = slots
        self.max_length = max_length
        self.engine = kind(model, slots=slots, max_length=64, used_vocab=self.tokenizer.vocab_size)
        seat = EngineSeat(self.engine, slots)
        self.driver = RolloutDriver([seat], pool, self.tokenizer.decode, self.request, lag)
        self.stream = PromptStream(len(self.problems), seed=5)

    def draw(self) -> Prompt:
        draw = self.stream.draw()
        problem = self.problems[draw.prompt]
        seeds = [1000 * draw.number + sample for sample in range(GROUP)]
        return Prompt(problem, self.tokenizer.chat_prompt(problem["prompt"]), seeds)

    def request(self, prompt: Prompt, sample: int, request_id: RequestId) -> Request:
        length = min(NEW_TOKENS, self.max_length - len(prompt.ids))
        seed, stop_ids = prompt.sample_seeds[sample], (self.tokenizer.eos_id,)
        return Request(request_id, prompt.ids, length, seed=seed, stop_ids=stop_ids)

    def round(
        self, prompts: int = 3, max_prompts: int = 40, policy: Policy | None = None
    ) -> Rollout:
        settings = StepSettings(
            prompts_per_step=prompts,
            group_size=GROUP,
            max_running_samples=self.slots,
            max_prompts=max_prompts,
        )
        rollout = self.driver.collect(settings, self.draw, policy)
        assert rollout is not None
        self.stream.commit(rollout.done.all_passed)
        return rollout


def content(group: Group) -> list[Any]:
    """Problem, tokens and scores of a group."""
    tokens = [c.token_ids.tolist() for c in group.completions if c is not None]
    return [group.prompt.problem["id"], tokens, group.scores]


def test_batches_do_not_depend_on_lag_or_slots(taught: Taught, pool: RewardPool) -> None:
    def rounds(slots: int, lag: int) -> tuple[list[Any], int]:
        setup = Setup(taught, pool, slots, lag)
        rollouts = [setup.round() for _ in range(3)]
        committed = [
            ([content(g) for g in r.groups], r.done.selected, r.done.all_passed) for r in rollouts
        ]
        return committed, sum(r.decode_steps for r in rollouts)

    expected, steps = rounds(slots=4, lag=0)
    assert all(len(selected) == 3 for _, selected, _ in expected)
    for slots, lag in ((4, 16), (12, 0), (80, 16)):
        committed, other_steps = rounds(slots, lag)
        assert committed == expected
        assert other_steps != steps, "the timing is the same: nothing was tested"


POLICIES: list[Policy] = [Naive(), NaiveAsyncReward(), Continuous(), Report(), Ours()]


def test_every_policy_and_free_rewards_give_the_same_batches(
    taught: Taught, pool: RewardPool
) -> None:
    def rounds(policy: Policy, lag: int | None) -> list[Any]:
        setup = Setup(taught, pool, slots=12, lag=lag)
        rollouts = [setup.round(policy=policy) for _ in range(3)]
        return [([content(g) for g in r.groups], r.done.selected) for r in rollouts]

    expected = rounds(Ours(), 4)
    for policy in POLICIES:
        assert rounds(policy, None) == expected, policy.name


def test_the_same_twice_is_the_same_to_the_last_decode_step(
    taught: Taught, pool: RewardPool
) -> None:
    """Also what was launched and aborted, whatever time the rewards take."""
    first, second = (Setup(taught, pool, slots=24, lag=5) for _ in range(2))
    for _ in range(3):
        one, two = first.round(), second.round()
        assert one.done == two.done
        assert one.decode_steps == two.decode_steps
        for group, other in zip(one.groups, two.groups, strict=True):
            pairs = zip(group.completions, other.completions, strict=True)
            assert all(np.array_equal(a.log_probs, b.log_probs) for a, b in pairs if a and b)


def test_nothing_of_a_round_shows_up_in_the_next(taught: Taught) -> None:
    """Every round aborts prompts, and rewards of samples that nobody needs arrive late."""
    model, tokenizer, problems = taught
    roots = {"1": r"\sqrt{1}", "2": r"\sqrt{4}", "3": r"\sqrt{9}"}
    answers = dict(zip(roots.values(), roots, strict=True))
    slow = [problem | {"answer": root} for problem, root in zip(problems, answers, strict=False)]
    aborted = late = 0
    with RewardPool(math_seconds=60.0, cache_size=0) as pool:
        setup = Setup((model, tokenizer, slow), pool, slots=40, lag=2)
        # A small batch leaves rewards behind; a large one has groups of the same numbers.
        for number, prompts in enumerate((1, 6, 1, 6, 1, 6), start=1):
            rollout = setup.round(prompts, policy=Ours(confidence=1 - 1e-9))
            if prompts == 1:
                aborted += rollout.done.stats.aborted
                late += pool.scored - sum(
                    c is not None for g in rollout.groups for c in g.completions
                )
            stats = setup.engine.stats()
            assert stats.active == stats.waiting == 0
            for group in rollout.groups:
                answer = answers[group.prompt.problem["answer"]]
                for completion, score in zip(group.completions, group.scores, strict=True):
                    assert completion is not None
                    assert str(completion.request_id).startswith(f"{number}/")
                    assert completion.finish_reason in ("stop", "length")
                    text = tokenizer.decode(completion.token_ids.tolist())
                    boxed = re.findall(r"\\boxed\{(.)\}", text)
                    assert score == float(boxed[-1:] == [answer])
    assert aborted, "no round aborted a prompt: nothing was tested"
    assert late, "no reward was late: nothing was tested"


def test_prompts_are_committed_in_stream_order(taught: Taught, pool: RewardPool) -> None:
    setup = Setup(taught, pool, slots=60, lag=6)
    rollout = setup.round()
    again = PromptStream(len(setup.problems), seed=5)
    drawn = [setup.problems[again.draw().prompt]["id"] for _ in rollout.groups]
    assert [group.prompt.problem["id"] for group in rollout.groups] == drawn
    assert rollout.done.selected[-1] == len(rollout.groups) - 1
    assert [rollout.groups.index(group) for group in rollout.batch] == list(rollout.done.selected)


def test_a_short_step_ends_with_what_there_is(taught: Taught, pool: RewardPool) -> None:
    """Problems that are never solved: no batch, but every prompt is accounted for."""
    model, tokenizer, problems = taught
    hopeless = [problem | {"answer": "7"} for problem in problems]
    rollout = Setup((model, tokenizer, hopeless), pool, slots=8, lag=3).round(max_prompts=5)
    assert rollout.done.short
    assert rollout.batch == []
    assert rollout.done.all_passed == (False,) * 5


def test_an_answer_ends_where_the_context_is_full(taught: Taught, pool: RewardPool) -> None:
    """Prompts differ in length; each answer has what its own prompt leaves."""
    room = 3
    setup = Setup(taught, pool, slots=8, lag=3)
    longest = max(len(setup.tokenizer.chat_prompt(p["prompt"])) for p in setup.problems)
    short = Setup(taught, pool, slots=8, lag=3, max_length=longest + room)
    rollout = short.round(max_prompts=5)
    cut = 0
    for group in rollout.groups:
        left = min(NEW_TOKENS, longest + room - len(group.prompt.ids))
        for completion in group.completions:
            assert completion is not None
            assert len(completion.token_ids) <= left
            assert completion.finish_reason == "stop" or len(completion.token_ids) == left
            cut += completion.finish_reason == "length" and left < NEW_TOKENS
    assert cut, "the context never was full: nothing was tested"


class Failing(Engine):
    """Gives up the first sample of every group, as an engine on another machine may."""

    def step(self) -> list[Completion]:
        return [
            replace(done, token_ids=done.token_ids[:2], finish_reason="failed", error="too odd")
            if str(done.request_id).endswith("/0")
            else done
            for done in super().step()
        ]


def test_a_failed_request_is_no_wrong_answer(taught: Taught, pool: RewardPool) -> None:
    setup = Setup(taught, pool, slots=24, lag=5, kind=Failing)
    rollout = setup.round()
    assert len(rollout.batch) == 3
    for group in rollout.groups:
        assert group.scores[0] is None
        assert None not in group.scores[1:]
        assert group.results[0] is not None
        assert "too odd" in group.results[0].detail
    assert rollout.done.stats.unscorable_samples >= len(rollout.batch)
