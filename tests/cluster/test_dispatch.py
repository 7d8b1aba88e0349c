"""The dispatcher loses no task, whatever dies when."""

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from openmimo.cluster.dispatch import Dispatcher, Task

ATTEMPTS = 4


def task(name="", seconds=1.0):
    return Task(name.encode(), seconds)


class Lives(RuleBasedStateMachine):
    """Actors that come, work and die at any time."""

    def __init__(self):
        super().__init__()
        self.dispatcher = Dispatcher(ATTEMPTS)
        self.added, self.handed_out = [], Counter()
        self.actors, self.calls, self.old = {}, [], []
        self.deaths = Counter()

    @rule(cost=st.floats(0, 10), number=st.integers(1, 40))
    def add(self, cost, number):
        for _ in range(number):
            self.added.append(task())
            self.dispatcher.add(self.added[-1], cost)

    @rule(workers=st.integers(1, 4))
    def join(self, workers):
        name = object()
        self.actors[name] = workers
        self.dispatcher.join(name, workers)

    @rule(most=st.integers(1, 10))
    def send(self, most):
        for _ in range(most):
            call = self.dispatcher.next_call(0.0)
            if call is None:
                return
            assert call.tasks
            self.calls.append(call)

    @rule(data=st.data())
    def finish(self, data):
        if self.calls:
            call = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
            assert self.dispatcher.finish(call) == call.tasks
            self.handed_out.update(call.tasks)
            self.old.append(call)

    @rule(data=st.data(), one=st.booleans())
    def die(self, data, one):
        if not self.actors:
            return
        actor = data.draw(st.sampled_from(list(self.actors)))
        del self.actors[actor]
        had = [call for call in self.calls if call.actor is actor]
        guilty = data.draw(st.sampled_from(had)) if one and had else None
        for call in had if guilty is None else [guilty]:
            self.deaths.update(call.tasks)
        spent = self.dispatcher.leave(actor, guilty)
        assert all(self.deaths[each] == ATTEMPTS for each in spent)
        self.handed_out.update(spent)
        self.calls = [call for call in self.calls if call.actor is not actor]
        self.old += had

    @rule()
    def late_answers_are_ignored(self):
        assert all(self.dispatcher.finish(call) == () for call in self.old)

    @invariant()
    def no_actor_has_too_much(self):
        counts = Counter(call.actor for call in self.calls)
        assert all(counts[actor] <= self.actors[actor] + 1 for actor in counts)
        assert all(len(call.tasks) <= 16 for call in self.calls)

    @invariant()
    def the_bereaved_have_calls_of_their_own(self):
        for call in self.calls:
            assert len(call.tasks) == 1 or not any(self.deaths[each] for each in call.tasks)

    @invariant()
    def suspects_are_alone(self):
        for call in self.calls:
            if any(self.deaths[each] >= 2 for each in call.tasks):
                assert [other for other in self.calls if other.actor is call.actor] == [call]

    def teardown(self):
        """With actors that live, everything is handed out, once."""
        self.join(2)
        self.join(1)
        for _ in range(1000):
            while (call := self.dispatcher.next_call(0.0)) is not None:
                self.calls.append(call)
            if not self.calls:
                break
            self.handed_out.update(self.dispatcher.finish(self.calls.pop(0)))
        assert self.handed_out == Counter(self.added)
        assert self.dispatcher.drain() == []


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_calls_are_large_while_the_queue_is_long_and_single_at_its_end():
    dispatcher = Dispatcher()
    for number in range(200):
        dispatcher.add(task(str(number)))
    for actor in "abcd":
        dispatcher.join(actor, 1)
    sizes = []
    while (call := dispatcher.next_call(0.0)) is not None:
        sizes.append(len(call.tasks))
        if len(sizes) >= 8:
            dispatcher.finish(call)
    assert sum(sizes) == 200
    assert sizes[0] == 16
    assert sizes[-4:] == [1, 1, 1, 1]


def test_a_call_of_several_tasks_is_bounded_in_time():
    dispatcher = Dispatcher()
    for _ in range(100):
        dispatcher.add(task(seconds=250.0))
    dispatcher.add(task(seconds=900.0), 1.0)
    dispatcher.join("a", 2)
    calls = [dispatcher.next_call(0.0) for _ in range(3)]
    assert [len(call.tasks) for call in calls] == [1, 2, 2]


def test_the_most_expensive_task_is_first_and_the_tasks_of_the_dead_before_all():
    dispatcher = Dispatcher()
    for name, cost in ("cheap", 1.0), ("dear", 3.0), ("cheap too", 1.0):
        dispatcher.add(task(name), cost)
    dispatcher.join("a", 2)
    first = dispatcher.next_call(0.0)
    assert [each.payload for each in first.tasks] == [b"dear"]
    second = dispatcher.next_call(0.0)
    assert [each.payload for each in second.tasks] == [b"cheap"]
    dispatcher.finish(first)
    dispatcher.add(task("dearest"), 99.0)
    dispatcher.leave("a")
    dispatcher.join("b", 2)
    assert [each.payload for each in dispatcher.next_call(0.0).tasks] == [b"cheap"]


def test_a_call_may_wait_for_those_before_it_on_its_actor():
    dispatcher = Dispatcher()
    for seconds in 5.0, 7.0:
        dispatcher.add(task(seconds=seconds))
    dispatcher.join("a", 1)
    calls = [dispatcher.next_call(100.0), dispatcher.next_call(100.0)]
    assert [call.deadline for call in calls] == [105.0, 112.0]
    assert dispatcher.next_deadline() == 105.0
    assert dispatcher.overdue(104.9) is None
    assert dispatcher.overdue(105.0) is calls[0]


def test_only_the_call_that_is_overdue_is_to_blame():
    dispatcher = Dispatcher(attempts=1)
    late, innocent = task("late"), task("innocent")
    dispatcher.add(late, 1.0)
    dispatcher.add(innocent)
    dispatcher.join("a", 1)
    call = dispatcher.next_call(0.0)
    dispatcher.next_call(0.0)
    assert dispatcher.leave("a", guilty=call) == [late]
    assert dispatcher.drain() == [innocent]


@pytest.mark.parametrize("workers", [1, 4])
def test_a_task_that_kills_its_actors_takes_nobody_along(workers):
    dispatcher = Dispatcher(ATTEMPTS)
    poison, innocent = task("poison"), [task() for _ in range(50)]
    dispatcher.add(poison, 1.0)
    for each in innocent:
        dispatcher.add(each)
    spent, finished = [], []
    for life in range(100):
        dispatcher.join(life, workers)
        calls = []
        while (call := dispatcher.next_call(0.0)) is not None:
            calls.append(call)
        if not any(poison in call.tasks for call in calls):
            finished += [each for call in calls for each in dispatcher.finish(call)]
        spent += dispatcher.leave(life)
    assert spent == [poison]
    assert Counter(finished) == Counter(innocent)


def test_an_actor_that_ran_a_suspect_gets_other_work_again():
    dispatcher = Dispatcher(attempts=2)
    dispatcher.add(task("unlucky"))
    dispatcher.join("a", 1)
    dispatcher.next_call(0.0)
    dispatcher.leave("a")
    dispatcher.add(task("next"))
    dispatcher.join("b", 1)
    alone = dispatcher.next_call(0.0)
    assert [each.payload for each in alone.tasks] == [b"unlucky"]
    assert dispatcher.next_call(0.0) is None
    dispatcher.finish(alone)
    assert [each.payload for each in dispatcher.next_call(0.0).tasks] == [b"next"]
