"""GGUF models: equal to what transformers reads, or refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from openmimo.errors import UserError
from openmimo.interop.gguf_header import read_header
from openmimo.interop.gguf_read import GGUFSource

from .gguf_files import checked

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")  # transformers reads GGUF only with it

WriteGGUF = Callable[..., Path]


def theirs(path: Path) -> Any:
    """The model as transformers reads it, in float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )


def assert_same(model: GGUFSource, reference: Any) -> None:
    state = reference.state_dict()
    if reference.config.tie_word_embeddings:
        del state["lm_head.weight"]
    assert set(model.shapes) == set(state)
    for name, shape in model.shapes.items():
        tensor = model.read(name)
        assert tuple(tensor.shape) == shape
        assert torch.equal(tensor.float(), state[name]), name


def in_transformers(model: GGUFSource) -> Any:
    """`model` put together from its config and tensors alone."""
    config = transformers.AutoConfig.for_model(**model.config)
    built = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    state = {name: model.read(name).float() for name in model.shapes}
    if model.config["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    built.load_state_dict(state)
    return built


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q4_0"])
def test_models_are_as_transformers_reads_them(
    write_gguf_file: WriteGGUF, architecture: str, tied: bool, kind: str
) -> None:
    path = write_gguf_file(architecture, tied, kind)
    model = checked(path)
    stored = {"F16": "float16", "BF16": "bfloat16"}.get(kind, "float32")
    # Norms are float32, so only float32 holds all weights exactly.
    assert (model.config["torch_dtype"], model.dtype) == ("float32", torch.float32)
    assert model.stored_as == ", ".join(sorted({"F32", kind}))
    assert str(model.read("model.layers.1.mlp.up_proj.weight").dtype) == f"torch.{stored}"
    assert model.read("model.norm.weight").dtype == torch.float32
    assert_same(model, theirs(path))


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_configs_give_the_same_logits(write_gguf_file: WriteGGUF, architecture: str) -> None:
    path = write_gguf_file(architecture, tied=True)
    model = GGUFSource(path)
    ids = torch.randint(304, (2, 30), generator=torch.Generator().manual_seed(0))
    expected = theirs(path).eval()(ids).logits
    assert torch.equal(in_transformers(model)(ids).logits, expected)
    assert json.loads(json.dumps(model.config)) == model.config
    assert model.config["tie_word_embeddings"]
    assert model.config["rms_norm_eps"] == 1e-5
    assert model.config["rope_theta"] == 20_000
    assert model.config["model_type"] == architecture


def test_biases_of_llamas_are_reordered_with_their_rows(write_gguf_file: WriteGGUF) -> None:
    # transformers leaves a bias in llama.cpp's order; so the reference is the permutation itself:
    # llama.cpp's row 2i is row i of a head, and its row 2i + 1 the one head_dim / 2 further on.
    bias = torch.arange(64.0)
    tensors = {
        f"blk.{number}.attn_{part}.bias": torch.arange(float(size))
        for number in range(2)
        for part, size in (("q", 64), ("k", 32), ("v", 32))
    }
    model = GGUFSource(write_gguf_file("llama", tensors=tensors))
    read = model.read("model.layers.0.self_attn.q_proj.bias")
    for head in range(4):
        for i in range(8):
            assert read[16 * head + i] == bias[16 * head + 2 * i]
            assert read[16 * head + 8 + i] == bias[16 * head + 2 * i + 1]
    assert torch.equal(model.read("model.layers.0.self_attn.v_proj.bias"), torch.arange(32.0))
    assert model.config["attention_bias"]
    assert "model.layers.0.self_attn.o_proj.bias" not in model.shapes
    tensors |= {f"blk.{number}.attn_output.bias": torch.ones(64) for number in range(2)}
    model = GGUFSource(write_gguf_file("llama", tensors=tensors))
    assert model.shapes["model.layers.1.self_attn.o_proj.bias"] == (64,)


def test_linear_scaling(write_gguf_file: WriteGGUF) -> None:
    fields = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    config = GGUFSource(write_gguf_file(fields=fields)).config
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    fields = {"llama.rope.scaling.type": "none"}
    assert GGUFSource(write_gguf_file(fields=fields)).config["rope_scaling"] is None


def test_what_old_files_leave_out(write_gguf_file: WriteGGUF) -> None:
    left_out = ("rope.freq_base", "rope.dimension_count", "vocab_size")
    fields = {f"llama.{name}": None for name in left_out}
    config = GGUFSource(write_gguf_file(fields=fields)).config
    assert (config["rope_theta"], config["head_dim"], config["vocab_size"]) == (10_000, 16, 304)
    with pytest.raises(UserError, match="the config says"):  # as many key heads as heads
        checked(write_gguf_file(fields={"llama.attention.head_count_kv": None}))


def test_neutral_fields_pass(write_gguf_file: WriteGGUF) -> None:
    fields = {
        "llama.expert_count": 0,
        "llama.attention.sliding_window": 0,
        "llama.attention.causal": True,
        "llama.attention.key_length": 16,
        "llama.attention.value_length": 16,
        "general.type": "model",
        "general.quantization_version": 2,
        "split.count": 1,
        "quantize.imatrix.dataset": "calibration.txt",
    }
    assert GGUFSource(write_gguf_file(fields=fields)).config["head_dim"] == 16


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "no architecture": ({"general.architecture": 5}, "architecture is 5"),
    "an adapter": ({"general.type": "adapter"}, "'adapter', not a model"),
    "a part": ({"split.count": 3}, "llama-gguf-split --merge"),
    "yarn": ({"rope.scaling.yarn_log_multiplier": 0.1, "rope.scaling.type": "yarn"}, "'yarn'"),
    "longrope": ({"rope.scaling.type": "longrope"}, "'longrope'"),
    "a scaling that is no text": ({"rope.scaling.type": 1}, "scaling is 1"),
    "linear without a factor": ({"rope.scaling.type": "linear"}, "scaling.factor is missing"),
    "a negative factor": (
        {"rope.scaling.type": "linear", "rope.scaling.factor": -1.0},
        "no positive number",
    ),
    "old scaling": ({"rope.scale_linear": 2.0}, "rope.scale_linear = 2.0"),
    "attention factor": ({"rope.scaling.attn_factor": 2.0}, "attn_factor"),
    "a sliding window": ({"attention.sliding_window": 4096}, "sliding_window = 4096"),
    "experts": ({"expert_count": 8}, "expert_count = 8"),
    "no causal mask": ({"attention.causal": False}, "causal"),
    "an unknown field": ({"logit_scale": 0.5}, "logit_scale"),
    "a pooling": ({"pooling_type": 1}, "pooling_type"),
    "another layout": ({"tensor_data_layout": "Meta AI original pth"}, "tensor_data_layout"),
    "a part of RoPE": ({"rope.dimension_count": 8}, "rope.dimension_count"),
    "narrow values": ({"attention.value_length": 8}, "value_length"),
    "odd heads": ({"attention.head_count": 7}, "head"),
    "0 heads": ({"attention.head_count": 0}, "head_count is 0"),
    "heads by layer": ({"attention.head_count": [4, 4]}, "an array of 2"),
    "heads as text": ({"attention.head_count": "4"}, "head_count is '4'"),
    "heads as truth": ({"attention.head_count": True}, "head_count is True"),
    "heads as a fraction": ({"attention.head_count": 4.0}, "head_count is 4.0"),
    "3 key heads": ({"attention.head_count_kv": 3}, "num_key_value_heads"),
    "1 key head": ({"attention.head_count_kv": 1}, "the config says"),
    "4 billion layers": ({"block_count": 2**32 - 1}, "block_count"),
    "a billion layers": ({"block_count": 10**9}, "only 21 tensors"),
    "3 layers": ({"block_count": 3}, "lacks 9 tensors"),
    "1 layer": ({"block_count": 1}, "holds 9 tensors"),
    "another width": ({"embedding_length": 128}, "not the size|the config says"),
    "another inner width": ({"feed_forward_length": 64}, "the config says"),
    "another vocabulary": ({"vocab_size": 305}, "the config says"),
    "no length": ({"context_length": None}, "context_length is missing"),
    "4 billion positions": ({"context_length": 2**32 - 1}, "context_length"),
    "no epsilon": ({"attention.layer_norm_rms_epsilon": None}, "epsilon is missing"),
    "epsilon 0": ({"attention.layer_norm_rms_epsilon": 0.0}, "no positive"),
    "epsilon nan": ({"attention.layer_norm_rms_epsilon": float("nan")}, "no positive"),
    "base inf": ({"rope.freq_base": float("inf")}, "no positive"),
    "base as a count": ({"rope.freq_base": 10_000}, "no positive"),
    "an eos that is no id": ({"tokenizer.ggml.eos_token_id": 304}, "eos token is 304"),
    "a bos that is no number": ({"tokenizer.ggml.bos_token_id": "x" * 900}, "bos token is x"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_fields_that_are_refused(write_gguf_file: WriteGGUF, case: str) -> None:
    changes, message = FIELDS[case]
    top = ("general.", "split.", "tokenizer.")
    fields = {n if n.startswith(top) else f"llama.{n}": value for n, value in changes.items()}
    path = write_gguf_file(fields=fields)
    with pytest.raises(UserError, match=message) as error:
        checked(path)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) < 250 + len(str(path))


@pytest.mark.parametrize("architecture", ["gemma2", "qwen3", "phi3", "llama4", "mimo2", "clip"])
def test_other_architectures_are_refused(write_gguf_file: WriteGGUF, architecture: str) -> None:
    with pytest.raises(UserError, match=f"architecture is '{architecture}'"):
        GGUFSource(write_gguf_file(known_as=architecture))


TENSORS: dict[str, tuple[str, dict[str, torch.Tensor | None], str]] = {
    "a scaling of RoPE": ("llama", {"rope_freqs.weight": torch.ones(8)}, "rope_freqs.weight"),
    "a norm of queries": ("qwen2", {"blk.0.attn_q_norm.weight": torch.ones(16)}, "attn_q_norm"),
    "a bias of the head": ("qwen2", {"output.bias": torch.ones(304)}, "lm_head.bias"),
    "a bias of the output": ("qwen2", {"blk.1.attn_output.bias": torch.ones(64)}, "o_proj.bias"),
    "a bias in one layer": ("llama", {"blk.0.attn_q.bias": torch.ones(64)}, "attention_bias"),
    "no bias in a layer": ("qwen2", {"blk.1.attn_k.bias": None}, "lacks 1 tensors"),
    "no embedding": ("llama", {"token_embd.weight": None}, "token_embd.weight is missing"),
    "no norm": ("llama", {"output_norm.weight": None}, "model.norm|output_norm"),
    "a row as a norm": (
        "llama",
        {"output_norm.weight": torch.ones(1, 64)},
        "the config says",
    ),
    "a turned matrix": ("llama", {"blk.0.ffn_up.weight": torch.ones(64, 96)}, "the config says"),
    "an empty-handed name": ("llama", {"model.norm.weight": torch.ones(64)}, "model.norm.weight"),
    "a layer too many": ("llama", {"blk.2.attn_norm.weight": torch.ones(64)}, "layers.2"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_refused(write_gguf_file: WriteGGUF, case: str) -> None:
    architecture, tensors, message = TENSORS[case]
    with pytest.raises(UserError, match=message):
        checked(write_gguf_file(architecture, tensors=tensors))


@pytest.mark.parametrize("kind", ["I8", "I32", "F64", "Q8_1", "Q8_K"])
def test_types_that_are_refused(tmp_path: Path, write_gguf_file: WriteGGUF, kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    path = write_gguf_file()
    content = bytearray(path.read_bytes())
    place = content.index(b"blk.0.ffn_norm.weight") + len(b"blk.0.ffn_norm.weight") + 4 + 8
    content[place : place + 4] = int(number).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{kind}|lies over"):
        GGUFSource(path)


def test_files_that_change_while_they_are_open(write_gguf_file: WriteGGUF) -> None:
    path = write_gguf_file()
    model = GGUFSource(path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(UserError, match="replaced"):
        model.read("lm_head.weight")
    path.unlink()
    with pytest.raises(UserError, match="No such file"):
        model.read("lm_head.weight")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(write_gguf_file: WriteGGUF, kind: str, value: float) -> None:
    path = write_gguf_file(kind=kind)
    source = GGUFSource(path)
    content = bytearray(path.read_bytes())
    start = read_header(path).tensors["blk.1.ffn_up.weight"].start
    dtype = np.float32 if kind == "F32" else np.float16  # of a block's scale, with Q8_0
    content[start : start + np.dtype(dtype).itemsize] = np.array(value, dtype).tobytes()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight holds NaN or infinities"):
        source.read("model.layers.1.mlp.up_proj.weight")


def test_tensors_are_copies(write_gguf_file: WriteGGUF) -> None:
    model = GGUFSource(write_gguf_file())
    model.read("model.norm.weight").zero_()
    assert model.read("model.norm.weight").any()


@pytest.mark.slow
def test_smollm2(smollm2: Path) -> None:
    model = GGUFSource(smollm2)
    reference = theirs(smollm2).eval()
    assert_same(model, reference)
    files = model.tokenizer_files()
    assert b"<|im_start|>" in files["tokenizer_config.json"]
    ids = torch.tensor([[1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 30, 2, 198]])
    with torch.no_grad():
        assert torch.equal(in_transformers(model)(ids).logits, reference(ids).logits)
    settings = {"hidden_size": 576, "num_hidden_layers": 30, "head_dim": 64, "rope_theta": 100_000}
    assert {name: model.config[name] for name in settings} == settings
    assert np.isclose(sum(model.read(n).numel() for n in model.shapes), 134_515_008)
