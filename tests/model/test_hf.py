"""Release folders in transformers: same logits, same ids, generation with and without MTP."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openmimo.model.checkpoint import load_model, write_model
from openmimo.model.mimo import MiMo
from openmimo.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("own_module_cache")

MakeModel = Callable[..., MiMo]


@pytest.fixture(scope="module")
def model(make_model: MakeModel) -> MiMo:
    return make_model(vocab_size=304, max_position_embeddings=512, rope_theta=640_000)


@pytest.fixture(scope="module")
def folder(model: MiMo, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    write_model(model, folder, torch.float32, tokenizer)
    return folder


def load(folder: Path, **options: Any) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, **options
    )


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return load(folder)


def mtp_logits(model: MiMo, ids: Tensor) -> Tensor:
    positions = torch.arange(ids.shape[1] - 1).expand_as(ids[:, 1:])
    hidden = model.hidden(ids[:, :-1], positions)
    return model.lm_head(model.mtp_draft(0, hidden, ids[:, 1:], positions))


def greedy(model: MiMo, ids: Tensor, count: int) -> Tensor:
    for _ in range(count):
        ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    return ids


def test_loading_is_quiet_and_complete(folder: Path) -> None:
    _, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    assert not any(info.values()), info


def test_same_logits(model: MiMo, theirs: Any, ids: Tensor) -> None:
    torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_same_mtp_logits(model: MiMo, folder: Path, ids: Tensor, attention: str) -> None:
    theirs = load(folder, attn_implementation=attention)
    expected = mtp_logits(model, ids)
    torch.testing.assert_close(theirs.mtp_logits(ids), expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_folders(model: MiMo, tmp_path: Path, ids: Tensor) -> None:
    write_model(model, tmp_path, torch.bfloat16)
    theirs, ours = load(tmp_path, dtype="auto"), load_model(tmp_path)
    assert theirs.dtype == torch.bfloat16
    exact = load_model(tmp_path, dtype=torch.float32)(ids)
    error = (theirs(ids).logits.float() - exact).abs().mean()
    assert (ours(ids).float() - exact).abs().mean() < 1.2 * error
    assert error < 0.05 * exact.abs().mean()


def test_sharded_folders(model: MiMo, tmp_path: Path, ids: Tensor) -> None:
    write_model(model, tmp_path, torch.float32, max_shard_bytes=30_000)
    theirs = load(tmp_path)
    torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=0, atol=1e-5)
    out = theirs.generate(ids[:1], max_new_tokens=8, do_sample=False, use_mtp=True)
    assert torch.equal(out, greedy(model, ids[:1], 8))


@pytest.mark.parametrize("use_mtp", [False, True])
def test_greedy_generation(model: MiMo, theirs: Any, ids: Tensor, use_mtp: bool) -> None:
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    for prompt in (ids[:1], ids[1:, :5]):
        out = theirs.generate(prompt, use_mtp=use_mtp, **options)
        assert torch.equal(out, greedy(model, prompt, 24))


def test_transformers_drafts_with_our_mtp_layer(
    make_model: MakeModel, tmp_path: Path, ids: Tensor
) -> None:
    # A model that says the token after x is x + 1, and whose MTP layer says x + 2 of it: every
    # draft is accepted, if and only if the weights reach the right places in the right order.
    size = 64
    model = make_model(vocab_size=size, hidden_size=size, max_position_embeddings=512)
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    step = torch.eye(size).roll(1, dims=0)
    state["model.embed_tokens.weight"] = torch.eye(size)
    state["lm_head.weight"] = step
    state["model.norm.weight"] += 1
    for name in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
        state[f"model.mtp_layers.0.{name}.weight"] += 1
    # The hidden half of the input is ignored: with the halves swapped, no draft would be right.
    halves = [torch.zeros(size, size), torch.eye(size)]
    state["model.mtp_layers.0.input_proj.weight"] = torch.cat(halves, dim=1)
    model.load_state_dict(state)
    write_model(model, tmp_path, torch.float32)
    theirs = load(tmp_path)
    forwards = []
    theirs.model.layers[0].register_forward_hook(lambda *_: forwards.append(1))
    options = {"max_new_tokens": 40, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    out = theirs.generate(ids[:1] % size, use_mtp=True, **options)
    assert torch.equal(out[0, 24:], (out[0, 23] + 1 + torch.arange(40)) % size)
    assert len(forwards) <= 22


def test_sampled_generation_uses_the_folders_settings(theirs: Any, tokenizer: Tokenizer) -> None:
    settings = theirs.generation_config
    assert (settings.temperature, settings.top_p, settings.do_sample) == (0.6, 0.95, True)
    assert settings.bos_token_id == tokenizer.doc_end_id
    assert (settings.eos_token_id, settings.pad_token_id) == (
        tokenizer.eos_id,
        tokenizer.doc_end_id,
    )
    prompt = torch.tensor([tokenizer.chat_prompt("1 + 1 = ?")])
    out = theirs.generate(prompt, max_new_tokens=5)
    assert prompt.shape[1] < out.shape[1] <= prompt.shape[1] + 5


def test_saving_from_transformers_keeps_the_mtp_layer(
    theirs: Any, model: MiMo, tmp_path: Path, ids: Tensor
) -> None:
    theirs.save_pretrained(tmp_path)
    names = {name for name in model.state_dict() if "mtp_layers.1" not in name}
    names -= {name for name in names if "mtp_layers.2" in name}
    assert set(load_file(tmp_path / "model.safetensors")) == names
    again = load(tmp_path)
    assert torch.equal(again(ids).logits, theirs(ids).logits)
    assert torch.equal(again.mtp_logits(ids), theirs.mtp_logits(ids))


def test_the_trunk_loads_as_qwen2_without_the_mtp_keys(
    model: MiMo, folder: Path, tmp_path: Path, ids: Tensor
) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["rope_theta"] == 640_000
    assert "rope_parameters" not in config
    for key in ("auto_map", "num_nextn_predict_layers", "transformers_version"):
        del config[key]
    config |= {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    trunk = {name: tensor for name, tensor in tensors.items() if "mtp_layers" not in name}
    save_file(trunk, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert type(theirs).__name__ == "Qwen2ForCausalLM"
    assert not any(info.values()), info
    torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=0, atol=1e-5)


def test_tokenizer_and_chat_template(folder: Path, tokenizer: Tokenizer) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    text = "One and 1 + 1 = 2? Ünï 日本\n\n  <think>"
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Sure?"},
    ]
    rendered = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert theirs(rendered)["input_ids"] == tokenizer.chat_prompt(messages)
    ids = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert ids == tokenizer.chat_prompt(messages)


def test_remote_code_needs_nothing_of_openmimo(folder: Path, tmp_path: Path) -> None:
    # Whoever downloads a folder has only transformers.
    for name in ("configuration_mimo.py", "modeling_mimo.py"):
        lines = (folder / name).read_text().splitlines()
        imports = [line for line in lines if line.strip().startswith(("import ", "from "))]
        assert imports
        assert not any("openmimo" in line for line in imports)
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert load(moved).num_parameters() > 0
