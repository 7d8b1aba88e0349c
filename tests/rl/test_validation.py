"""Validation beside a step: the same problems each time, and nothing else changes."""

from collections.abc import Callable
from typing import Any

import pytest

from openmimo.config.schema import Recipe, RLConfig
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Completion, Request
from openmimo.model.mimo import MiMo
from openmimo.rl.validation import validation_prompts
from openmimo.tokenizer import Tokenizer

Taught = tuple[MiMo, Tokenizer, list[dict[str, Any]]]


def test_it_changes_nothing_but_the_time_and_can_be_repeated(trained: Any) -> None:
    plain = trained("plain")
    first = trained("first", validate_every=2, validation_problems=5)
    assert first == trained("again", validate_every=2, validation_problems=5)
    for record, without in zip(first, plain, strict=True):
        own = {name: value for name, value in record.items() if name.startswith("validation")}
        assert bool(own) == (record["step"] % 2 == 0)
        if own:
            assert own["validation_samples"] == 5
            assert 0 <= own["validation_pass_rate"] <= 1
            assert own["validation_length"] > 1
        for name in ("prompts_trained", "epoch", "easy_pool_size"):
            assert record[name] == without[name]
        for name in ("reward_mean", "pass_rate", "response_length"):
            assert record[name] == pytest.approx(without[name], rel=1e-3)


def test_the_weights_are_those_of_the_step(
    trained: Any, taught: Taught, make_recipe: Callable[..., Recipe], monkeypatch: Any
) -> None:
    """Its answers are what the engine says alone, with the weights before the first update."""
    model, tokenizer, problems = taught
    seen: dict[tuple[int, ...], Completion] = {}
    step = Engine.step

    def spy(engine: Engine) -> list[Completion]:
        done = step(engine)
        for completion in done:
            if str(completion.request_id).startswith("background"):
                seen[tuple(completion.token_ids.tolist())] = completion
        return done

    monkeypatch.setattr(Engine, "step", spy)
    (record,) = trained("run", steps=1, validate_every=1, validation_problems=3)
    monkeypatch.undo()
    held = [problem | {"id": f"held {n}"} for n, problem in enumerate(problems[:-1])]
    config = make_recipe(validate_every=1, validation_problems=3).rl
    prompts = validation_prompts(held, tokenizer, config, seed=0)
    engine = Engine(model, slots=8, max_length=64, used_vocab=tokenizer.vocab_size)
    stop_ids = (tokenizer.eos_id, tokenizer.doc_end_id)
    seeds = [prompt.sample_seeds[0] for prompt in prompts]
    alone = engine.run(
        [
            Request(n, prompt.ids, config.max_new_tokens, seed=seeds[n], stop_ids=stop_ids)
            for n, prompt in enumerate(prompts)
        ]
    )
    assert {tuple(done.token_ids.tolist()) for done in alone} == set(seen)
    texts = [tokenizer.decode(done.token_ids.tolist()) for done in alone]
    pairs = zip(texts, prompts, strict=True)
    right = [f"\\boxed{{{prompt.problem['answer']}}}" in text for text, prompt in pairs]
    assert record["validation_pass_rate"] == pytest.approx(sum(right) / 3)


def test_which_problems(taught: Taught) -> None:
    tokenizer = taught[1]
    held = [
        {"id": f"{domain} {n}", "domain": domain, "prompt": "?"}
        for domain in ("math", "code")
        for n in range(20)
    ]

    def ids(seed: int = 0, **changes: Any) -> list[str]:
        config = RLConfig(**{"validate_every": 1, "validation_problems": 8} | changes)
        prompts = validation_prompts(held, tokenizer, config, seed)
        assert all(len(prompt.sample_seeds) == 1 for prompt in prompts)
        return [prompt.problem["id"] for prompt in prompts]

    assert len(set(ids())) == 8
    assert ids() == ids() == ids(validation_problems=9)[:8]
    assert {each.split()[0] for each in ids(validation_problems=20)} == {"math", "code"}
    assert set(ids()) != set(ids(seed=1))
    assert {each.split()[0] for each in ids(domains=("code",))} == {"code"}
    assert len(ids(validation_problems=100)) == 40
    assert ids(validate_every=0) == []
