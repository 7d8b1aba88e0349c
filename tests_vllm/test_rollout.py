"""Rollouts on several vLLM engines, a server and one in process: each may die in mid-step."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from openmimo.config.schema import ComputeConfig
from openmimo.errors import UserError
from openmimo.inference.protocol import InferenceEngine, Request, RequestId
from openmimo.inference.vllm_engine import VllmEngine
from openmimo.model.checkpoint import load_model
from openmimo.model.mimo import MiMo
from openmimo.rewards.verdict import Verdict, right
from openmimo.rollout.driver import EngineSeat, RolloutDriver
from openmimo.rollout.engines import EngineSettings, open_engines
from openmimo.rollout.records import Prompt, Rollout
from openmimo.rollout.validation import answer_all

from .conftest import Export, Native
from .servers import KEY, free_port, serve

pytestmark = pytest.mark.timeout(1500)

LENGTH, SLOTS = 256, 8


class Praise:
    """A reward that is there at once."""

    def score(self, problem: Any, response: str) -> Future[Verdict]:
        verdict: Future[Verdict] = Future()
        verdict.set_result(right(""))
        return verdict


@pytest.fixture(scope="module")
def folder(export: Export) -> Path:
    return export("vllm")


@pytest.fixture(scope="module")
def other(run: Path) -> MiMo:
    return load_model(run / "stages" / "pretrain" / "model", dtype=torch.float32)


@pytest.fixture(scope="module")
def here(folder: Path, native: Native) -> Iterator[VllmEngine]:
    with VllmEngine(
        folder,
        slots=SLOTS,
        max_length=LENGTH,
        used_vocab=native.tokenizer.vocab_size,
        cache_bytes=2**27,
        timeout=300,
        more={"distributed_executor_backend": "uni", "gpu_memory_utilization": 0.1},
    ) as made:
        yield made


def open_driver(seats: list[EngineSeat], native: Native) -> RolloutDriver:
    def request(prompt: Prompt, sample: int, request_id: RequestId) -> Request:
        seed, stop_ids = prompt.sample_seeds[sample], native.stop_ids
        return Request(request_id, prompt.ids, 60, seed=seed, stop_ids=stop_ids)

    return RolloutDriver(seats, Praise(), native.tokenizer.decode, request)


def answers(driver: RolloutDriver, native: Native, on_sample: Any = None) -> Rollout:
    prompts = [
        Prompt({"id": str(n)}, ids, (2 * n, 2 * n + 1)) for n, ids in enumerate(native.prompts[:24])
    ]
    rollout = answer_all(driver, prompts, on_sample)
    assert rollout is not None
    return rollout


def content(rollout: Rollout) -> list[Any]:
    return [[c.token_ids.tolist() for c in group.completions if c] for group in rollout.groups]


class After:
    """Does something with sample number `count`."""

    def __init__(self, count: int, action: Any) -> None:
        self.left, self.action = count, action

    def __call__(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.action()


def kill_engine_core() -> None:
    for child in psutil.Process().children(recursive=True):
        if "VLLM::EngineCore" in " ".join(child.cmdline()) and not serves(child):
            os.kill(child.pid, signal.SIGKILL)


def serves(process: psutil.Process) -> bool:
    return any("api_server" in " ".join(each.cmdline()) for each in process.parents())


def came_back(driver: RolloutDriver, old: InferenceEngine) -> None:
    until = time.monotonic() + 120
    while driver.engines[0] is old:
        assert time.monotonic() < until, "the adapter did not find the server again"
        time.sleep(0.2)


def test_what_a_dead_engine_had_is_done_by_the_other(
    here: VllmEngine,
    folder: Path,
    native: Native,
    other: MiMo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with open_driver([EngineSeat(here, SLOTS)], native) as driver:
        expected = []
        for model in (native.model, other):
            driver.update_weights(dict(model.state_dict()))
            expected.append(content(answers(driver, native)))
    assert expected[0] != expected[1]

    monkeypatch.setenv("VLLM_API_KEY", KEY)
    port = free_port()
    compute = ComputeConfig(rollouts=f"http://127.0.0.1:{port}")
    settings = EngineSettings(SLOTS, LENGTH, native.tokenizer.vocab_size)
    with pytest.raises(UserError, match=f"the vLLM server http://127.0.0.1:{port} has failed"):
        open_engines(compute, settings, native.model).__enter__()

    def served(log: str) -> Any:
        return serve(folder, tmp_path / log, port, "--max-model-len", str(LENGTH))

    with served("first") as first:
        long = EngineSettings(SLOTS, LENGTH + 1, native.tokenizer.vocab_size)
        with pytest.raises(UserError, match=f"takes {LENGTH} tokens, .*--max-model-len"):
            open_engines(compute, long, native.model).__enter__()
        stretched = MiMo(native.model.config)
        stretched.rope_base *= 2
        with pytest.raises(UserError, match=r"RoPE base is .*, not that of vLLM's folder"):
            open_engines(compute, settings, stretched).__enter__()
        with (
            open_engines(compute, settings, native.model) as (remote,),
            open_driver([remote, EngineSeat(here, SLOTS)], native) as driver,
        ):
            driver.update_weights(dict(native.model.state_dict()))
            rollout = answers(driver, native, After(10, first.kill))
            assert content(rollout) == expected[0]
            assert rollout.done.stats.lost > 0
            goes_on_with(driver, remote.engine, served, native, other, expected[1])


def goes_on_with(
    driver: RolloutDriver,
    lost: InferenceEngine,
    served: Any,
    native: Native,
    other: MiMo,
    expected: list[Any],
) -> None:
    """The server is back, with the weights of its folder; now the other engine dies."""
    with served("second"):
        came_back(driver, lost)
        driver.update_weights(dict(other.state_dict()))
        rollout = answers(driver, native, After(10, kill_engine_core))
        assert content(rollout) == expected
        assert rollout.done.stats.lost > 0
        assert {span.lane for span in rollout.timeline.spans if span.outcome == "lost"} == {
            "engine 1"
        }
