"""A nano model trained in a minute, its exported folders, and what the native engine says."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks.vllm_mtp import Greedy, answer
from openmimo.evals.exam import read_problems
from openmimo.interop.exporting import Form, Model, export_model
from openmimo.model.checkpoint import load_release
from openmimo.model.mimo import MiMo
from openmimo.tokenizer import Tokenizer

RECIPE = Path(__file__).with_name("recipe.toml")
LENGTH = 96
"""Most tokens of an answer."""

Export = Callable[..., Path]


@dataclass(frozen=True)
class Native:
    """A folder's model, the questions asked, and the native engine's answers."""

    model: MiMo
    tokenizer: Tokenizer
    questions: list[str]
    prompts: list[list[int]]
    stop_ids: tuple[int, ...]
    greedy: Greedy


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run up to SFT, trained as a user would."""
    folder = tmp_path_factory.mktemp("vllm") / "run"
    for verb in ("data", "pretrain", "mtp-heads", "sft"):
        command = [sys.executable, "-m", "openmimo.cli", verb]
        command += ["--out", str(folder), "--recipe", str(RECIPE)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def export(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    """`export(form, dtype=..., max_shard_bytes=...)`: the SFT model in that form."""
    trained = Model("sft", run / "stages" / "sft" / "model", run / "stages" / "data" / "tokenizer")

    def make(form: Form, dtype: torch.dtype = torch.float32, **options: int) -> Path:
        target = tmp_path_factory.mktemp(form) / "folder"
        export_model(trained, target, form, dtype, **options)
        return target

    return make


@pytest.fixture(scope="session")
def hf_folder(export: Export) -> Path:
    """float32, one shard and the file of the extra MTP layers."""
    folder = export("hf")
    assert (folder / "mtp_extra.safetensors").exists()
    return folder


@pytest.fixture(scope="session")
def ask(run: Path) -> Callable[[Path], Native]:
    """`ask(folder)`: the native engine's answers to the held-out problems."""
    problems = read_problems(run / "stages" / "data" / "problems" / "heldout.jsonl")

    def make(folder: Path) -> Native:
        model, tokenizer = load_release(folder, dtype=torch.float32)
        questions = [problem["prompt"] for problem in problems.values()]
        prompts = [tokenizer.chat_prompt(question) for question in questions]
        stop_ids = (tokenizer.eos_id, tokenizer.doc_end_id)
        greedy = answer(model, tokenizer, prompts, [LENGTH] * len(prompts), stop_ids)
        return Native(model, tokenizer, questions, prompts, stop_ids, greedy)

    return make


@pytest.fixture(scope="session")
def native(ask: Callable[[Path], Native], hf_folder: Path) -> Native:
    """The native engine's answers with the float32 weights."""
    return ask(hf_folder)


@pytest.fixture(scope="session", autouse=True)
def own_module_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """transformers copies remote code to a cache; keep it out of the user's home."""
    os.environ["HF_MODULES_CACHE"] = str(tmp_path_factory.mktemp("modules"))
    assert "transformers" not in sys.modules, "it has read HF_MODULES_CACHE already"


def copy_folder(source: Path, target: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(source, target))
