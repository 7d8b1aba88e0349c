"""Acceptance of a model's drafts, and the interval around it."""

import dataclasses
from typing import Any

import pytest
import torch

from openmimo.inference.acceptance import _answer, measure_acceptance
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request
from openmimo.model.mimo import MiMo


def grown(model: MiMo, layers: int) -> MiMo:
    """The model with MTP layers of random weights."""
    config = model.config.model_copy(update={"num_nextn_predict_layers": layers})
    other = MiMo(config)
    other.init_weights(torch.Generator().manual_seed(3))
    state = other.state_dict() | {
        name: tensor for name, tensor in model.state_dict().items() if "mtp" not in name
    }
    other.load_state_dict(state)
    return other.eval()


def requests(tokenizer: Any, count: int, temperature: float = 1.0) -> list[Request]:
    return [
        Request(n, tokenizer.chat_prompt(f"Which digit{'?' * (n % 8)}"), 12, temperature, 1.0, n)
        for n in range(count)
    ]


def test_it_counts_what_the_engine_counts(taught: Any) -> None:
    model, tokenizer = grown(taught[0], 2), taught[1]
    asked = requests(tokenizer, 24)
    found = measure_acceptance(model, asked, tokenizer.vocab_size)
    engine = Engine(model, drafts=2, slots=24, max_length=60,
                    used_vocab=tokenizer.vocab_size)  # fmt: skip
    answers = engine.run(asked)
    assert found["acceptance"] == engine.stats().acceptance
    assert found["tokens"] == sum(len(answer.token_ids) for answer in answers)
    assert found["prompts"] == 24
    for low, share, high in zip(found["low"], found["acceptance"], found["high"], strict=True):
        assert 0 <= low <= share <= high <= 1


def test_steps_in_which_a_prompt_is_still_read_are_not_counted(taught: Any) -> None:
    model, tokenizer = grown(taught[0], 1), taught[1]
    engine = Engine(model, drafts=1, slots=6, max_length=60, prefill_tokens=8)
    answers = _answer(engine, requests(tokenizer, 6), 1)
    assert sum(answer.steps for answer in answers) == engine.stats().row_steps


def test_the_interval_shrinks_with_the_number_of_prompts(taught: Any) -> None:
    model, tokenizer = grown(taught[0], 1), taught[1]

    def width(count: int) -> float:
        found = measure_acceptance(model, requests(tokenizer, count), tokenizer.vocab_size)
        return found["high"][0] - found["low"][0]

    few, many = width(12), width(108)
    assert 0 < many < 0.7 * few  # a third, give or take


def test_equal_answers_leave_no_spread(taught: Any) -> None:
    model, tokenizer = grown(taught[0], 1), taught[1]
    one = requests(tokenizer, 1, temperature=0.0)[0]
    same = [dataclasses.replace(one, id=n) for n in range(5)]
    found = measure_acceptance(model, same, tokenizer.vocab_size)
    [low], [high] = found["low"], found["high"]
    # The engine does not count drafts beyond the end of an answer; the spread does.
    assert high - low == pytest.approx(0, abs=0.1)
    single = measure_acceptance(model, [one], tokenizer.vocab_size)
    assert single["low"] == single["acceptance"] == single["high"]
    assert single["acceptance"] == found["acceptance"]
