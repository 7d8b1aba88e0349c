"""The RL stage: it learns, it resumes bit for bit, and it stops where nothing can be learnt."""

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from openmimo import trackers
from openmimo.config.base import config_hash
from openmimo.config.schema import ComputeConfig, Recipe, RLConfig
from openmimo.data.documents import write_records
from openmimo.errors import UserError
from openmimo.metrics import read_metrics
from openmimo.model.checkpoint import load_model, save_model
from openmimo.model.mimo import MiMo
from openmimo.rl import train
from openmimo.rollout.timeline import read_timelines
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer

Taught = tuple[MiMo, Tokenizer, list[dict[str, Any]]]
CLOCKS = ("time", "time_rollout", "time_update", "time_reward_wait", "time_event_loop_lag")


class PowerCutError(Exception):
    """Not an error of the program: the end of it, without a chance to clean up."""


class CutAtStep(StringIO):
    """A standard output that ends the program with the line of one step, before its checkpoint."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._step = step

    def write(self, text: str) -> int:
        if f" {self._step}/" in text:
            raise PowerCutError
        return len(text)


@pytest.fixture
def start(taught: Taught, tmp_path: Path) -> Callable[..., Path]:
    """`start(name)`: a run in which `rl` is next."""

    def start(name: str, answer: str | None = None) -> Path:
        model, tokenizer, problems = taught
        problems = problems[:-1]  # the last one waits for Math-Verify, which has a deadline
        run = Run(tmp_path / name)
        data, sft, difficulty = (run.stage(s, f"hash {s}") for s in ("data", "sft", "difficulty"))
        tokenizer.save(data.dir / "tokenizer")
        save_model(model, sft.dir / "model", torch.float32)
        if answer:
            problems = [problem | {"answer": answer} for problem in problems]
        write_records(difficulty.dir / "problems.jsonl", problems)
        for stage in (data, sft, difficulty):
            stage.finish()
        return run.dir

    return start


def stored(checkpoint: Path) -> dict[str, bytes]:
    """Every weight and moment of a checkpoint."""
    reader = dcp.FileSystemReader(checkpoint)
    entries = reader.read_metadata().state_dict_metadata
    state = {name: torch.empty(entry.size) for name, entry in entries.items()}
    dcp.load(state, storage_reader=reader, no_dist=True)
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def result(folder: Path) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Model files and moments, and the metrics but for clocks."""
    stage = folder / "stages" / "rl"
    last = max((stage / "checkpoints").iterdir())
    files = sorted((stage / "model").iterdir())
    metrics = [
        {key: value for key, value in record.items() if key not in CLOCKS}
        for record in read_metrics(stage / "metrics.jsonl")
    ]
    return {path.name: path.read_bytes() for path in files} | stored(last), metrics


def test_stopping_and_going_on_changes_no_bit(
    taught: Taught, start: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    """Cut before a checkpoint and after one, then Ctrl-C, then to the end."""
    plain, stopped = start("plain"), start("stopped")
    train.run(make_recipe(), Run(plain), "rl")
    for step in (1, 3):
        with pytest.raises(PowerCutError), redirect_stdout(CutAtStep(step)):
            train.run(make_recipe(), Run(stopped), "rl")
    run = Run(stopped)
    run.interrupt.requested = True
    train.run(make_recipe(), run, "rl")
    assert run.done("rl") is None
    train.run(make_recipe(), Run(stopped), "rl")
    files, metrics = result(plain)
    assert result(stopped) == (files, metrics)
    assert [record["step"] for record in metrics] == [1, 2, 3, 4, 5]
    for record in metrics:
        assert record["prompts_trained"] == 2
        # Two updates a step: the first is on the policy that sampled.
        assert record["ratio_max"] >= 1 - 1e-4
        assert 0 < record["pass_rate"] < 1
    latest = list(read_timelines(plain / "stages" / "rl" / "rollout_timeline.jsonl"))
    assert [step.name for step in latest] == [f"rl step {number}, ours" for number in (3, 4, 5)]
    for step in latest:
        assert len({span.prompt for span in step.spans if span.outcome == "kept"}) == 2
    trained = load_model(plain / "stages" / "rl" / "model").state_dict()
    for name, tensor in taught[0].state_dict().items():
        assert torch.equal(trained[name], tensor) == ("mtp_layers" in name), name


def test_too_hard_problems_end_the_stage(
    taught: Taught,
    start: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its trackers have every step before it, and hear that it failed."""
    heard: list[Any] = []

    class Tracker:
        def __init__(self, curve: trackers.Curve) -> None:
            heard.append(curve.stage)

        def log(self, step: int, values: dict[str, float]) -> None:
            heard.append((step, values["pass_rate"]))

        def close(self, failed: bool) -> None:
            heard.append(failed)

    monkeypatch.setitem(trackers.OPENERS, "wandb", Tracker)
    compute = ComputeConfig(trackers=("wandb",))
    recipe = make_recipe(max_prompts=3).model_copy(update={"compute": compute})
    with pytest.raises(UserError, match="2 steps in a row found fewer than 2 prompts"):
        train.run(recipe, Run(start("run", answer="7")), "rl")
    assert heard == ["rl", (1, 0.0), True]


def test_a_judge_elsewhere_must_answer_before_the_first_step(
    start: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    compute = ComputeConfig(judge="http://127.0.0.1:9")
    assert config_hash(compute) == config_hash(ComputeConfig())
    recipe = make_recipe().model_copy(update={"compute": compute})
    with pytest.raises(UserError, match=r"no judge answers .*127\.0\.0\.1:9"):
        train.run(recipe, Run(start("run")), "rl")


def test_an_answer_ends_where_the_context_is_full(
    taught: Taught, start: Callable[..., Path], make_recipe: Callable[..., Recipe]
) -> None:
    """The model's context has room for all prompts but the longest, or for three tokens more."""
    model, tokenizer, problems = taught
    longest = max(len(tokenizer.chat_prompt(problem["prompt"])) for problem in problems[:-1])
    for room, message in ((0, f"a prompt has {longest} tokens"), (3, "")):
        run = Run(start(f"room {room}"))
        config = model.config.model_copy(update={"max_position_embeddings": longest + room})
        small = MiMo(config)
        small.load_state_dict(model.state_dict())
        save_model(small, run.dir / "stages" / "sft" / "model", torch.float32)
        settings = make_recipe(steps=1, max_new_tokens=1000, max_short_steps=2, max_prompts=4)
        if message:
            with pytest.raises(UserError, match=message):
                train.run(settings, run, "rl")
        else:
            train.run(settings, run, "rl")
            (record,) = read_metrics(run.dir / "stages" / "rl" / "metrics.jsonl")
            assert record["truncated"] > 0


def test_problems_of_the_configured_domains_and_tiers(tmp_path: Path) -> None:
    records = [
        {"id": f"{domain} {tier}", "domain": domain, "tier": tier, "prompt": "?"}
        for domain in ("math", "code")
        for tier in ("train", "hard")
    ]
    path = tmp_path / "problems.jsonl"
    write_records(path, records)

    def ids(**changes: Any) -> list[str]:
        return [problem["id"] for problem in train.load_problems(path, RLConfig(**changes))]

    assert ids() == ["math train", "code train"]
    assert ids(domains=("code",), tiers=("train", "hard")) == ["code train", "code hard"]
    write_records(path, records[:1])
    with pytest.raises(UserError, match=r"problems\.jsonl has no problem"):
        ids(domains=("code",))
