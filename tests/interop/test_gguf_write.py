"""Written files, read back by the gguf library, by transformers and by our own reader."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from openmimo.config.schema import ModelConfig, RopeScaling
from openmimo.errors import UserError
from openmimo.interop.gguf_read import GGUFSource
from openmimo.interop.gguf_write import write_gguf
from openmimo.model.mimo import MiMo
from openmimo.tokenizer import Tokenizer

Export = Callable[..., Path]

CONFIG = ModelConfig(
    vocab_size=304, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
    num_attention_heads=6, num_key_value_heads=2, head_dim=8, max_position_embeddings=64,
    rms_norm_eps=1e-6, rope_theta=640_000, num_nextn_predict_layers=2,
)  # fmt: skip
DTYPES = ["float32", "float16", "bfloat16"]


@pytest.fixture(scope="module")
def model() -> MiMo:
    model = MiMo(CONFIG)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.3, generator=generator)
            if "norm" in name:
                parameter += 1
    return model.eval()


@pytest.fixture
def export(model: MiMo, tokenizer: Tokenizer, tmp_path: Path) -> Export:
    """`export(dtype, **changes)` writes the model; `changes` are arguments of `write_gguf`."""

    def write(dtype: str = "float32", **changes: Any) -> Path:
        state = model.state_dict()
        arguments: dict[str, Any] = {
            "path": tmp_path / "out" / "model.gguf",
            "config": CONFIG,
            "read": state.__getitem__,
            "tokenizer": tokenizer,
            "name": "Tiny",
        }
        arguments |= changes
        write_gguf(dtype=dtype, **arguments)
        return Path(arguments["path"])

    return write


def expected(model: MiMo, dtype: str) -> dict[str, Tensor]:
    """What the file must hold: no MTP layers, norms and biases in float32."""
    trunk = {n: t for n, t in model.state_dict().items() if "mtp_layers" not in n}
    matrices = getattr(torch, dtype)
    return {n: t.to(torch.float32 if t.ndim == 1 else matrices) for n, t in trunk.items()}


@pytest.mark.parametrize("dtype", DTYPES)
def test_our_reader_gets_the_same_bits(export: Export, model: MiMo, dtype: str) -> None:
    read = GGUFSource(export(dtype))
    wanted = expected(model, dtype)
    assert set(read.shapes) == set(wanted)
    for name, tensor in wanted.items():
        found = read.read(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)
    for name in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim",
        "num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta",
        "max_position_embeddings",
    ):  # fmt: skip
        assert read.config[name] == getattr(CONFIG, name)
    assert read.config["model_type"] == "qwen2"
    assert not read.config["tie_word_embeddings"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gguf_library_gets_the_same_tensors(export: Export, model: MiMo, dtype: str) -> None:
    wanted = expected(model, dtype)
    tensors = gguf.GGUFReader(export(dtype)).tensors
    assert len(tensors) == len(wanted)
    # Its own table of names, so that ours has an independent witness.
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, CONFIG.num_hidden_layers)
    by_name = {tensor.name: tensor for tensor in tensors}
    for name, tensor in wanted.items():
        stored = by_name[names.get_name(name, try_suffixes=(".weight", ".bias"))]
        values = gguf.dequantize(stored.data, stored.tensor_type)
        assert np.array_equal(values.reshape(tensor.shape), tensor.float().numpy())


def test_transformers_gets_the_same_logits(export: Export, model: MiMo) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    path = export()
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
    )
    assert type(theirs).__name__ == "Qwen2ForCausalLM"
    assert not any(info.values()), info
    ids = torch.randint(304, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=0, atol=5e-5)


def test_what_the_file_says_about_itself(export: Export, tokenizer: Tokenizer) -> None:
    fields = gguf.GGUFReader(export()).fields
    found = {name: field.contents() for name, field in fields.items()}
    assert found["general.architecture"] == "qwen2"
    assert found["general.name"] == "Tiny"
    assert "general.license" not in found
    prefix = "tokenizer.ggml."
    assert found[prefix + "model"] == "gpt2"
    assert found[prefix + "pre"] == "qwen2"
    assert len(found[prefix + "tokens"]) == CONFIG.vocab_size
    assert found[prefix + "add_bos_token"] is False
    ids = [found[f"{prefix}{role}_token_id"] for role in ("bos", "eos", "eot", "padding")]
    assert ids == [tokenizer.doc_end_id, tokenizer.eos_id, tokenizer.eos_id, tokenizer.doc_end_id]
    assert "<|im_start|>" in found["tokenizer.chat_template"]


def test_without_a_tokenizer(export: Export) -> None:
    read = GGUFSource(export(tokenizer=None))
    assert read.config["vocab_size"] == 304
    assert read.tokenizer() is None


def test_attention_must_be_as_wide_as_the_model(export: Export, tmp_path: Path) -> None:
    wide = CONFIG.model_copy(update={"head_dim": 16})
    with pytest.raises(UserError, match="6 heads of 16"):
        export(config=wide)
    assert not (tmp_path / "out").exists()


def test_linear_scaling(export: Export, model: MiMo) -> None:
    scaling = RopeScaling(kind="linear", factor=4.0)
    source = GGUFSource(export(config=CONFIG.model_copy(update={"rope_scaling": scaling})))
    assert source.config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    scaling = RopeScaling(kind="llama3", factor=4.0)
    with pytest.raises(UserError, match="llama3"):
        export(config=CONFIG.model_copy(update={"rope_scaling": scaling}))


def test_a_failed_write_leaves_the_old_file(export: Export, model: MiMo, tmp_path: Path) -> None:
    path = export()
    before = path.read_bytes()
    state = model.state_dict()

    def turned(name: str) -> Tensor:
        return state[name].T if name == "lm_head.weight" else state[name]

    def broken(name: str) -> Tensor:
        raise UserError("no such shard")

    for read, message in ((turned, "lm_head"), (broken, "no such shard")):
        with pytest.raises(UserError, match=message):
            export(read=read)
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]


def test_a_users_files_beside_it_stay(export: Export, tmp_path: Path) -> None:
    mine = tmp_path / "out" / "model.gguf.tmp"
    mine.parent.mkdir()
    mine.write_text("mine")
    path = export()
    assert mine.read_text() == "mine"
    assert set(mine.parent.iterdir()) == {mine, path}
    assert path.stat().st_mode == mine.stat().st_mode


def test_a_token_before_every_text(export: Export, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "prefixed")
    path = tmp_path / "prefixed" / "tokenizer.json"
    content = json.loads(path.read_text())
    first = {"id": "<|im_start|>", "type_id": 0}
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": first}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {first["id"]: first | {"ids": [tokenizer.turn_start_id], "tokens": []}},
    }
    path.write_text(json.dumps(content))
    prefixed = Tokenizer.load(path.parent)
    for given, adds, bos in (
        (tokenizer, False, tokenizer.doc_end_id),
        (prefixed, True, tokenizer.turn_start_id),
    ):
        found = {
            name: field.contents()
            for name, field in gguf.GGUFReader(export(tokenizer=given)).fields.items()
        }
        assert found["tokenizer.ggml.add_bos_token"] is adds
        assert found["tokenizer.ggml.bos_token_id"] == bos


def test_numbers_too_large_for_float16(export: Export, model: MiMo) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["model.layers.1.mlp.up_proj.weight"][0, 0] = 70_000.0
    with pytest.raises(UserError, match=r"up_proj.*too large for float16"):
        export("float16", read=state.__getitem__)
    assert export("bfloat16", read=state.__getitem__).exists()
    # Norms and biases stay float32, so there it does no harm.
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["model.layers.1.self_attn.q_proj.bias"][0] = 70_000.0
    assert export("float16", read=state.__getitem__).exists()


def test_a_tokenizer_too_large_for_the_model(export: Export) -> None:
    with pytest.raises(UserError, match="do not belong together"):
        export(config=CONFIG.model_copy(update={"vocab_size": 270}))


def test_places_that_cannot_be_written(export: Export, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write"):
        export(path=tmp_path / ("x" * 300))
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        export(path=tmp_path / "folder.gguf")


def test_a_full_disk(export: Export, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match="cannot write"):
            export()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "out").iterdir())


STREAM = """
import resource, sys
from pathlib import Path
from openmimo.config.schema import ModelConfig, RopeScaling
from openmimo.interop.gguf_read import GGUFSource
from openmimo.model.layout import tensor_shapes
from openmimo.interop.gguf_write import write_gguf
import torch

config = ModelConfig(vocab_size=8192, hidden_size=1024, intermediate_size=4096,
    num_hidden_layers=30, num_attention_heads=8, num_key_value_heads=2, head_dim=128,
    max_position_embeddings=64, num_nextn_predict_layers=0)
shapes = dict(tensor_shapes(config))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
torch.ones(8192, 1024).bfloat16()
before = peak()
write_gguf(sys.argv[1], config, lambda n: torch.ones(shapes[n]), None, "bfloat16", "x")
written = peak()
model = GGUFSource(Path(sys.argv[1]))
for name in model.shapes:
    model.read(name)
print(written - before, peak() - before)
"""


@pytest.mark.slow
def test_memory_holds_one_tensor(tmp_path: Path) -> None:
    path = tmp_path / "large.gguf"
    out = subprocess.run(
        [sys.executable, "-c", STREAM, path], check=True, capture_output=True, text=True
    ).stdout
    assert path.stat().st_size > 900 * 10**6
    writing, reading = map(float, out.split())
    assert max(writing, reading) < 100  # MB; the largest tensor has 32 MB in float32
