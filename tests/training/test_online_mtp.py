"""MTP layers that follow a trunk which has moved."""

from typing import Any

import numpy as np
import pytest
import torch

from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request
from openmimo.model.mimo import MiMo
from openmimo.training.batch import Batch
from openmimo.training.loss import Objective, TrainingLoss, count_targets
from openmimo.training.online_mtp import OnlineMTP

LAYERS = 2


@pytest.fixture
def model(taught: Any) -> MiMo:
    """The taught trunk under two MTP layers that know nothing."""
    config = taught[0].config.model_copy(update={"num_nextn_predict_layers": LAYERS})
    model = MiMo(config)
    model.init_weights(torch.Generator().manual_seed(0))
    model.load_state_dict(taught[0].state_dict(), strict=False)
    return model.eval()


def requests(taught: Any, count: int, seed: int) -> list[Request]:
    tokenizer, problems = taught[1], taught[2]
    stops = (tokenizer.eos_id, tokenizer.doc_end_id)
    return [
        Request(
            n, tokenizer.chat_prompt(problems[n % len(problems)]["prompt"]), 24, seed=seed + n,
            stop_ids=stops,
        )
        for n in range(count)
    ]  # fmt: skip


def engine_of(model: MiMo, online: OnlineMTP | None = None) -> Engine:
    collect = online.collect if online else None
    return Engine(model, slots=8, max_length=64, drafts=LAYERS, collect=collect)


def test_refreshing_raises_acceptance_and_leaves_everything_else(model: MiMo, taught: Any) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    online = OnlineMTP(model, 6, 1e-2, tokens=4000, tokens_per_microbatch=256)
    engine = engine_of(model, online)
    engine.run(requests(taught, 40, seed=0))
    poor = engine.stats().acceptance
    history = []
    for round_ in range(4):
        first, last = online.refresh()
        history.append((first[0], last[0]))
        engine.update_weights(model)
        engine.run(requests(taught, 40, seed=100 * (round_ + 1)))
    assert history[-1][1] < history[0][0] - 1
    trained = engine_of(model)
    trained.run(requests(taught, 40, seed=7000))
    assert trained.stats().acceptance[0] > poor[0] + 0.3
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == ("mtp_layers" not in name), name
    assert not any(p.requires_grad or p.grad is not None for p in model.parameters())


def test_the_loss_is_that_of_the_training_code(model: MiMo, taught: Any) -> None:
    """Packed, in micro-batches, from the engine's states: as one answer after the other."""
    online = OnlineMTP(model, 1, 0.0, tokens=10_000, tokens_per_microbatch=1)
    asked = requests(taught, 7, seed=3)
    answers = engine_of(model, online).run(asked)
    objective = Objective(range(LAYERS), main=False)
    loss = TrainingLoss(model, objective, 4096)
    expected, counts = np.zeros(LAYERS), np.zeros(LAYERS)
    for request, answer in zip(asked, answers, strict=True):
        ids = torch.tensor([[*request.prompt_ids, *answer.token_ids.tolist()]])
        targets = ids.clone()
        targets[:, : len(request.prompt_ids)] = -100
        batch = Batch(ids, torch.arange(ids.shape[1])[None], targets)
        found = count_targets(batch, objective)
        with torch.no_grad():
            expected += loss(batch, found, 1.0).sums[1:].numpy()
        counts += found[1:].numpy()
    first, _ = online.refresh()
    np.testing.assert_allclose(first, expected / counts, rtol=1e-4)


def test_memory_is_bounded_and_the_latest_answers_stay(model: MiMo) -> None:
    online = OnlineMTP(model, 1, 1e-3, tokens=50, tokens_per_microbatch=64)
    for n in range(20):
        tokens = np.full(12, n)
        hidden = torch.zeros(11, model.config.hidden_size)
        online.collect(Request(n, tokens[:4].tolist(), 8), tokens, hidden)
    kept = [int(answer.segment.ids[0]) for answer in online._answers]
    assert kept == [16, 17, 18, 19]
    online.refresh()
    assert online.refresh() == ([], [])


def test_too_short_answers_teach_nothing(model: MiMo) -> None:
    online = OnlineMTP(model, 1, 1e-3, tokens=50, tokens_per_microbatch=64)
    online.collect(Request(0, [1], 1), np.array([1, 2]), torch.zeros(1, 32))
    assert online.refresh() == ([], [])
