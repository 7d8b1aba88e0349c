"""GGUF through the whole of `mimo import` and `mimo export`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from openmimo.errors import UserError
from openmimo.interop.exporting import Model, export_model
from openmimo.interop.gguf_read import GGUFSource
from openmimo.interop.gguf_tokenizer import from_files
from openmimo.interop.importing import Options, import_model
from openmimo.model.checkpoint import load_model
from openmimo.tokenizer import Tokenizer

WriteGGUF = Callable[..., Path]


def tokenizer_fields(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    """The fields of `tokenizer` as llama.cpp's converter would write them."""
    tokenizer.save(folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return from_files(files, 304) | {
        "tokenizer.ggml.eos_token_id": tokenizer.eos_id,
        "tokenizer.ggml.padding_token_id": tokenizer.doc_end_id,
    }


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_there_and_back(
    write_gguf_file: WriteGGUF,
    tokenizer: Tokenizer,
    tmp_path: Path,
    architecture: str,
    tied: bool,
    kind: str,
) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    fields = tokenizer_fields(tokenizer, tmp_path / "tokenizer")
    path = write_gguf_file(architecture, tied, kind, fields)
    import_model(str(path), tmp_path / "imported", Options(add_mtp=True))
    model = load_model(tmp_path / "imported")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    ids = torch.randint(304, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=0, atol=1e-5)
    loaded = Tokenizer.load(tmp_path / "imported")
    assert loaded.chat_prompt("1 + 1") == tokenizer.chat_prompt("1 + 1")

    export_model(Model.from_folder(tmp_path / "imported"), tmp_path / "out.gguf", "gguf")
    import_model(str(tmp_path / "out.gguf"), tmp_path / "again", Options())
    state, again = model.state_dict(), load_model(tmp_path / "again").state_dict()
    assert again.keys() == {name for name in state if "mtp_layers" not in name}
    assert all(torch.equal(state[name], tensor) for name, tensor in again.items())


def test_a_sentencepiece_tokenizer_is_refused(write_gguf_file: WriteGGUF, tmp_path: Path) -> None:
    path = write_gguf_file(fields={"tokenizer.ggml.model": "llama"})
    with pytest.raises(UserError, match="sentencepiece"):
        import_model(str(path), tmp_path / "imported", Options())
    assert not (tmp_path / "imported").exists()


def test_a_model_without_tokenizer(write_gguf_file: WriteGGUF, tmp_path: Path) -> None:
    report = import_model(str(write_gguf_file()), tmp_path / "imported", Options())
    assert any("no tokenizer" in warning for warning in report.warnings)
    assert not (tmp_path / "imported" / "tokenizer.json").exists()


def test_without_the_library(
    write_gguf_file: WriteGGUF, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf_file()
    for name in [name for name in sys.modules if name.startswith("openmimo.interop.gguf_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"openmimo\[gguf\]"):
        import_model(str(path), tmp_path / "imported", Options())


def test_names(write_gguf_file: WriteGGUF) -> None:
    assert GGUFSource(write_gguf_file(fields={"general.name": "Smol 135M"})).name == "Smol 135M"
    for name in (None, "two\nlines", "x" * 1000):
        path = write_gguf_file(fields={"general.name": name})
        assert GGUFSource(path).name == path.stem


def test_every_tensor_of_the_layout_has_the_librarys_name() -> None:
    from openmimo.interop.gguf_names import gguf_name, published_name

    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 12)
    parts = ("self_attn.q_proj.weight", "mlp.down_proj.weight", "input_layernorm.weight")
    names = [f"model.layers.{n}.{part}" for n in range(12) for part in parts]
    for name in (*names, "lm_head.weight", "model.norm.weight", "model.embed_tokens.weight"):
        assert gguf_name(name) == table.get_name(name, try_suffixes=(".weight", ".bias"))
        assert published_name(gguf_name(name)) == name
    for name in ("blk.00.attn_q.weight", "blk.0.attn_q", "attn_q.weight", "blk.0.output.weight",
                 "blk.0.attn_q.weight\n", "blk.-1.attn_q.weight", "token_embd.scale"):  # fmt: skip
        assert published_name(name) is None
