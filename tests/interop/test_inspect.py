"""`mimo inspect` says what is there, and says something about whatever is there."""

import json
import math
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from openmimo.cli import main
from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError
from openmimo.interop.inspect import Inspection, inspect_model
from openmimo.interop.inspect_text import render
from openmimo.interop.memory import parameter_count
from openmimo.interop.weight_scan import oddities, scan
from openmimo.model.checkpoint import load_release, write_model
from openmimo.model.layout import EMBEDDING, HEAD, tensor_shapes
from openmimo.model.mimo import MiMo
from openmimo.model.published import to_published
from openmimo.tokenizer import Tokenizer

from ..model.damage import (
    CONTROL,
    DEEP,
    HARMLESS,
    INSTEAD,
    LIES,
    READ,
    WEIGHTS,
    Pristine,
    edit,
    replace,
)
from .conftest import FAMILIES, edit_config, make_foreign

pytestmark = pytest.mark.timeout(60)

SEVEN_B = ModelConfig(
    vocab_size=151_680, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=36,
    num_attention_heads=32, num_key_value_heads=8, head_dim=128, rope_theta=640_000.0,
    max_position_embeddings=32_768,
)  # fmt: skip


def write_sparse(folder: Path, config: ModelConfig, shards: int) -> None:
    """A folder of bfloat16 zeros, as published: headers are real, the data take no space."""
    folder.mkdir()
    shapes = list(tensor_shapes(config))
    weight_map, total = {}, 0
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        header: dict[str, Any] = {}
        end = 0
        for name, shape in shapes[shard::shards]:
            size = 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
            weight_map[name] = file
            end += size
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + end)
        total += end
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    published = to_published(config, "bfloat16", 151_643, 151_645)
    (folder / "config.json").write_text(json.dumps(published))


@pytest.fixture
def release(pristine: Pristine, tmp_path: Path) -> Path:
    return pristine.copy(tmp_path, "bfloat16")


def test_the_numbers_of_mimo_7b_without_reading_them(tmp_path: Path) -> None:
    write_sparse(tmp_path / "7b", SEVEN_B, 4)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = inspect_model(tmp_path / "7b")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB
    assert found.faults == []
    assert found.parameters == {
        "embedding": 621_281_280,
        "trunk_layers": 6_380_052_480,
        "final_norm": 4096,
        "head": 621_281_280,
        "mtp": [210_790_400],
        "other": 0,
        "total": 7_833_409_536,
        "trunk_without_embeddings": 6_380_056_576,
        "without_embeddings": 6_590_846_976,
    }
    assert found.storage["bytes"] == 15_666_819_072
    assert found.storage["dtypes"] == {"bfloat16": {"tensors": 451, "bytes": 15_666_819_072}}
    assert found.storage["total_size"] == "right"
    assert found.storage["sharded"]
    assert found.storage["indexed"]
    run = found.memory[0]
    assert run["parts"]["weights"] == 15_666_819_072
    # Keys and values: 37 layers of 8 heads of 128 numbers of 2 bytes.
    assert run["parts"]["keys and values"] == 2 * 37 * 8 * 128 * 2 * 32_768
    train = found.memory[2]["parts"]
    assert (
        train["weights"] + train["gradients"] + train["AdamW's two moments"] == 16 * 7_833_409_536
    )
    text = render(found)
    for part in ("7,833,409,536", "210,790,400", "6,380,056,576", "36 layers", "32/8 heads of 128"):
        assert part in text


def test_a_release_of_ours(release: Path, pristine: Pristine) -> None:
    found = inspect_model(release)
    assert found.faults == []
    assert found.family == "mimo"
    assert found.mtp == {
        "layers": 3, "published": 1, "in_extra_file": True, "hidden": "pre_norm",
        "mask_first": False,
    }  # fmt: skip
    model = pristine.models["bfloat16"]
    assert found.parameters["total"] == sum(p.numel() for p in model.parameters())
    assert found.parameters["mtp"] == [
        sum(p.numel() for p in layer.parameters()) for layer in model.mtp_layers
    ]
    tokenizer = load_release(release)[1]
    assert found.tokenizer == {
        "kind": "byte-level BPE", "ids": tokenizer.vocab_size,
        "dead_rows": 304 - tokenizer.vocab_size, "chatml": True, "eos_id": tokenizer.eos_id,
        "chat_template": True,
    }  # fmt: skip
    assert found.deviations == ["3 MTP layers; the published folders have one"]


def test_one_mtp_layer_in_bfloat16_is_the_published_layout(
    make_model: Callable[..., MiMo], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = make_model(vocab_size=304, num_nextn_predict_layers=1)
    write_model(model, tmp_path, torch.bfloat16, tokenizer)
    assert inspect_model(tmp_path).deviations == []


def drop(*names: str) -> Callable[[Path], Any]:
    return lambda folder: [(folder / name).unlink() for name in names]


INDEX = "model.safetensors.index.json"
DEVIATIONS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "rope_parameters": (
        edit("config.json", rope_theta=..., rope_parameters={"rope_theta": 1e4}),
        "rope_parameters, as transformers 5 writes them",
    ),
    "rope_scaling": (
        edit("config.json", rope_scaling={"type": "linear", "factor": 2.0}),
        "rope_scaling is",
    ),
    "unknown keys": (edit("config.json", more=1, x="\x1b[2J"), "MiMo's has not: more, x"),
    "no auto_map": (edit("config.json", auto_map=...), "no auto_map"),
    "a key is missing": (edit("config.json", use_cache=...), "lacks use_cache"),
    "another dtype": (edit("config.json", torch_dtype="float16"), "the weights are bfloat16"),
    "dtype": (edit("config.json", torch_dtype=..., dtype="bfloat16"), "dtype, as transformers 5"),
    "architectures": (edit("config.json", architectures=["X"]), "not MiMoForCausalLM"),
    "a list": (edit("config.json", tokenizer_class=["Qwen2Tokenizer"]), "tokenizer_class is a lis"),
    "eos": (edit("config.json", eos_token_id=3), "eos_token_id is 3, but the tokenizer"),
    "total_size": (edit(INDEX, metadata={"total_size": 5}), "total_size of .* is wrong: 5, not"),
    "no total_size": (edit(INDEX, metadata=...), "total_size of .* is missing"),
    "no tokenizer": (drop("tokenizer.json"), "no tokenizer that can be read"),
    "no generation_config": (drop("generation_config.json"), "no generation_config.json"),
    "no code": (drop("modeling_mimo.py"), "no modeling_mimo.py"),
    "their code": (
        lambda f: (f / "modeling_mimo.py").write_text("raise SystemExit"),
        "never run: modeling_mimo.py",
    ),
    "pickles": (lambda f: (f / "pytorch_model.bin").touch(), "never opened: pytorch_model.bin"),
    "another file": (lambda f: (f / "x\x1b[2J").touch(), r"does not read: x\\x1b\[2J"),
    "post_norm": (edit("openmimo.json", mtp_hidden="post_norm"), "after the final norm"),
}


@pytest.mark.parametrize("case", DEVIATIONS)
def test_a_deviation_is_named(release: Path, case: str) -> None:
    damage, expected = DEVIATIONS[case]
    before = set(inspect_model(release).deviations)
    damage(release)
    found = inspect_model(release)
    assert found.faults == []
    (new,) = set(found.deviations) - before
    assert re.search(expected, new)
    assert new.isprintable()


def test_a_folder_without_an_index(
    make_model: Callable[..., MiMo], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = make_model(vocab_size=304, num_nextn_predict_layers=0)
    write_model(model, tmp_path, torch.float32, tokenizer)
    (tmp_path / INDEX).unlink()
    found = inspect_model(tmp_path)
    assert found.faults == []
    assert found.storage["total_size"] is None
    said = " | ".join(found.deviations)
    for part in (f"no {INDEX}", "no MTP layer", "weights are float32; MiMo's are bfloat16"):
        assert part in said


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(family: str, tmp_path: Path) -> None:
    theirs = make_foreign(tmp_path / "theirs", **FAMILIES[family])
    found = inspect_model(tmp_path / "theirs")
    assert found.faults == []
    assert found.family == FAMILIES[family]["model_type"]
    assert found.parameters["total"] == sum(p.numel() for p in theirs.parameters())
    said = " | ".join(found.deviations)
    assert "no MTP layer" in said
    assert ("embedding and head are tied" in said) == ("tied" in family)
    assert ("q, k and v have no bias" in said) == family.startswith("llama")
    edit_config(tmp_path / "theirs", hidden_act="gelu")
    assert "hidden_act" in inspect_model(tmp_path / "theirs").faults[0]


def test_every_wrong_tensor_is_listed(release: Path) -> None:
    edit("config.json", head_dim=4)(release)
    faults = inspect_model(release).faults
    assert any("model.layers.0.self_attn.q_proj.weight is (48, 32)" in line for line in faults)
    assert any("more of this kind" in line for line in faults)
    assert len(faults) < 20


def test_weights_are_read_only_on_request(release: Path) -> None:
    path = release / "mtp_extra.safetensors"
    tensors = load_file(path)
    tensors["model.mtp_layers.1.input_proj.weight"][3, 4] = math.nan
    tensors["model.mtp_layers.2.token_layernorm.weight"].zero_()
    tensors["model.mtp_layers.2.input_proj.weight"][:5] = 0
    tensors["model.mtp_layers.2.input_proj.weight"][7] = 0.5
    save_file(tensors, path, {"format": "pt"})
    assert inspect_model(release).faults == []
    assert inspect_model(release).weights is None
    found = inspect_model(release, weights=True)
    assert found.weights is not None
    assert set(found.weights) == {
        "model.mtp_layers.1.input_proj.weight: 1 values are NaN or infinite",
        "model.mtp_layers.2.token_layernorm.weight: all zero",
        "model.mtp_layers.2.input_proj.weight: 5 rows are all zero",
        "model.mtp_layers.2.input_proj.weight: 1 rows hold one value",
    }
    assert found.faults == ["model.mtp_layers.1.input_proj.weight: 1 values are NaN or infinite"]


def test_a_tensor_called_nan_is_no_fault() -> None:
    zeros = {"NaN.weight": torch.zeros(3), "b": torch.tensor([math.inf])}
    sentences, faults = scan(dict.fromkeys(zeros, (3,)), zeros.__getitem__)
    assert sentences == ["NaN.weight: all zero", "b: 1 values are NaN or infinite"]
    assert faults == ["b: 1 values are NaN or infinite"]


def test_an_embedding_that_cannot_be_read_does_not_end_the_scan() -> None:
    def read(name: str) -> torch.Tensor:
        if name == EMBEDDING:
            raise UserError("it holds NaN")
        return torch.ones(2, 2)

    sentences, faults = scan({EMBEDDING: (2, 2), HEAD: (2, 2)}, read)
    assert sentences == [f"{HEAD}: 2 rows hold one value", f"{EMBEDDING}: it holds NaN"]
    assert faults == [f"{EMBEDDING}: it holds NaN"]


def test_memory_counts_the_head_and_biases_that_openmimo_adds(tmp_path: Path) -> None:
    make_foreign(tmp_path, **FAMILIES["llama tied"])
    found = inspect_model(tmp_path)
    held = sum(p.numel() for p in MiMo(ModelConfig(**found.architecture)).parameters())
    assert held > found.parameters["total"]
    weights = [need["parts"]["weights"] for need in found.memory]
    assert weights == [4 * held, 2 * held, 4 * held]
    assert "MTP layers in use" not in render(found)


def test_parameters_are_counted_as_the_model_has_them(pristine: Pristine) -> None:
    model = pristine.models["float32"]
    assert parameter_count(model.config) == sum(p.numel() for p in model.parameters())


def test_more_ids_than_rows(release: Path) -> None:
    edit("config.json", vocab_size=200)(release)
    found = inspect_model(release)
    assert found.tokenizer is not None
    assert found.tokenizer["dead_rows"] == 0
    assert f"{found.tokenizer['ids'] - 200} more ids than rows" in render(found)


def test_a_recipe_is_read(release: Path) -> None:
    before = inspect_model(release).deviations
    (release / "recipe.toml").touch()
    assert inspect_model(release).deviations == before


def test_what_does_not_exist_is_said_to(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nope does not exist"):
        inspect_model(tmp_path / "nope")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="neither a model folder nor"):
        inspect_model(tmp_path / "file")


def test_equal_embedding_and_head(release: Path) -> None:
    for path in sorted(release.glob("model-*.safetensors")):
        tensors = load_file(path)
        if "model.embed_tokens.weight" in tensors:
            embedding = tensors["model.embed_tokens.weight"].clone()
        if "lm_head.weight" in tensors:
            tensors["lm_head.weight"] = embedding
        save_file(tensors, path, {"format": "pt"})
    assert inspect_model(release, weights=True).weights == [
        "embedding and head are equal: the model was tied"
    ]


def test_oddities_of_large_and_small_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openmimo.interop.weight_scan._PART", 7)  # more parts than rows
    tensor = torch.arange(1.0, 31).reshape(6, 5)
    assert oddities(tensor) == []
    tensor[2] = 0
    tensor[4, 1] = -math.inf
    assert oddities(tensor) == ["1 values are NaN or infinite", "1 rows are all zero"]
    tensor[0] = tensor[5] = 7
    assert oddities(tensor)[2:] == ["2 rows hold one value"]
    assert oddities(torch.zeros(3)) == ["all zero"]
    assert oddities(torch.ones(3)) == []
    assert oddities(torch.empty(0, 3)) == ["empty"]
    assert oddities(torch.tensor(0.0)) == ["all zero"]


DAMAGED = {
    **LIES,
    **{f"{name}: {what}": replace(name, how) for name in READ for what, how in INSTEAD.items()},
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_the_loader_refuses_is_described(
    pristine: Pristine, tmp_path: Path, case: str
) -> None:
    folder = pristine.copy(tmp_path)
    DAMAGED[case](folder)
    try:
        load_release(folder)
        usable = True
    except UserError:
        usable = case == "tokenizer.json: nothing"  # a model without one can be trained
    found = inspect_model(folder)
    assert bool(found.faults) != usable
    assert all(line.isprintable() for line in render(found).splitlines())
    json.dumps(found.faults, allow_nan=False)


@pytest.mark.parametrize("case", HARMLESS)
def test_what_does_not_matter_is_no_fault(pristine: Pristine, tmp_path: Path, case: str) -> None:
    folder = pristine.copy(tmp_path)
    HARMLESS[case](folder)
    assert inspect_model(folder).faults == []


def test_the_command(release: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["inspect", str(release)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out == render(inspect_model(release))
    assert main(["inspect", str(release), "--json", "-"]) == 0
    assert Inspection(**json.loads(capsys.readouterr().out)).family == "mimo"
    assert main(["inspect", str(release), "--json", str(tmp_path / "x.json")]) == 0
    assert json.loads((tmp_path / "x.json").read_text())["faults"] == []
    capsys.readouterr()
    edit("config.json", hidden_size=2**20)(release)
    assert main(["inspect", str(release)]) == 2
    out, err = capsys.readouterr()
    assert "304, 32), config.json says (304, 1048576)" in out
    assert err.startswith("mimo: error: openmimo cannot use")
    assert err.count("\n") == 1


@pytest.mark.parametrize("what", ["nowhere", "a file", "a pipe", "x" * 5000, CONTROL[:-1]])
def test_nothing_to_inspect(tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str) -> None:
    (tmp_path / "a file").touch()
    os.mkfifo(tmp_path / "a pipe")
    assert main(["inspect", str(tmp_path / what)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.strip().isprintable()


def test_an_empty_folder_and_one_full_of_links(tmp_path: Path) -> None:
    assert "config.json is missing" in inspect_model(tmp_path).faults[0]
    for name in ("config.json", "tokenizer.json", *WEIGHTS):
        (tmp_path / name).symlink_to(".")
    (tmp_path / "model.safetensors").symlink_to("model.safetensors")
    (tmp_path / "openmimo.json").write_text(DEEP)
    assert inspect_model(tmp_path).faults


def test_an_absurd_model_costs_nothing(release: Path) -> None:
    edit("config.json", num_hidden_layers=2**31 - 1, vocab_size=2**31 - 1)(release)
    found = inspect_model(release)
    assert "asks for 25,769,803,815 tensors" in " ".join(found.faults)
    assert "2147483647 layers" in render(found)


def test_a_gguf_file(make_model: Callable[..., MiMo], tokenizer: Tokenizer, tmp_path: Path) -> None:
    release = tmp_path / "model"
    release.mkdir()
    # llama.cpp has no Qwen2 whose heads together are wider than the residual stream.
    model = make_model(vocab_size=304, num_attention_heads=4)
    write_model(model, release, torch.bfloat16, tokenizer)
    assert main(["export", str(release), str(tmp_path / "m.gguf"), "--to", "gguf"]) == 0
    found = inspect_model(tmp_path / "m.gguf", weights=True)
    assert found.faults == []
    assert found.family == "qwen2"
    trunk = inspect_model(release).parameters
    assert found.parameters["total"] == trunk["total"] - sum(trunk["mtp"])
    assert found.storage["bytes"] == (tmp_path / "m.gguf").stat().st_size
    assert found.tokenizer is not None
    assert found.tokenizer["chatml"]
    assert "GGUF" in found.deviations[0]
    os.truncate(tmp_path / "m.gguf", 20_000)
    assert "cut off" in inspect_model(tmp_path / "m.gguf").faults[0]
