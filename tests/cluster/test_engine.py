"""Engines in actors of a local cluster: the batches are those of the engine in this process,
whatever dies meanwhile."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from openmimo.cluster.engine import EngineHost, RayEngine
from openmimo.cluster.weights import WeightStore, pack, unpack
from openmimo.config.schema import ComputeConfig
from openmimo.errors import UserError
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import InferenceEngine, Request, RequestId
from openmimo.model.mimo import MiMo
from openmimo.rewards.pool import RewardPool
from openmimo.rollout import engines
from openmimo.rollout.driver import EngineSeat, RolloutDriver
from openmimo.rollout.engines import EngineSettings, NativeFactory, open_engines
from openmimo.rollout.records import Prompt, Rollout
from openmimo.rollout.scheduler import StepSettings
from openmimo.tokenizer import Tokenizer

Taught = tuple[MiMo, Tokenizer, list[dict[str, Any]]]
GROUP, SLOTS, LENGTH = 4, 12, 64


class Slow(Engine):
    """So that there is time to kill it."""

    def step(self) -> Any:
        time.sleep(0.02)
        return super().step()


class Stuck(Engine):
    def step(self) -> Any:
        time.sleep(60)


class SlowFactory(NativeFactory):
    """NativeFactory's engine, slower."""

    kind: type[Engine] = Slow

    def __call__(self) -> Engine:
        engine = super().__call__()
        engine.__class__ = self.kind
        return engine


class StuckFactory(SlowFactory):
    kind = Stuck


def no_engine() -> InferenceEngine:
    raise UserError("there is no such model here")


@pytest.fixture(autouse=True, scope="module")
def by_value() -> None:
    """This file is no module that actors could import."""
    cloudpickle = pytest.importorskip("ray.cloudpickle", reason="no Ray")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def pool() -> Iterator[RewardPool]:
    with RewardPool(math_seconds=60.0) as pool:
        yield pool


@pytest.fixture(scope="module")
def other(taught: Taught) -> MiMo:
    """The taught model a little astray: it answers, and otherwise."""
    torch.manual_seed(0)
    model = MiMo(taught[0].config)
    state = taught[0].state_dict()
    model.load_state_dict({name: t + 0.02 * torch.randn_like(t) for name, t in state.items()})
    return model.eval()


def factory(taught: Taught, kind: type[NativeFactory] = SlowFactory) -> NativeFactory:
    model, tokenizer, _ = taught
    settings = EngineSettings(SLOTS, LENGTH, tokenizer.vocab_size)
    return kind(model.config, model.rope_base, torch.float32, settings)


def steps(
    taught: Taught, pool: RewardPool, seats: list[EngineSeat], models: list[MiMo], on_sample: Any
) -> list[Rollout]:
    """A step for each of the models, one after the other, with the same prompts."""
    _, tokenizer, problems = taught

    def request(prompt: Prompt, sample: int, request_id: RequestId) -> Request:
        seed, stop_ids = prompt.sample_seeds[sample], (tokenizer.eos_id,)
        return Request(request_id, prompt.ids, 24, seed=seed, stop_ids=stop_ids)

    rollouts = []
    with RolloutDriver(seats, pool, tokenizer.decode, request) as driver:
        settings = StepSettings(6, GROUP, driver.slots, max_prompts=60)
        for model in models:
            numbers = iter(range(60))

            def draw(numbers: Iterator[int] = numbers) -> Prompt:
                number = next(numbers)
                problem = problems[number % 7]
                seeds = [100 * number + sample for sample in range(GROUP)]
                return Prompt(problem, tokenizer.chat_prompt(problem["prompt"]), seeds)

            driver.update_weights(dict(model.state_dict()))
            rollout = driver.collect(settings, draw, on_sample=on_sample)
            assert rollout is not None
            rollouts.append(rollout)
    return rollouts


def content(rollout: Rollout) -> list[Any]:
    return [
        (g.prompt.problem["id"], [c.token_ids.tolist() for c in g.completions if c], g.scores)
        for g in rollout.batch
    ]


@pytest.fixture(scope="module")
def expected(taught: Taught, pool: RewardPool, other: MiMo) -> list[Any]:
    """The batches of the native engine here, with both models."""
    model, tokenizer, _ = taught
    engine = Engine(model, slots=24, max_length=LENGTH, used_vocab=tokenizer.vocab_size)
    rollouts = steps(taught, pool, [EngineSeat(engine, 24)], [model, other], None)
    batches = [content(rollout) for rollout in rollouts]
    assert all(len(batch) == 6 for batch in batches)
    assert batches[0] != batches[1]
    return batches


@pytest.fixture
def ray_engines(
    taught: Taught, cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], list[EngineSeat]]]:
    """`ray_engines(n)`: so many, as a recipe has them, but slower."""
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    monkeypatch.setattr(engines, "NativeFactory", SlowFactory)
    with ExitStack() as stack:

        def make(count: int) -> list[EngineSeat]:
            compute = ComputeConfig(rollouts="ray", ray_engines=count)
            settings = EngineSettings(SLOTS, LENGTH, taught[1].vocab_size)
            return stack.enter_context(open_engines(compute, settings, taught[0]))

        yield make


class Killer:
    """Kills an engine's process with sample number `at` of a step."""

    def __init__(self, engine: InferenceEngine, at: int) -> None:
        import ray

        assert isinstance(engine, RayEngine)
        pid = engine._host.__ray_call__.remote(lambda _: os.getpid())
        self.pid, self.samples, self.at = int(ray.get(pid, timeout=60)), 0, at

    def __call__(self, *_: Any) -> None:
        self.samples += 1
        if self.samples == self.at:
            os.kill(self.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_actor_loses_nothing(
    taught: Taught, pool: RewardPool, expected: list[Any], ray_engines: Any
) -> None:
    seats = ray_engines(2)
    (rollout,) = steps(taught, pool, seats, [taught[0]], Killer(seats[0].engine, at=5))
    assert content(rollout) == expected[0]
    assert rollout.done.stats.lost > 0
    assert {span.lane for span in rollout.timeline.spans if span.outcome == "lost"} == {"engine 0"}


@pytest.mark.slow
def test_an_actor_that_is_started_again_has_the_newest_weights(
    taught: Taught, pool: RewardPool, other: MiMo, expected: list[Any], ray_engines: Any
) -> None:
    """The only one, so that its successor has to do the rest."""
    (seat,) = ray_engines(1)
    first = len(expected[0]) * GROUP
    killer = Killer(seat.engine, at=first + 40)
    rollouts = steps(taught, pool, [seat], [taught[0], other], killer)
    assert [content(rollout) for rollout in rollouts] == expected
    assert sum(rollout.done.stats.lost for rollout in rollouts) > 0


@pytest.mark.slow
def test_what_goes_wrong_is_one_line(taught: Taught, cluster: Any) -> None:
    def engine(make: Any = no_engine, **settings: Any) -> RayEngine:
        return RayEngine(make, store=WeightStore(), address=cluster.address, **settings)

    with pytest.raises(UserError, match=r"^there is no such model here$"):
        engine()
    with pytest.raises(UserError, match=r"not started within 2 s: has a node .*'num_cpus': 99"):
        engine(options={"num_cpus": 99}, start_seconds=2)
    with engine(factory(taught, StuckFactory), timeout=2) as stuck:
        stuck.submit([Request(0, [1], 4)])
        with pytest.raises(UserError, match="gave no answer within 2 s"):
            stuck.step()
        with pytest.raises(UserError, match="gave no answer within 2 s"):
            stuck.stats()


@pytest.mark.slow
def test_the_protocol(taught: Taught, cluster: Any) -> None:
    """Streaming, abort and counters are those of the engine in the actor."""
    model = taught[0]
    here = Engine(model, slots=SLOTS, max_length=LENGTH, used_vocab=taught[1].vocab_size)
    requests = [Request(n, [5, 6, 7], 40, seed=n) for n in range(2)]
    (whole, _) = here.run(requests)
    with RayEngine(factory(taught), store=WeightStore(), address=cluster.address) as engine:
        engine.update_weights(model)
        assert engine.step() == []
        engine.submit(requests)
        while len(engine.generated(0).token_ids) < 5:
            assert engine.step() == []
        so_far = engine.generated(0, 2)
        assert so_far.token_ids.tolist() == whole.token_ids[2 : 2 + len(so_far.token_ids)].tolist()
        (gone,) = engine.abort([0, "unknown"])
        assert gone.finish_reason == "aborted"
        assert gone.token_ids.tolist() == whole.token_ids[: len(gone.token_ids)].tolist()
        assert engine.stats().active == 1
        while not (done := engine.step()):
            pass
        assert [completion.request_id for completion in done] == [1]
        assert engine.step() == []
        engine.submit([Request("x", [1], 100)])
        with pytest.raises(UserError, match=r"^request x: 1 prompt tokens and 100 new ones make"):
            engine.step()
    with pytest.raises(UserError, match="request x"):
        engine.step()


def test_packed_weights_are_the_weights() -> None:
    weights = {
        "matrix": torch.randn(3, 5).T,
        "half": torch.randn(4, 2, 3).to(torch.bfloat16),
        "scalar": torch.tensor(3.0, dtype=torch.float64),
    }
    back = unpack(pack(weights))
    assert list(back) == list(weights)
    for name, tensor in weights.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)


def test_a_host_of_another_version_says_so() -> None:
    with pytest.raises(UserError, match=r"its node has openmimo .*, not 0\.0"):
        EngineHost().start("0.0", no_engine)
