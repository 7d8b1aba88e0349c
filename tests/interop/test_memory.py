"""The estimates of `mimo inspect` against what running and training really take."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from openmimo.config.schema import ModelConfig
from openmimo.interop.inspect import inspect_model
from openmimo.interop.memory import to_run
from openmimo.model.checkpoint import write_model
from openmimo.model.mimo import MiMo


@pytest.mark.slow
def test_the_estimate_of_running_against_a_loaded_model(
    make_model: Callable[..., MiMo], tmp_path: Path
) -> None:
    big = {"vocab_size": 16_000, "hidden_size": 640, "intermediate_size": 1792, "head_dim": 64}
    write_model(make_model(**big, num_hidden_layers=6), tmp_path, torch.float32)
    script = (
        "import sys, torch\n"
        "from openmimo.model.checkpoint import load_model\n"
        "from openmimo.inference.cache import KVCache\n"
        "m = load_model(sys.argv[1])\n"
        "c = KVCache(m.config, 9, 1, 4096, torch.float32, torch.device('cpu'))\n"
        "[layer.fill_(1) for layer in c.layers]\n"
        "print(open('/proc/self/status').read().split('VmRSS:')[1].split()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    measured = int(done.stdout) * 1024
    found = inspect_model(tmp_path)
    config = ModelConfig(**found.architecture)
    need = to_run(config, found.parameters["total"], 4, "float32", 4096, 1)
    assert need.total == pytest.approx(measured, rel=0.15)


STEPS = """
import torch
from openmimo.config.schema import ModelConfig, OptimizerConfig
from openmimo.interop.memory import PROGRAM, to_train
from openmimo.model.mimo import MiMo
from openmimo.training.batch import Batch
from openmimo.training.loss import backward_step
from openmimo.training.optim import build_optimizer, update

def status(key):
    return int(open("/proc/self/status").read().split(key + ":")[1].split()[0]) * 1024

config = ModelConfig(
    vocab_size=2048, hidden_size=128, intermediate_size=384, num_hidden_layers=8,
    num_attention_heads=4, num_key_value_heads=2, head_dim=32, max_position_embeddings=512,
)
model = MiMo(config)
model.init_weights(torch.Generator().manual_seed(0))
optimizer = build_optimizer(model.named_parameters(), OptimizerConfig())
ids = torch.randint(0, 2048, (16, 512), generator=torch.Generator().manual_seed(0))
batch = Batch(ids, torch.arange(512).expand(16, 512).contiguous(), ids)
before = status("VmRSS")
for _ in range(2):
    backward_step(model, batch, [0], 0.3, tokens_per_microbatch=4096)
    update(optimizer, 1e-4, 1.0)
need = to_train(config, sum(p.numel() for p in model.parameters()), 4096, 512)
print(need.total - PROGRAM - need.parts["weights"], status("VmHWM") - before)
"""


@pytest.mark.slow
def test_the_estimate_of_training_against_a_step() -> None:
    # In a process of its own: here other tests have left memory that a step would use again.
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    estimated, measured = map(int, done.stdout.split())
    assert estimated == pytest.approx(measured, rel=0.3)
