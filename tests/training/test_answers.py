"""MTP layers that learn from the model's own answers."""

import json
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from openmimo.config.schema import Recipe
from openmimo.data.documents import read_records, write_records
from openmimo.errors import UserError
from openmimo.model.checkpoint import load_model, save_model
from openmimo.model.mimo import MiMo
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer
from openmimo.training import answers, mtp_heads
from openmimo.training.batch import IGNORE
from openmimo.training.loss import Objective, TrainingLoss, backward_step
from openmimo.training.mtp_heads import AnswerSource, freeze_all_but
from openmimo.training.packed_samples import PackedSamples

HEADS = {
    "layers": 1, "tune_first": True, "generations": 6, "generation_tokens": 9, "steps": 5,
    "batch": 2, "length": 64, "learning_rate": 1e-2, "checkpoint_every": 2,
}  # fmt: skip


@pytest.fixture
def own(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Six answers in two chunks, a row each: ten rows are read, so some twice."""
    monkeypatch.setattr(answers, "CHUNK", 4)
    monkeypatch.setattr(answers, "MEASURED", 3)
    heads = type(recipe.mtp_heads).model_validate(HEADS)
    return recipe.model_copy(update={"mtp_heads": heads})


@pytest.fixture
def start(make_run: Callable[[str], Run], make_model: Callable[..., MiMo]) -> Callable[[str], Run]:
    """`start(name)`: a run in which mtp_heads is next, with problems beside the SFT samples."""

    def start(name: str) -> Run:
        run = make_run(name)
        problems = run.dir / "stages" / "data" / "problems"
        problems.mkdir()
        for file, first in (("rl", 20), ("heldout", 40)):
            count = 8 if file == "rl" else 2
            lines = [{"prompt": f"What is {n} + 1?"} for n in range(first, first + count)]
            write_records(problems / f"{file}.jsonl", lines)
        upstream = run.stage("pretrain", "hash")
        model = make_model(num_nextn_predict_layers=1)
        save_model(model, upstream.dir / "model", torch.float32)
        upstream.finish()
        return run

    return start


def files(run: Run) -> dict[str, bytes]:
    """What the stage leaves: answers, acceptance, weights."""
    stage = run.dir / "stages" / "mtp_heads"
    names = ["acceptance.json", *stage.glob("answers/*"), *stage.glob("model/*.safetensors")]
    return {Path(name).name: (stage / name).read_bytes() for name in names}


def test_only_the_mtp_layer_learns_and_it_learns_the_answers(
    own: Recipe, start: Callable[[str], Run], tokenizer: Tokenizer
) -> None:
    run = start("run")
    mtp_heads.run(own, run)
    stage = run.dir / "stages" / "mtp_heads"
    before = load_model(run.dir / "stages" / "pretrain" / "model").state_dict()
    after = load_model(stage / "model").state_dict()
    assert before.keys() == after.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) != name.startswith("model.mtp_layers."), name

    lines = [r for path in sorted(stage.glob("answers/*")) for _, r in read_records(path)]
    assert len(lines) == 6
    assert len({tuple(line["prompt_ids"]) for line in lines}) == 6
    assert all(1 <= len(line["answer_ids"]) <= 9 for line in lines)
    asked = {tokenizer.decode(line["prompt_ids"]) for line in lines}
    assert any("What is 5 + 1?" in text for text in asked), "no SFT query is among them"
    assert any("What is 2" in text for text in asked), "no RL problem is among them"
    assert not any("What is 4" in t and "What is 4 +" not in t for t in asked), "held out"

    measured = json.loads((stage / "acceptance.json").read_text())
    assert measured.keys() == {"before", "after"}
    for found in (*measured["before"].values(), *measured["after"].values()):
        assert found["prompts"] == 2  # of the held-out ones
        [low], [share], [high] = found["low"], found["acceptance"], found["high"]
        assert 0 <= low <= share <= high <= 1


def test_the_answers_are_what_the_trunk_says(
    own: Recipe, start: Callable[[str], Run], make_model: Callable[..., MiMo]
) -> None:
    """At a temperature near 0 every answer token is the trunk's first choice."""
    heads = own.mtp_heads.model_copy(update={"generation_temperature": 1e-4})
    run = start("run")
    mtp_heads.run(own.model_copy(update={"mtp_heads": heads}), run)
    model = make_model(num_nextn_predict_layers=1)
    for _, line in read_records(run.dir / "stages" / "mtp_heads" / "answers" / "00000.jsonl"):
        ids = torch.tensor([line["prompt_ids"] + line["answer_ids"]])
        best = model(ids)[0].argmax(-1)
        start_of_answer = len(line["prompt_ids"])
        assert best[start_of_answer - 1 : -1].tolist() == line["answer_ids"]


def test_the_loss_is_on_answers_alone(own: Recipe, start: Callable[[str], Run]) -> None:
    run = start("run")
    mtp_heads.run(own, run)
    stage = run.dir / "stages" / "mtp_heads"
    packed = PackedSamples(answers.read_answers(stage / "answers"), 64, 0, "mtp_heads")
    model = load_model(stage / "model")
    module = TrainingLoss(model, Objective([0], main=False), 4096)
    source = AnswerSource(own.mtp_heads, packed, module, 0)
    batch = source.step(0).batch
    lines = [r for path in sorted(stage.glob("answers/*")) for _, r in read_records(path)]
    said = sorted(token for line in lines for token in line["answer_ids"])
    # As many steps as there are rows read every row `batch` times.
    targets = torch.cat([source.step(n).batch.targets for n in range(len(packed))])
    assert sorted(targets[targets != IGNORE].tolist()) == sorted(said * own.mtp_heads.batch)
    assert batch.hidden is not None
    assert torch.allclose(batch.hidden, model.hidden(batch.ids, batch.positions), atol=1e-5)


def test_a_kept_trunk_output_changes_no_gradient(
    own: Recipe, start: Callable[[str], Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, forgetful = start("plain"), start("forgetful")
    mtp_heads.run(own, plain)
    monkeypatch.setattr(mtp_heads, "KEPT_BYTES", 0)
    mtp_heads.run(own, forgetful)
    assert files(plain) == files(forgetful)


class StopAt(StringIO):
    """A standard output that asks the run to stop when a text appears in it."""

    def __init__(self, run: Run, text: str) -> None:
        super().__init__()
        self._run, self._text = run, text

    def write(self, text: str) -> int:
        if self._text in text:
            self._run.interrupt.requested = True
        return len(text)


@pytest.mark.parametrize(
    "moment", ["answers 1/2", "answers 2/2", "before training, greedy", "mtp_heads 3/5", "after"]
)
def test_a_stop_at_any_moment_changes_no_bit(
    moment: str, own: Recipe, start: Callable[[str], Run]
) -> None:
    plain, stopped = start("plain"), start("stopped")
    mtp_heads.run(own, plain)
    with redirect_stdout(StopAt(stopped, moment)), suppress(KeyboardInterrupt):
        mtp_heads.run(own, stopped)
    assert stopped.interrupt.requested
    assert stopped.done("mtp_heads") is None
    again = Run(stopped.dir)
    kept = {
        path: path.stat().st_mtime_ns for path in stopped.dir.glob("stages/mtp_heads/answers/*")
    }
    assert kept
    mtp_heads.run(own, again)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items()), "answered again"
    assert files(plain) == files(again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generations": 18}, "mtp_heads.generations is 18, but .* has only 17 prompts"),
        ({"length": 16}, "leaves no room for an answer in mtp_heads.length = 16"),
    ],
)
def test_prompts_that_are_missing_or_too_long_are_one_line(
    own: Recipe, start: Callable[[str], Run], change: dict[str, Any], message: str
) -> None:
    heads = own.mtp_heads.model_copy(update=change)
    with pytest.raises(UserError, match=message):
        mtp_heads.run(own.model_copy(update={"mtp_heads": heads}), start("run"))


def test_the_fresh_layer_gets_a_gradient_and_nothing_else(
    own: Recipe, make_model: Callable[..., MiMo]
) -> None:
    from openmimo.training.batch import Batch

    model = make_model(num_nextn_predict_layers=1)
    freeze_all_but(model, range(1))
    ids = torch.randint(280, (2, 12), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids, torch.arange(12).expand_as(ids), ids)
    backward_step(model, batch, (0,), 1.0, 100, main=False)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == name.startswith("model.mtp_layers.0."), name
