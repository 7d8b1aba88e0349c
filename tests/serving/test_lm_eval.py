"""lm-eval's clients for OpenAI's API, unchanged, against a real server.

lm-eval stays out of .venv because of what it brings along. Make a venv for it, and set
LM_EVAL_PYTHON to its Python (`pip install 'lm-eval[api]' transformers` is enough; no torch).
"""

import json
import math
import os
import subprocess

import pytest
import torch

PYTHON = os.environ.get("LM_EVAL_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="LM_EVAL_PYTHON names no Python with lm-eval"),
]

QUESTIONS = [
    {"question": "the cat sat on the", "choices": ["mat", "naïve cat", "€"], "gold": 0},
    {"question": "and looked at the", "choices": ["other cat", "mat"], "gold": 1},
    {"question": "the", "choices": ["cat sat", "mat and looked"], "gold": 0},
]
COMMON = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
CHOICE = """
task: toy_choice
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc}]
"""
GENERATE = """
task: toy_generate
output_type: generate_until
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["a", "\\n"], max_gen_toks: 24, do_sample: false}
metric_list: [{metric: exact_match}]
"""


def evaluate(server, folder, tmp_path, kind, path, task, form, *options) -> list[dict]:
    """lm-eval's own record of each question."""
    data = tmp_path / "questions.jsonl"
    data.write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (tmp_path / f"{task}.yaml").write_text(form + COMMON.format(data=data))
    model = f"model=tiny,base_url={server.url}/v1/{path},tokenizer={folder},num_concurrent=2"
    command = [
        PYTHON, "-m", "lm_eval", "run", "--model", kind, "--model_args", f"{model},max_length=512",
        "--tasks", task, "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out"),
        "--log_samples", *options,
    ]  # fmt: skip
    offline = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        command, env={**os.environ, **offline, "OPENAI_API_KEY": "none"}, timeout=240,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    [samples] = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
    records = [json.loads(line) for line in samples.read_text().splitlines()]
    return sorted(records, key=lambda record: record["doc_id"])


@torch.inference_mode()
def likelihood(model, used, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Sum of the log-probs of a continuation, and whether greedy decoding gives it."""
    ids = torch.tensor([context + continuation])
    log_probs = model(ids)[0, len(context) - 1 : -1, :used].log_softmax(-1)
    wanted = torch.tensor(continuation)
    total = log_probs.gather(1, wanted[:, None]).sum().item()
    return total, bool((log_probs.argmax(-1) == wanted).all())


def test_multiple_choice_by_log_likelihood(server, folder, model, tokenizer, tmp_path):
    """Read from the echoed prompt's log-probs; equal to the model's own."""
    options = ("--batch_size", "2")
    records = evaluate(
        server, folder, tmp_path, "local-completions", "completions", "toy_choice", CHOICE, *options
    )
    assert len(records) == len(QUESTIONS)
    for record, question in zip(records, QUESTIONS, strict=True):
        context = tokenizer.encode(question["question"])
        for choice, [[total, greedy]] in zip(question["choices"], record["resps"], strict=True):
            whole = tokenizer.encode(f"{question['question']} {choice}")
            expected = likelihood(model, tokenizer.vocab_size, context, whole[len(context) :])
            assert math.isclose(float(total), expected[0], abs_tol=1e-3)
            assert greedy in (expected[1], str(expected[1]))


@pytest.mark.parametrize("chat", [False, True], ids=["completions", "chat"])
def test_generation(server, folder, tmp_path, chat):
    kind, path = "local-completions", "completions"
    options: tuple[str, ...] = ()
    if chat:
        kind, path = "local-chat-completions", "chat/completions"
        options = ("--apply_chat_template",)
    records = evaluate(server, folder, tmp_path, kind, path, "toy_generate", GENERATE, *options)
    for record, question in zip(records, QUESTIONS, strict=True):
        asked = {"max_tokens": 24, "temperature": 0, "stop": ["a", "\n"]}
        if chat:
            asked["messages"] = [{"role": "user", "content": question["question"]}]
        else:
            asked["prompt"] = question["question"]
        choice = server.client.post(f"/v1/{path}", json=asked).json()["choices"][0]
        expected = choice["message"]["content"] if chat else choice["text"]
        assert record["resps"][0][0].strip() == expected.strip()
