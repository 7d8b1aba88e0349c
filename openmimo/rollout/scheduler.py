"""Scheduling of one on-policy RL step with dynamic sampling: events in, actions out.

No clock, randomness, tensors or I/O here: whatever drives an engine (or a simulator) feeds events
and carries out the actions. Source: MiMo report, section on the Seamless Rollout Engine.
"""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from openmimo.errors import UserError
from openmimo.rollout.demand import Forecast, PassRates, Prospect
from openmimo.rollout.events import (
    Abort,
    Action,
    Done,
    Event,
    Generated,
    Launch,
    Lost,
    Score,
    Scored,
    Start,
)
from openmimo.rollout.groups import Group
from openmimo.rollout.policies import Ours, Policy
from openmimo.rollout.summary import summarise
from openmimo.rollout.validity import Validity, passes, valid_by_passrate

State = Literal["running", "valid", "invalid", "failed", "aborted"]


@dataclass(frozen=True)
class StepSettings:
    """What one step collects, and how much may run at once.

    prompts_per_step: valid groups wanted.
    group_size: samples of a prompt.
    max_running_samples: samples generated at the same time: the slots of all engines.
    max_prompts: prompts launched before the step gives up and ends short.
    validity: which groups count (`openmimo.rollout.validity`); must be monotone.
    max_losses: how often one sample may be lost before it counts as unscorable: more often than one
        engine is started again in a step, as its deaths need not be the sample's fault.
    """

    prompts_per_step: int
    group_size: int
    max_running_samples: int
    max_prompts: int
    validity: Validity = valid_by_passrate
    max_losses: int = 8

    def __post_init__(self) -> None:
        if self.prompts_per_step < 1:
            raise UserError(f"prompts_per_step is {self.prompts_per_step}; it must be at least 1")
        if self.group_size < 1:
            raise UserError(f"group_size is {self.group_size}; it must be at least 1")
        if self.max_running_samples < 1:
            raise UserError(
                f"max_running_samples is {self.max_running_samples}; it must be at least 1"
            )
        if self.max_prompts < self.prompts_per_step:
            raise UserError(
                f"max_prompts is {self.max_prompts}, less than prompts_per_step "
                f"({self.prompts_per_step}): no step could ever fill its batch"
            )


class StepScheduler:
    """Decides what to launch, start, score and abort until one batch is complete.

    Two orders are kept apart. Selection order is the stream index: the batch is the first
    B = prompts_per_step valid groups by index, whichever finish first, so long answers are not
    selected against and the batch does not depend on timing. Dispatch order, in which samples
    start, is free.

    Call `start` once, then `handle` for every event, until the actions contain `Done`.

    Invariants, after `start` and after each `handle`:
    - launched == running + valid + invalid + failed + aborted (see `state`);
    - prompts are launched with indices 0, 1, 2, ... without gaps;
    - each sample of a launched prompt waits, is generated, is scored or is finished; it starts
      once, and once more for each time it was lost;
    - at most max_running_samples samples are generated, and none waits while a slot is free;
    - at most max_prompts prompts were launched;
    - something is generated or scored, or the step is done: it cannot wait forever;
    - for a policy that keeps the order, a prompt is aborted only if B lower indices are sure to be
      valid, and `Done.selected` and `Done.all_passed` are functions of the prompts' scores alone;
      `Done.short` is true only if the first max_prompts prompts hold fewer than B valid groups;
    - the same events give the same actions: a step goes on from its list of events.
    """

    def __init__(
        self,
        settings: StepSettings,
        policy: Policy | None = None,
        history: PassRates | None = None,
        prospect: Callable[[int], Prospect] = lambda index: Prospect(),
    ) -> None:
        """`history`: the pass rates of earlier steps. `prospect`: what is known of a prompt, by its
        stream index; asked once, after the prompt's `Launch` was decided."""
        self.settings = settings
        self.policy = policy or Ours()
        self.done: Done | None = None
        self._prospect = prospect
        self._forecast = Forecast(history or PassRates(settings.group_size))
        self._groups: list[Group] = []
        self._unfinished: dict[int, Group] = {}
        self._waiting: list[tuple[int, float, int, int]] = []  # a heap of samples; see _enqueue
        self._unscored: list[tuple[int, int]] = []  # generated before a barrier
        self._generating = 0  # samples
        self._valid = 0  # groups sure to be valid, finished or not
        self._invalid = 0  # groups finished otherwise
        self._finished_valid: list[int] = []  # in the order they finished
        self._tokens = self._answers = 0
        self._lost = 0

    # What a policy sees (`policies.StepView`).

    @property
    def wanted(self) -> int:
        return self.settings.prompts_per_step

    @property
    def launched(self) -> int:
        return len(self._groups)

    @property
    def running(self) -> int:
        """Prompts with samples still to come."""
        return len(self._unfinished)

    @property
    def valid(self) -> int:
        return self._valid

    @property
    def invalid(self) -> int:
        return self._invalid

    @property
    def seen_valid_rate(self) -> float:
        return self._forecast.rates.valid_rate

    @property
    def free_slots(self) -> int:
        # While prompts are launched, all that waits may still be needed.
        return self.settings.max_running_samples - self._generating - len(self._waiting)

    @property
    def expected(self) -> float:
        return self._valid + self._forecast.expected

    def probability(self, valid: int) -> float:
        return self._forecast.probability(valid - self._valid)

    # What a driver sees.

    @property
    def running_samples(self) -> int:
        """Samples that are generated now."""
        return self._generating

    @property
    def waiting_samples(self) -> int:
        """Samples that wait for a slot."""
        return sum(len(group.waiting) for group in self._unfinished.values())

    @property
    def rates(self) -> PassRates:
        """The pass rates of earlier steps and of this one's finished groups."""
        return self._forecast.rates

    def state(self, prompt_index: int) -> State:
        group = self._groups[prompt_index]
        if group.aborted:
            return "aborted"
        if not group.finished:
            return "running"
        if group.valid:
            return "valid"
        return "failed" if group.failed else "invalid"

    def scores(self, prompt_index: int) -> list[float | None]:
        """Scores received for a prompt so far, by sample number."""
        return self._groups[prompt_index].in_order()

    def start(self) -> list[Action]:
        """The first launches."""
        if self._groups:
            raise RuntimeError("this step has been started already")
        return self._next_actions()

    def handle(self, event: Event) -> list[Action]:
        """Take one event in and say what to do now.

        Events of aborted prompts are ignored: they may cross with the abort. Raises ValueError on
        an event that cannot be true (unknown prompt, sample in another state, score not finite).
        """
        if not 0 <= event.prompt_index < len(self._groups):
            raise ValueError(f"{event} is about a prompt that was never launched")
        group = self._groups[event.prompt_index]
        if group.aborted:
            return []
        match event:
            case Generated():
                group.move(event, group.generating, group.scoring)
                self._generating -= 1
                self._tokens, self._answers = self._tokens + event.tokens, self._answers + 1
                self._unscored.append((event.prompt_index, event.sample))
            case Lost():
                group.move(event, group.generating, group.waiting)
                self._generating -= 1
                self._lose(event, group)
            case Scored(score=score):
                if score is not None and not math.isfinite(score):
                    raise ValueError(f"{event} has a score that is not finite")
                group.take_score(event, score)
                self._learn(event.prompt_index, group)
        return self._next_actions()

    def _lose(self, event: Lost, group: Group) -> None:
        self._lost += 1
        if group.lose(event.sample) > self.settings.max_losses:
            group.give_up(event.sample)
            self._learn(event.prompt_index, group)
        else:
            self._enqueue(event.prompt_index, group, event.sample)

    def _learn(self, index: int, group: Group) -> None:
        """Count what a sample's score changes."""
        settled = group.valid or group.finished
        counts = self.policy.early_verdicts or group.finished
        scores = group.in_order()
        if not group.valid and counts and self.settings.validity(scores):
            group.valid = settled = True
            self._valid += 1
        if group.finished:
            del self._unfinished[index]
            scored = [score for score in scores if score is not None]
            self._forecast.finish(sum(map(passes, scored)), len(scored), group.valid)
            if group.valid:
                self._finished_valid.append(index)
            else:
                self._invalid += 1
        if settled:
            self._forecast.settle(index)
        else:
            scored = [score for score in scores if score is not None]
            passed = sum(map(passes, scored))
            self._forecast.update(index, passed, len(scored) - passed, group.left)

    def _next_actions(self) -> list[Action]:
        actions: list[Action] = []
        last = self._last_selectable()
        if last is None:
            while self.launched < self.settings.max_prompts and self.policy.launches(self):
                actions.append(self._launch())
        else:
            beyond = [index for index in self._unfinished if index > last or self._full()]
            actions += [self._abort(index) for index in beyond]
        actions += self._starts()
        actions += self._scores()
        if not self._unfinished:
            # Every prompt up to `last` is finished, so `last` is k*. Without it nothing more is to
            # be launched, though nothing runs.
            self.done = self._finish()
            actions.append(self.done)
        return actions

    def _full(self) -> bool:
        """Whether a batch of groups in the order of finishing is complete."""
        return self.policy.ends == "finish" and len(self._finished_valid) >= self.wanted

    def _last_selectable(self) -> int | None:
        """The last prompt that may still be needed, if it is known: nothing is launched then.

        With the order kept, the end of the shortest prefix with B groups sure to be valid: groups
        inside that are undecided may still turn valid, which moves it down, never up.
        """
        if self.policy.ends == "finish":
            return self.launched if self._full() else None
        if self.policy.ends == "drain" or self._valid < self.wanted:
            return None
        return self._end_of_prefix()

    def _end_of_prefix(self) -> int | None:
        seen = 0
        for index, group in enumerate(self._groups):
            seen += group.valid
            if seen == self.wanted:
                return index
        return None

    def _launch(self) -> Launch:
        index = len(self._groups)
        prospect = self._prospect(index)
        group = Group(self.settings.group_size, prospect.tokens)
        group.spare = self.expected >= self.wanted
        self._groups.append(group)
        self._unfinished[index] = group
        self._forecast.launch(index, prospect)
        for sample in range(self.settings.group_size):
            self._enqueue(index, group, sample)
        return Launch(index)

    def _enqueue(self, index: int, group: Group, sample: int) -> None:
        # What was lost comes first, as it has been waited for; spare groups last, as they may well
        # be aborted. Where no length is known the order is that of the stream.
        rank = -1 if group.was_lost(sample) else int(group.spare)
        length = -(group.tokens or 0.0) if self.policy.longest_first else 0.0
        heapq.heappush(self._waiting, (rank, length, index, sample))

    def _starts(self) -> list[Action]:
        starts: list[Action] = []
        mean = self._tokens / self._answers if self._answers else 1.0
        while self._waiting and self._generating < self.settings.max_running_samples:
            _, _, index, sample = heapq.heappop(self._waiting)
            group = self._groups[index]
            if group.aborted:
                continue
            group.begin(sample)
            self._generating += 1
            starts.append(Start(index, sample, group.tokens or mean))
        return starts

    def _scores(self) -> list[Action]:
        if self.policy.rewards == "barrier" and self._generating:
            return []
        scores: list[Action] = []
        for index, sample in self._unscored:
            if not self._groups[index].aborted:
                scores.append(Score(index, sample))
        self._unscored.clear()
        return scores

    def _abort(self, index: int) -> Abort:
        group = self._unfinished.pop(index)
        self._generating -= len(group.generating)
        group.aborted = True
        self._valid -= group.valid
        self._forecast.settle(index)
        return Abort(index)

    def _finish(self) -> Done:
        if self.policy.keeps_order:
            end = self._end_of_prefix()
            committed = self._groups[: self.launched if end is None else end + 1]
            selected = tuple(index for index, group in enumerate(committed) if group.valid)
        else:
            selected = tuple(self._finished_valid[: self.wanted])
            committed = self._groups[: max(selected, default=self.launched - 1) + 1]
        return summarise(self._groups, len(committed), selected, self.wanted, self._lost)
