"""SFT: the loss is on responses, and every epoch reads every sample once."""

import json
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch

from openmimo.config.schema import Recipe, SFTConfig
from openmimo.errors import UserError
from openmimo.metrics import read_metrics
from openmimo.model.checkpoint import load_model, save_model
from openmimo.model.mimo import MiMo
from openmimo.runs import Run
from openmimo.tokenizer import Tokenizer
from openmimo.training import sft
from openmimo.training.batch import IGNORE, Segment
from openmimo.training.packed_samples import PackedSamples, SampleSource
from openmimo.training.sft import chat_segment


def sample(number: int, length: int) -> Segment:
    return Segment(np.full(length, number), loss_from=1)


SAMPLES = [sample(number, 3 + number % 7) for number in range(23)]


def test_prompt_without_loss_and_response_with_its_end(tokenizer: Tokenizer) -> None:
    segment = chat_segment(tokenizer, "What is 1 + 1?", "It is 2.")
    prompt, answer = segment.ids[: segment.loss_from], segment.ids[segment.loss_from :]
    assert prompt.tolist() == tokenizer.chat_prompt("What is 1 + 1?")
    assert answer.tolist() == [*tokenizer.encode("It is 2."), tokenizer.eos_id]


def test_every_epoch_reads_every_sample_once_in_an_order_of_its_own() -> None:
    samples = PackedSamples(SAMPLES, length=20, seed=1, name="sft")
    used = sum(len(sample.ids) for sample in SAMPLES)
    rows = round(used / samples.fill / 20)
    epochs = [
        [[int(s.ids[0]) for s in samples.row(epoch * rows + number)] for number in range(rows)]
        for epoch in range(3)
    ]
    for epoch in epochs:
        assert Counter(number for row in epoch for number in row) == Counter(range(23))
    assert epochs[0] != epochs[1] != epochs[2]
    assert all(sum(len(s.ids) for s in samples.row(n)) <= 20 for n in range(rows))
    again = PackedSamples(SAMPLES, length=20, seed=1, name="sft")
    assert [int(s.ids[0]) for s in again.row(2 * rows)] == epochs[2][0]


def test_samples_longer_than_a_row_are_left_out_and_counted() -> None:
    samples = PackedSamples(
        [*SAMPLES, sample(50, 21), sample(51, 99)], length=20, seed=1, name="sft"
    )
    assert samples.too_long == 2
    seen = {int(segment.ids[0]) for number in range(50) for segment in samples.row(number)}
    assert seen == set(range(23))
    with pytest.raises(UserError, match=r"sft\.length = 2 tokens"):
        PackedSamples(SAMPLES, length=2, seed=1, name="sft")


def test_steps_are_rows_without_a_gap() -> None:
    samples = PackedSamples(SAMPLES, length=20, seed=1, name="sft")
    config = SFTConfig(steps=6, batch=3, length=20, learning_rate=1.0, warmup_steps=4)
    source = SampleSource("sft", config, samples, 0.1, rope_base=123.0, pad_id=99)
    steps = [source.step(index) for index in range(6)]
    rows = [row for step in steps for row in step.batch.targets.tolist()]
    for number, row in enumerate(rows):
        expected = [
            token
            for segment in samples.row(number)
            for token in [IGNORE, *segment.ids[1:].tolist()]
        ]
        assert row == expected + [IGNORE] * (20 - len(expected))
    assert [step.learning_rate for step in steps] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert {step.rope_base for step in steps} == {123.0}


def test_the_stage_tunes_trunk_and_all_mtp_layers(
    recipe: Recipe, make_run: Callable[[str], Run], make_model: Callable[..., MiMo]
) -> None:
    run = make_run("run")
    base = make_model(rope_theta=640_000.0)
    upstream = run.stage("mtp_heads", "hash")
    save_model(base, upstream.dir / "model", torch.float32)
    upstream.finish()
    sft.run(recipe, run)
    tuned = load_model(run.dir / "stages" / "sft" / "model")
    before = base.state_dict()
    same = [name for name, w in tuned.state_dict().items() if torch.equal(w, before[name])]
    assert same == []
    assert tuned.rope_base == 640_000.0
    metrics = read_metrics(run.dir / "stages" / "sft" / "metrics.jsonl")
    assert [record["step"] for record in metrics] == [1, 2, 3, 4, 5]
    assert all(len(record["mtp_loss"]) == 3 and record["loss"] > 0 for record in metrics)
    assert [record["tokens"] for record in metrics] == [128, 256, 384, 512, 640]
    done = json.loads((run.dir / "stages" / "sft" / "done.json").read_text())
    assert 0.5 < done["packing_fill"] <= 1
    assert done["too_long"] == 0
