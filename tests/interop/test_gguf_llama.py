"""llama.cpp against us: the same ids and the same greedy text. Run by `make test-llama`.

llama.cpp's Python package is compiled for minutes, so it lives in an environment of its own, and a
process of it answers (`llama_cpp_worker.py`); a crash of its C++ code is a failed test then.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import AddedToken, models, pre_tokenizers, trainers

from openmimo.config.schema import ModelConfig, OptimizerConfig
from openmimo.inference.engine import Engine
from openmimo.inference.protocol import Request
from openmimo.interop.gguf_read import GGUFSource
from openmimo.interop.gguf_tokenizer import _NORMALIZERS, _SPLITS
from openmimo.interop.gguf_write import write_gguf
from openmimo.model.mimo import MiMo
from openmimo.tokenizer import SPECIAL_TOKENS, Tokenizer

LLAMA_PYTHON = os.environ.get("LLAMA_PYTHON")
pytestmark = [
    pytest.mark.skipif(LLAMA_PYTHON is None, reason="make test-llama runs these"),
    pytest.mark.slow,
]
WORKER = Path(__file__).with_name("llama_cpp_worker.py")

SENTENCES = [
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on.",
    "One and one is two; two and two is four; four and four is eight.",
    "A model of text says which word may follow the words before it.",
    "Rain falls on the hills in spring, and the river carries it to the sea.",
]


def llama(model: Path, texts: list[str] = (), prompts: list[list[int]] = (), new: int = 0) -> Any:  # type: ignore[assignment]
    """What llama.cpp makes of a file."""
    question = {"model": str(model), "texts": texts, "prompts": prompts, "max_new_tokens": new}
    done = subprocess.run(
        [str(LLAMA_PYTHON), WORKER], input=json.dumps(question), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def export(path: Path, model: MiMo, tokenizer: Tokenizer | None, dtype: str = "float32") -> Path:
    config = model.config.model_copy(update={"rope_theta": model.rope_base})
    write_gguf(path, config, model.state_dict().__getitem__, tokenizer, dtype, "test")
    return path


def greedy(model: MiMo, prompts: list[list[int]], new: int, stop: list[int]) -> list[list[int]]:
    """Our engine's answers."""
    engine = Engine(model, slots=16, max_length=max(map(len, prompts)) + new)
    requests = [
        Request(number, prompt, new, temperature=0.0, stop_ids=stop)
        for number, prompt in enumerate(prompts)
    ]
    return [completion.token_ids.tolist() for completion in engine.run(requests)]


def assert_same_up_to_ties(
    model: MiMo, prompts: list[list[int]], ours: list[list[int]], theirs: list[list[int]]
) -> None:
    """Equal token for token; where they part, our two logits must be equal but for rounding."""
    for prompt, left, right in zip(prompts, ours, theirs, strict=True):
        if left == right:
            continue
        same = next(n for n, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + left[:same]]))[0, -1]
        gap = (logits[left[same]] - logits[right[same]]).abs()
        assert gap < 1e-4, (same, left, right)


@pytest.fixture(scope="module")
def trained() -> tuple[MiMo, Tokenizer]:
    """A model that has learnt `SENTENCES` half by heart, with nano's odd width of a head, 40.

    Its greedy text is language, and depends on the whole context.
    """
    from openmimo.training.batch import batch_rows
    from openmimo.training.loss import backward_step
    from openmimo.training.optim import build_optimizer, update
    from openmimo.training.packed_samples import PackedSamples
    from openmimo.training.sft import chat_segment

    tokenizer = Tokenizer.train(SENTENCES * 5, 340)
    config = ModelConfig(
        vocab_size=352, hidden_size=80, intermediate_size=144, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=40, max_position_embeddings=256,
        initializer_range=0.1, rope_theta=640_000,
    )  # fmt: skip
    model = MiMo(config)
    model.init_weights(torch.Generator().manual_seed(0))
    samples = [
        chat_segment(tokenizer, f"Sentence {n}, {style}", text)
        for n, text in enumerate(SENTENCES)
        for style in ("please", "now", "again")
    ]
    rows = PackedSamples(samples, length=128, seed=0, name="sft")
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig())
    for step in range(80):
        batch = batch_rows([rows.row(4 * step + n) for n in range(4)], 128, tokenizer.doc_end_id)
        backward_step(model, batch, [], 0.0, tokens_per_microbatch=512)
        update(optimizer, 0.01 * (1 - step / 80), clip=1.0)
    return model.eval(), tokenizer


def test_same_greedy_text(trained: tuple[MiMo, Tokenizer], tmp_path: Path) -> None:
    model, tokenizer = trained
    beginnings = ("Sentence", "Say", "What is", "1 +")
    styles = ("please", "now", "again", "<|im_end|>", "日本")
    questions = [f"{a} {n}, {b}" for a in beginnings for n in range(5) for b in styles]
    prompts = [tokenizer.chat_prompt(question) for question in questions]
    stop = [tokenizer.eos_id, tokenizer.doc_end_id]  # llama.cpp ends on both
    ours = greedy(model, prompts, 60, stop)
    assert len({tuple(answer) for answer in ours}) > 20
    path = export(tmp_path / "float32.gguf", model, tokenizer)
    assert_same_up_to_ties(model, prompts, ours, llama(path, prompts=prompts, new=60)["answers"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_loads(trained: tuple[MiMo, Tokenizer], tmp_path: Path, dtype: str) -> None:
    # llama.cpp rounds activations too, so only what was learnt by heart must stay the same.
    model, tokenizer = trained
    prompts = [tokenizer.chat_prompt(f"Sentence {n}, please") for n in range(4)]
    path = export(tmp_path / f"{dtype}.gguf", model, tokenizer, dtype)
    theirs = llama(path, prompts=prompts, new=60)["answers"]
    ours = greedy(model, prompts, 60, [tokenizer.eos_id, tokenizer.doc_end_id])
    agreement = [sum(a == b for a, b in zip(o, t, strict=False)) / len(o)
                 for o, t in zip(ours, theirs, strict=True)]  # fmt: skip
    assert sum(agreement) / len(agreement) > 0.9


def test_chat_prompts_have_the_same_ids(trained: tuple[MiMo, Tokenizer], tmp_path: Path) -> None:
    model, tokenizer = trained
    path = export(tmp_path / "chat.gguf", model, tokenizer)
    questions = ["1 + 1 = ?", "日本 é", "  two\n\n\tspaces ", "12345"]
    texts = [
        f"<|im_start|>system\n<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n"
        "<|im_start|>assistant\n"
        for question in questions
    ]
    answer = llama(path, texts=texts)
    assert answer["ids"] == [tokenizer.chat_prompt(question) for question in questions]
    assert "<|im_start|>" in answer["template"]


@pytest.mark.parametrize("pre", _SPLITS)
def test_every_split_is_llama_cpps(
    pre: str, hard_texts: list[str], trained: tuple[MiMo, Tokenizer], tmp_path: Path
) -> None:
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    backend.pre_tokenizer = _SPLITS[pre]
    if pre in _NORMALIZERS:
        backend.normalizer = _NORMALIZERS[pre]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=345, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*SENTENCES, *hard_texts[:60]], trainer)
    backend.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    path = export(tmp_path / "split.gguf", trained[0], Tokenizer(backend))
    ours = tokenizers.Tokenizer.from_str(
        GGUFSource(path).tokenizer_files()["tokenizer.json"].decode()
    )
    theirs = llama(path, texts=hard_texts)["ids"]
    for text, ids in zip(hard_texts, theirs, strict=True):
        assert ours.encode(text).ids == ids, ascii(text)


def test_smollm2s_ids(smollm2: Path, hard_texts: list[str]) -> None:
    files = GGUFSource(smollm2).tokenizer_files()
    ours = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    theirs = llama(smollm2, texts=hard_texts)["ids"]
    for text, ids in zip(hard_texts, theirs, strict=True):
        assert ours.encode(text).ids == ids, ascii(text)


def test_smollm2s_greedy_text(smollm2: Path) -> None:
    # llama.cpp multiplies with 8-bit activations here. So its text is not ours to the end, but
    # each of its tokens is our best after the same beginning, or was nearly so.
    transformers = pytest.importorskip("transformers")
    source = GGUFSource(smollm2)
    config = transformers.AutoConfig.for_model(**source.config)
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    state = {name: source.read(name) for name in source.shapes}
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    files = source.tokenizer_files()
    tokenizer = tokenizers.Tokenizer.from_str(files["tokenizer.json"].decode())
    questions = [
        "What is 2 + 2?",
        "Count from 1 to 10.",
        "Name three colours.",
        "Who wrote Hamlet?",
    ]
    prompts = [
        tokenizer.encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n").ids
        for question in questions
    ]
    answers = llama(smollm2, prompts=prompts, new=40)["answers"]
    behind = []
    for prompt, answer in zip(prompts, answers, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        theirs = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        behind += (logits.max(-1).values - theirs).tolist()
    assert len(behind) > 80
    assert sum(gap == 0 for gap in behind) > 0.9 * len(behind)
    assert max(behind) < 1
