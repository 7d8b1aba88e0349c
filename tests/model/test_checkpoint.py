import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openmimo.errors import UserError
from openmimo.model.checkpoint import (
    load_config,
    load_model,
    load_release,
    save_model,
    write_model,
)
from openmimo.model.mimo import MiMo
from openmimo.model.published import to_published
from openmimo.tokenizer import Tokenizer

MakeModel = Callable[..., MiMo]


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; a value of ... removes the key."""
    content = json.loads(path.read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not ...}
    path.write_text(json.dumps(kept))


@pytest.fixture
def folder(make_model: MakeModel, tmp_path: Path) -> Path:
    save_model(make_model(), tmp_path / "model", torch.float32)
    return tmp_path / "model"


def equal(a: MiMo, b: MiMo) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_a_saved_model_loads_equal(make_model: MakeModel, tmp_path: Path, layers: int) -> None:
    model = make_model(num_nextn_predict_layers=layers, mtp_hidden="post_norm", mtp_mask_first=True)
    save_model(model, tmp_path / "model", torch.float32)
    loaded = load_model(tmp_path / "model")
    assert equal(loaded, model)
    assert loaded.config == model.config
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert (tmp_path / "model" / "mtp_extra.safetensors").exists() == (layers > 1)


def test_dtypes(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    save_model(model, tmp_path / "model")
    assert model.lm_head.weight.dtype == torch.float32
    loaded = load_model(tmp_path / "model")
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert equal(loaded, model.bfloat16())
    widened = load_model(tmp_path / "model", dtype=torch.float32)
    assert {p.dtype for p in widened.parameters()} == {torch.float32}


def test_a_trained_rope_base_is_kept(make_model: MakeModel, tmp_path: Path, ids: Tensor) -> None:
    model = make_model()
    model.rope_base = 640_000.0
    save_model(model, tmp_path / "model", torch.float32)
    loaded = load_model(tmp_path / "model")
    assert loaded.config.rope_theta == 640_000
    assert torch.equal(loaded(ids), model(ids))


def test_shards(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    write_model(model, tmp_path, torch.float32, max_shard_bytes=20_000)
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    found = {name: file.name for file in files for name in load_file(file)}
    assert index["weight_map"] == found
    assert index["metadata"]["total_size"] == sum(
        tensor.nbytes for file in files for tensor in load_file(file).values()
    )
    largest = max(tensor.nbytes for tensor in model.state_dict().values())
    for file in files:
        size = sum(tensor.nbytes for tensor in load_file(file).values())
        assert size <= max(20_000, largest)
    assert equal(load_model(tmp_path), model)


def test_the_index_leaves_the_extra_layers_out(folder: Path) -> None:
    # vLLM reads every file of a folder without an index, and only those of the index with one.
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {"model.safetensors"}
    assert set(index["weight_map"]) == set(load_file(folder / "model.safetensors"))
    extra = load_file(folder / "mtp_extra.safetensors")
    assert {name.split(".")[2] for name in extra} == {"1", "2"}


def test_config_is_in_the_published_form(make_model: MakeModel) -> None:
    config = make_model().config.model_copy(
        update={
            "vocab_size": 151_680,
            "hidden_size": 4096,
            "intermediate_size": 11_008,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "rope_theta": 640_000.0,
            "max_position_embeddings": 32_768,
        }
    )
    assert to_published(config, "bfloat16", 151_643, 151_645) == {
        "architectures": ["MiMoForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_mimo.MiMoConfig",
            "AutoModel": "modeling_mimo.MiMoModel",
            "AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM",
        },
        "attention_bias": True,
        "attention_dropout": 0.0,
        "bos_token_id": 151_643,
        "eos_token_id": 151_645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 11_008,
        "max_position_embeddings": 32_768,
        "max_window_layers": 36,
        "model_type": "mimo",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1,
        "rms_norm_eps": 1e-5,
        "rope_theta": 640_000,
        "sliding_window": 32_768,
        "tie_word_embeddings": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.40.1",
        "use_cache": True,
        "use_mrope": False,
        "use_sliding_window": False,
        "vocab_size": 151_680,
    }


def test_a_public_folder_has_only_public_files(make_model: MakeModel, folder: Path) -> None:
    for name in ("openmimo.json", "mtp_extra.safetensors", "model.safetensors.index.json"):
        (folder / name).unlink()
    loaded = load_model(folder)
    assert len(loaded.mtp_layers) == 1
    expected = make_model().state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())


def test_a_loaded_model_does_not_depend_on_its_files(
    make_model: MakeModel, folder: Path, ids: Tensor
) -> None:
    loaded = load_model(folder)
    for path in folder.glob("*.safetensors"):
        path.write_bytes(b"")
    assert torch.equal(loaded(ids), make_model()(ids))


def test_others_may_read_the_weights_as_they_may_the_config(folder: Path) -> None:
    mode = (folder / "config.json").stat().st_mode
    weights = [*folder.glob("*.safetensors")]
    assert len(weights) == 2
    assert [path.stat().st_mode for path in weights] == [mode, mode]


def test_saving_replaces_the_old_folder_whole(make_model: MakeModel, folder: Path) -> None:
    (folder / "stale").touch()
    save_model(make_model(seed=1, num_nextn_predict_layers=1), folder, torch.float32)
    assert not (folder / "stale").exists()
    assert not (folder / "mtp_extra.safetensors").exists()
    assert equal(load_model(folder), make_model(seed=1, num_nextn_predict_layers=1))


def test_a_failed_save_leaves_the_old_folder(
    make_model: MakeModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("openmimo.model.folder.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_model(make_model(seed=1), folder, torch.float32)
    monkeypatch.undo()
    assert equal(load_model(folder), make_model())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def change_tensors(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


HEAD = "lm_head.weight"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "folder missing": (shutil.rmtree, "no model folder"),
    "config missing": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "config empty": (lambda f: (f / "config.json").write_text(""), "cannot read"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "one JSON object"),
    "config binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "cannot read"),
    "another model": (lambda f: edit(f / "config.json", model_type="llama"), "model_type"),
    "output bias": (lambda f: edit(f / "config.json", attention_bias=False), "attention_bias"),
    "tied": (lambda f: edit(f / "config.json", tie_word_embeddings=True), "tie_word_embeddings"),
    "scaled rope": (lambda f: edit(f / "config.json", rope_scaling={"type": "yarn"}), "rope_sc"),
    "no rope_theta": (lambda f: edit(f / "config.json", rope_theta=...), "lacks rope_theta"),
    "a size as text": (lambda f: edit(f / "config.json", hidden_size="32"), "hidden_size"),
    "a size of zero": (lambda f: edit(f / "config.json", head_dim=0), "head_dim"),
    "odd heads": (lambda f: edit(f / "config.json", num_key_value_heads=4), "multiple of"),
    "unknown own key": (lambda f: edit(f / "openmimo.json", mtp_hiden="x"), "mtp_hiden"),
    "wrong own value": (lambda f: edit(f / "openmimo.json", mtp_hidden="no_norm"), "mtp_hidden"),
    "weights missing": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is mis"),
    "extra missing": (lambda f: (f / "mtp_extra.safetensors").unlink(), "mtp_extra.safetensors is"),
    "weights cut off": (lambda f: truncate(f / "model.safetensors"), "damaged or cut off"),
    "extra cut off": (lambda f: truncate(f / "mtp_extra.safetensors"), "damaged or cut off"),
    "weights are text": (lambda f: (f / "model.safetensors").write_text("x" * 99), "damaged"),
    "weights empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "damaged"),
    "index without a map": (
        lambda f: edit(f / "model.safetensors.index.json", weight_map=1),
        "map",
    ),
    "tensor missing": (
        lambda f: change_tensors(f / "model.safetensors", lambda t: t.pop(HEAD)),
        f"lists {HEAD}, which none of its files holds",
    ),
    "tensor unexpected": (
        lambda f: change_tensors(f / "model.safetensors", lambda t: t.update(new=torch.ones(1))),
        "leaves out new, which a file holds",
    ),
    "wrong shape": (
        lambda f: change_tensors(
            f / "model.safetensors", lambda t: t.update({HEAD: torch.ones(97, 31)})
        ),
        r"lm_head.weight is \(97, 31\), config.json says \(97, 32\)",
    ),
    "wrong dtype": (
        lambda f: change_tensors(
            f / "model.safetensors", lambda t: t.update({HEAD: t[HEAD].to(torch.int8)})
        ),
        "head.weight is I8; only bfloat16",
    ),
    "more layers than stored": (
        lambda f: edit(f / "config.json", num_hidden_layers=4),
        r"12 tensors are missing, the first is model.layers.3",
    ),
    "fewer layers than stored": (
        lambda f: edit(f / "config.json", num_hidden_layers=2),
        r"12 tensors are unexpected, the first is model.layers.2",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_clear_line(folder: Path, name: str) -> None:
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(UserError, match=message) as raised:
        load_model(folder)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_release_is_a_model_and_its_tokenizer(
    make_model: MakeModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = make_model(vocab_size=304)
    write_model(model, tmp_path, torch.float32, tokenizer)
    loaded, its_tokenizer = load_release(tmp_path)
    assert equal(loaded, model)
    assert its_tokenizer.chat_prompt("1 + 1?") == tokenizer.chat_prompt("1 + 1?")
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (
        tokenizer.doc_end_id,
        tokenizer.eos_id,
    )


def test_a_tokenizer_too_large_for_the_model_is_refused(
    make_model: MakeModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    size = tokenizer.vocab_size
    model = make_model(vocab_size=size - 1)
    with pytest.raises(UserError, match=f"{size} tokens and the model only {size - 1}"):
        write_model(model, tmp_path, torch.float32, tokenizer)
    write_model(model, tmp_path, torch.float32)
    with pytest.raises(UserError, match=r"tokenizer.json is missing"):
        load_release(tmp_path)
    tokenizer.save(tmp_path)
    with pytest.raises(UserError, match="do not belong together"):
        load_release(tmp_path)


def test_load_config_needs_no_weights(make_model: MakeModel, folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        path.unlink()
    assert load_config(folder) == make_model().config
