"""What goes out computes the same elsewhere, and comes back bit for bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from openmimo.errors import UserError
from openmimo.interop.exporting import Form, Model, export_model
from openmimo.interop.importing import Options, import_model
from openmimo.model.checkpoint import load_model, load_release, write_model
from openmimo.model.mimo import MiMo
from openmimo.tokenizer import Tokenizer

from .conftest import FAMILIES, edit_config, make_foreign

transformers = pytest.importorskip("transformers")
MakeModel = Callable[..., MiMo]


@pytest.fixture
def release(make_model: MakeModel, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """A folder with three MTP layers, a tokenizer, a card and a licence."""
    folder = tmp_path / "release"
    folder.mkdir()
    model = make_model(vocab_size=304, rope_theta=640_000.0)
    write_model(model, folder, torch.float32, tokenizer)
    (folder / "README.md").write_text("the card")
    (folder / "LICENSE").write_text("the licence")
    return folder


def send_out(folder: Path, target: Path, form: Form, **options: Any) -> list[str]:
    return export_model(Model.from_folder(folder), target, form, **options).left_out


def same(a: MiMo, b: MiMo) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_hf_is_the_whole_model(release: Path, tmp_path: Path) -> None:
    assert send_out(release, tmp_path / "out", "hf") == []
    assert {path.name for path in release.iterdir()} == {
        path.name for path in (tmp_path / "out").iterdir()
    }
    for path in release.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype(release: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    send_out(release, tmp_path / "out", "hf", dtype=dtype)
    assert same(load_model(tmp_path / "out"), load_model(release).to(dtype))


def test_vllm_leaves_the_extra_layers_out(make_model: MakeModel, tmp_path: Path) -> None:
    release = tmp_path / "release"
    release.mkdir()
    shape = {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32}  # vLLM runs it as it is
    write_model(make_model(**shape), release, torch.float32)
    left_out = send_out(release, tmp_path / "out", "vllm", max_shard_bytes=30_000)
    assert left_out[-1] == "2 of 3 MTP layers: vLLM and SGLang use only the first"
    assert not (tmp_path / "out" / "mtp_extra.safetensors").exists()
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 1
    ours = load_model(tmp_path / "out").state_dict()
    whole = load_model(release).state_dict()
    assert {name for name in whole if "mtp_layers.0" in name} <= ours.keys()
    assert all(torch.equal(ours[name], whole[name]) for name in ours)


def test_vllm_is_told_that_it_feeds_another_state(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    write_model(make_model(mtp_hidden="post_norm"), tmp_path / "a", torch.float32)
    left_out = send_out(tmp_path / "a", tmp_path / "out", "vllm")
    assert any("post_norm" in sentence for sentence in left_out)


def test_a_release_is_run_without_the_zeros_for_vllm(release: Path, tmp_path: Path) -> None:
    changes = send_out(release, tmp_path / "out", "vllm")
    assert load_model(tmp_path / "out").config.head_dim > load_model(release).config.head_dim
    run, whole = (load_release(folder)[0] for folder in (tmp_path / "out", release))
    assert run.config.head_dim == whole.config.head_dim, changes
    ids = torch.randint(304, (2, 40), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(run(ids), whole(ids), rtol=0, atol=1e-4)


def test_qwen2_in_transformers_without_remote_code(release: Path, tmp_path: Path) -> None:
    assert "3 MTP layers" in send_out(release, tmp_path / "out", "qwen2")[0]
    assert not list((tmp_path / "out").glob("*.py"))
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert type(theirs).__name__ == "Qwen2ForCausalLM"
    assert not any(info.values()), info
    ids = torch.randint(304, (2, 40), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(theirs(ids).logits, load_model(release)(ids), rtol=0, atol=5e-5)
    tokens = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokens("1 + 1 = 2")["input_ids"] == load_release(release)[1].encode("1 + 1 = 2")


def test_qwen2_comes_back(release: Path, tmp_path: Path) -> None:
    send_out(release, tmp_path / "out", "qwen2")
    import_model(str(tmp_path / "out"), tmp_path / "back", Options())
    back, whole = load_model(tmp_path / "back"), load_model(release).state_dict()
    assert back.config.rope_theta == 640_000
    state = back.state_dict()
    assert state.keys() == {name for name in whole if "mtp_layers" not in name}
    assert all(torch.equal(state[name], whole[name]) for name in state)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("form", ["hf", "qwen2"])
def test_import_then_export_gives_transformers_the_same_model(
    family: str, form: Form, tmp_path: Path, long_ids: Tensor, own_module_cache: None
) -> None:
    theirs = make_foreign(tmp_path / "theirs", **FAMILIES[family])
    import_model(str(tmp_path / "theirs"), tmp_path / "ours", Options())
    send_out(tmp_path / "ours", tmp_path / "out", form)
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=form == "hf"
    )
    with torch.no_grad():
        logits = again(long_ids).logits
        torch.testing.assert_close(logits, theirs(long_ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_import_export_import_is_bit_equal(family: str, tmp_path: Path) -> None:
    make_foreign(tmp_path / "theirs", **FAMILIES[family])
    import_model(str(tmp_path / "theirs"), tmp_path / "a", Options(add_mtp=True))
    send_out(tmp_path / "a", tmp_path / "out", "hf", max_shard_bytes=40_000)
    import_model(str(tmp_path / "out"), tmp_path / "b", Options())
    assert same(load_model(tmp_path / "a"), load_model(tmp_path / "b"))
    assert load_model(tmp_path / "a").config == load_model(tmp_path / "b").config


def test_what_transformers_saves_is_read_back(
    release: Path, tmp_path: Path, own_module_cache: None
) -> None:
    # transformers 5 writes another form of config.json, without the index and openmimo.json.
    theirs = transformers.AutoModelForCausalLM.from_pretrained(release, trust_remote_code=True)
    with torch.no_grad():
        theirs.model.mtp_layers[0].input_proj.weight += 1  # as a training there might
    theirs.save_pretrained(tmp_path / "theirs")
    assert "rope_parameters" in json.loads((tmp_path / "theirs" / "config.json").read_text())
    import_model(str(tmp_path / "theirs"), tmp_path / "back", Options())
    back = load_model(tmp_path / "back")
    assert back.config.rope_theta == 640_000
    assert len(back.mtp_layers) == 1
    expected = theirs.state_dict()
    assert back.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in back.state_dict().items())
    # And it can be used where it lies.
    assert same(load_model(tmp_path / "theirs"), back)


def test_nothing_is_overwritten(release: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in release.iterdir()}
    with pytest.raises(UserError, match="exists already"):
        send_out(release, release, "hf")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        send_out(release, tmp_path / "file", "qwen2")
    assert {path.name: path.read_bytes() for path in release.iterdir()} == before


def test_a_damaged_model_leaves_nothing_behind(release: Path, tmp_path: Path) -> None:
    tensors = load_file(release / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    from safetensors.torch import save_file

    save_file(tensors, release / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"norm\.weight holds NaN"):
        send_out(release, tmp_path / "out", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_a_tokenizer_of_another_model_is_refused(release: Path, tmp_path: Path) -> None:
    edit_config(release, vocab_size=100)
    with pytest.raises(UserError):
        send_out(release, tmp_path / "out", "hf")


def test_transformers_drafts_with_the_mtp_layer_of_an_import(
    tmp_path: Path, long_ids: Tensor, own_module_cache: None
) -> None:
    make_foreign(tmp_path / "theirs", **FAMILIES["llama tied"])
    import_model(str(tmp_path / "theirs"), tmp_path / "ours", Options(add_mtp=True))
    send_out(tmp_path / "ours", tmp_path / "out", "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", trust_remote_code=True
    )
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    plain, drafted = (
        theirs.generate(long_ids[:1, :9], use_mtp=use_mtp, **options) for use_mtp in (False, True)
    )
    assert torch.equal(plain, drafted)
    ids = long_ids[:1, :9]
    with torch.no_grad():
        for _ in range(20):
            ids = torch.cat([ids, load_model(tmp_path / "ours")(ids)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(plain, ids)


def test_the_qwen2_form_is_plain_and_readable_by_others(release: Path, tmp_path: Path) -> None:
    send_out(release, tmp_path / "out", "qwen2")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not {"auto_map", "num_nextn_predict_layers"} & config.keys()
    modes = {
        (tmp_path / "out" / name).stat().st_mode for name in ("config.json", "model.safetensors")
    }
    assert len(modes) == 1


def test_rope_scaling_is_spelled_for_old_and_new_readers(tmp_path: Path) -> None:
    make_foreign(tmp_path / "theirs", **FAMILIES["qwen2 linear"])
    import_model(str(tmp_path / "theirs"), tmp_path / "ours", Options())
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["rope_scaling"] == {"rope_type": "linear", "type": "linear", "factor": 4.0}


def test_too_little_space_is_said_before_anything_is_written(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(UserError, match="no space"):
        send_out(release, tmp_path / "out", "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["release"]
