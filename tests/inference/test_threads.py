"""The number of threads is the one whose steps are measured shortest."""

import os
import subprocess
import sys

import pytest
import torch

from openmimo.inference.threads import PATIENCE, fastest, use_fastest_threads


class Machine:
    """A clock, and steps that take as long as `seconds` says for the threads in use."""

    def __init__(self, seconds):
        self.seconds, self.now, self.threads, self.steps = seconds, 0.0, 1, 0

    def use(self, threads):
        self.threads = threads

    def step(self):
        self.now += self.seconds[self.threads](self.steps)
        self.steps += 1

    def choose(self):
        return fastest(sorted(self.seconds), self.use, self.step, lambda: self.now)


@pytest.mark.parametrize(
    ("one", "two", "best"), [(1.0, 0.6, 2), (1.0, 0.95, 1), (1.0, 30.0, 1), (0.001, 0.0006, 2)]
)
def test_more_threads_are_taken_only_where_they_pay(one, two, best):
    assert Machine({1: lambda n: one, 2: lambda n: two}).choose() == best


def test_a_step_that_was_held_up_decides_nothing():
    assert Machine({1: lambda n: 1e-3, 2: lambda n: 1.0 if n % 4 == 0 else 5e-4}).choose() == 2


def test_slow_steps_are_not_repeated():
    machine = Machine({1: lambda n: 10.0, 2: lambda n: 9.9})
    machine.choose()
    assert machine.steps == 4  # one to warm up and one to measure, each
    assert PATIENCE < 10


def test_the_environment_has_the_last_word(model, monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert use_fastest_threads(model) == torch.get_num_threads() == before


def test_torch_uses_what_was_chosen():
    code = (
        "import torch; from openmimo.config.schema import ModelConfig\n"
        "from openmimo.inference.threads import use_fastest_threads\n"
        "from openmimo.model.mimo import MiMo\n"
        "torch.set_num_threads(2)\n"
        "model = MiMo(ModelConfig(vocab_size=64, hidden_size=32, intermediate_size=48,\n"
        "    num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=8,\n"
        "    max_position_embeddings=64))\n"
        "model.init_weights(); chosen = use_fastest_threads(model)\n"
        "print(chosen, torch.get_num_threads())\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    chosen, used = done.stdout.split()
    assert chosen == used
    assert chosen in {"1", "2"}
