"""Scheduler and stream together: a whole run does not depend on timing."""

import random

from openmimo.rl.stream import PromptStream
from openmimo.rollout.demand import PassRates
from openmimo.rollout.events import Abort, Done, Generated, Launch, Scored, Start
from openmimo.rollout.scheduler import StepScheduler, StepSettings

PROMPTS, GROUP = 40, 4


def reward(prompt: int, draw: int, sample: int) -> float:
    """A policy that solves low-numbered prompts always, and others by chance."""
    return float(prompt < 8 or random.Random(f"{prompt}/{draw}/{sample}").random() < 0.4)


def run_steps(timing: int, slots: int, steps: int = 12) -> list[tuple[list[int], int]]:
    """The batches (prompts) of a run, with the size of the easy pool after each."""
    order = random.Random(timing)
    stream = PromptStream(PROMPTS, seed=0)
    settings = StepSettings(
        prompts_per_step=6, group_size=GROUP, max_running_samples=slots, max_prompts=60
    )
    rates = PassRates(GROUP)
    batches = []
    for _ in range(steps):
        scheduler = StepScheduler(settings, history=rates)
        out, running = [], []
        actions = scheduler.start()
        while True:
            for action in actions:
                if isinstance(action, Launch):
                    out.append(stream.draw())
                elif isinstance(action, Start):
                    running.append((action.prompt_index, action.sample))
                elif isinstance(action, Abort):
                    running = [item for item in running if item[0] != action.prompt_index]
            if scheduler.done:
                break
            index, sample = running.pop(order.randrange(len(running)))
            score = reward(out[index].prompt, out[index].number, sample)
            actions = scheduler.handle(Generated(index, sample))
            actions += scheduler.handle(Scored(index, sample, score))
        done: Done = scheduler.done
        assert not done.short
        stream.commit(done.all_passed)
        for index in range(done.stats.committed):
            passed = sum(score == 1 for score in scheduler.scores(index))
            rates = rates.plus(passed, GROUP, index in done.selected)
        rates = rates.limited(20)
        batches.append(([out[index].prompt for index in done.selected], stream.pool_size))
    return batches


def test_batches_and_easy_pool_do_not_depend_on_timing_or_slots() -> None:
    expected = run_steps(timing=0, slots=GROUP)
    assert expected[-1][1] >= 6, "the easy prompts have moved to the pool"
    for timing, slots in ((1, 4), (2, 9), (3, 40), (4, 400)):
        assert run_steps(timing, slots) == expected
