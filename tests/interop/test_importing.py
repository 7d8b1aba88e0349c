"""What is imported computes what it computed before, or is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openmimo.config.load import load_config
from openmimo.config.schema import Recipe
from openmimo.errors import UserError
from openmimo.interop.exporting import Model, export_model
from openmimo.interop.importing import Options, import_model, swap_halves
from openmimo.model.checkpoint import load_model, load_release, save_model, write_model
from openmimo.model.mimo import MiMo
from openmimo.runs import new_dir
from openmimo.tokenizer import Tokenizer

from .conftest import FAMILIES, edit_config, make_foreign

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def bring_in(source: Path, target: Path, **options: Any) -> MiMo:
    import_model(str(source), target, Options(**options))
    return load_model(target)


def same(a: MiMo, b: MiMo) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("family", FAMILIES)
def test_same_logits_as_transformers(family: str, tmp_path: Path, long_ids: Tensor) -> None:
    theirs = make_foreign(tmp_path / "theirs", **FAMILIES[family])
    ours = bring_in(tmp_path / "theirs", tmp_path / "ours")
    with torch.no_grad():
        torch.testing.assert_close(ours(long_ids), theirs(long_ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["qwen2 linear", "llama 3"])
def test_the_rope_scaling_matters_here(family: str, tmp_path: Path, long_ids: Tensor) -> None:
    # Else the test above would show nothing.
    theirs = make_foreign(tmp_path / "theirs", **FAMILIES[family])
    theta = FAMILIES[family]["rope_parameters"]["rope_theta"]
    plain = {"rope_type": "default", "rope_theta": theta}
    edit_config(tmp_path / "theirs", rope_parameters=plain)
    ours = bring_in(tmp_path / "theirs", tmp_path / "ours")
    with torch.no_grad():
        assert (ours(long_ids) - theirs(long_ids).logits).abs().max() > 0.1


def test_the_config_forms_of_old_and_new_transformers_mean_the_same(tmp_path: Path) -> None:
    make_foreign(tmp_path / "new", **FAMILIES["llama 3"])
    shutil.copytree(tmp_path / "new", tmp_path / "old")
    scaling = json.loads((tmp_path / "new" / "config.json").read_text())["rope_parameters"]
    theta = scaling.pop("rope_theta")
    changes = {"rope_theta": theta, "rope_scaling": scaling, "rope_parameters": ...}
    edit_config(tmp_path / "old", **changes, dtype=..., torch_dtype="float32")
    new = bring_in(tmp_path / "new", tmp_path / "a")
    assert bring_in(tmp_path / "old", tmp_path / "b").config == new.config
    assert new.config.rope_scaling is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_weights_keep_their_type_and_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = make_foreign(tmp_path / "theirs", dtype, **FAMILIES["qwen2"])
    ours = bring_in(tmp_path / "theirs", tmp_path / "ours").state_dict()
    expected = theirs.state_dict()
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert {tensor.dtype for tensor in ours.values()} == {dtype}


def test_mixed_types_become_the_one_that_holds_all(tmp_path: Path) -> None:
    theirs = make_foreign(tmp_path / "theirs", torch.bfloat16, **FAMILIES["qwen2"]).state_dict()
    theirs["model.norm.weight"] = torch.linspace(0, 1, 32)
    save_file(theirs, tmp_path / "theirs" / WEIGHTS, metadata={"format": "pt"})
    report = import_model(str(tmp_path / "theirs"), tmp_path / "ours", Options())
    ours = load_model(tmp_path / "ours").state_dict()
    assert all(torch.equal(ours[name], theirs[name].float()) for name in ours)
    assert "BF16, F32; float32 holds their values exactly" in " ".join(report.changes)


def test_rounding_is_asked_for_and_said(tmp_path: Path) -> None:
    make_foreign(tmp_path / "theirs", **FAMILIES["qwen2"])
    options = Options(dtype=torch.bfloat16)
    report = import_model(str(tmp_path / "theirs"), tmp_path / "ours", options)
    assert "rounded to bfloat16" in " ".join(report.changes)
    assert load_model(tmp_path / "ours").lm_head.weight.dtype == torch.bfloat16


def test_shards_in_and_out(tmp_path: Path) -> None:
    theirs = make_foreign(tmp_path / "theirs", **FAMILIES["qwen2"])
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    one = bring_in(tmp_path / "theirs", tmp_path / "a")
    many = bring_in(tmp_path / "sharded", tmp_path / "b", max_shard_bytes=30_000)
    assert same(one, many)
    assert len(list((tmp_path / "b").glob("model-*.safetensors"))) > 2


def test_a_mimo_folder_comes_back_bit_equal_with_all_mtp_layers(
    make_model: Callable[..., MiMo], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = make_model(vocab_size=304, mtp_hidden="post_norm", mtp_mask_first=True)
    model.rope_base = 640_000.0
    (tmp_path / "a").mkdir()
    write_model(model, tmp_path / "a", torch.bfloat16, tokenizer)
    loaded = bring_in(tmp_path / "a", tmp_path / "b")
    assert same(loaded, load_model(tmp_path / "a"))
    assert loaded.config == load_model(tmp_path / "a").config
    for name in ("config.json", "openmimo.json", "tokenizer.json", WEIGHTS, INDEX):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert load_release(tmp_path / "b")[1].encode("1 + 1") == tokenizer.encode("1 + 1")


def public_folder(model: MiMo, folder: Path) -> Path:
    """A folder with what Xiaomi's have: no openmimo.json, no extra layers."""
    save_model(model, folder, torch.float32)
    for name in ("openmimo.json", "mtp_extra.safetensors"):
        (folder / name).unlink(missing_ok=True)
    edit_config(folder, tokenizer_class=["Qwen2Tokenizer"])
    return folder


def test_a_public_mimo_folder(make_model: Callable[..., MiMo], tmp_path: Path) -> None:
    model = make_model(num_nextn_predict_layers=1)
    assert same(bring_in(public_folder(model, tmp_path / "a"), tmp_path / "b"), model)


def test_megatron_order(make_model: Callable[..., MiMo], tmp_path: Path) -> None:
    model = make_model(num_nextn_predict_layers=1)
    folder = public_folder(model, tmp_path / "a")
    tensors = load_file(folder / WEIGHTS)
    name = "model.mtp_layers.0.input_proj.weight"
    straight = tensors[name].clone()
    tensors[name] = swap_halves(straight).contiguous()
    assert not torch.equal(tensors[name], straight)
    assert torch.equal(swap_halves(swap_halves(straight)), straight)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    swapped = bring_in(folder, tmp_path / "b", mtp_order="embedding_first")
    assert same(swapped, model)
    assert not same(bring_in(folder, tmp_path / "c"), model)


def test_what_the_mtp_layer_reads_can_be_said(
    make_model: Callable[..., MiMo], tmp_path: Path
) -> None:
    folder = public_folder(make_model(num_nextn_predict_layers=1), tmp_path / "a")
    assert bring_in(folder, tmp_path / "b").config.mtp_hidden == "pre_norm"
    other = bring_in(folder, tmp_path / "c", mtp_hidden="post_norm")
    assert other.config.mtp_hidden == "post_norm"
    # It is remembered.
    assert bring_in(tmp_path / "c", tmp_path / "d").config.mtp_hidden == "post_norm"


def test_a_fresh_mtp_layer_leaves_the_trunk_alone(tmp_path: Path, long_ids: Tensor) -> None:
    make_foreign(tmp_path / "theirs", **FAMILIES["llama tied"])
    trunk = bring_in(tmp_path / "theirs", tmp_path / "a")
    grown = bring_in(tmp_path / "theirs", tmp_path / "b", add_mtp=True)
    assert (len(trunk.mtp_layers), len(grown.mtp_layers)) == (0, 1)
    assert torch.equal(trunk(long_ids), grown(long_ids))
    last, fresh = grown.model.layers[-1].state_dict(), grown.mtp_layers[0].state_dict()
    assert all(torch.equal(fresh[name], tensor) for name, tensor in last.items())
    with pytest.raises(UserError, match="has an MTP layer already"):
        import_model(str(tmp_path / "b"), tmp_path / "c", Options(add_mtp=True))


def test_a_head_stored_beside_tied_embeddings_must_be_equal(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    make_foreign(folder, **FAMILIES["qwen2 tied"])
    tensors = load_file(folder / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    bring_in(folder, tmp_path / "a")
    tensors["lm_head.weight"][3, 5] += 1
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(UserError, match="differs from the embedding"):
        import_model(str(folder), tmp_path / "b", Options())
    assert not (tmp_path / "b").exists()


def test_old_rotary_buffers_are_no_weights(tmp_path: Path) -> None:
    make_foreign(tmp_path / "theirs", **FAMILIES["llama"])
    path = tmp_path / "theirs" / WEIGHTS
    tensors = load_file(path) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(5)}
    save_file(tensors, path, metadata={"format": "pt"})
    assert len(bring_in(tmp_path / "theirs", tmp_path / "ours").state_dict()) == 39


def test_papers_go_with_the_weights(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    make_foreign(folder, **FAMILIES["llama"])
    (folder / "LICENSE").write_text("theirs")
    (folder / "README.md").write_text("their card")
    bring_in(folder, tmp_path / "ours")
    assert (tmp_path / "ours" / "LICENSE").read_text() == "theirs"
    assert (tmp_path / "ours" / "ORIGINAL_README.md").read_text() == "their card"
    assert "all zero" in (tmp_path / "ours" / "README.md").read_text()


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "another family": ("llama", {"model_type": "gemma"}, "model_type is 'gemma'"),
    "no family": ("llama", {"model_type": ...}, "model_type is None"),
    "yarn": (
        "qwen2",
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}},
        "'yarn'; only linear and llama3",
    ),
    "old yarn": ("qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
    "llama3 incomplete": (
        "llama",
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
        "lacks low_freq_factor, high_freq_factor, original_max",
    ),
    "senseless factor": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 0}},
        "rope_scaling: factor",
    ),
    "output bias": ("llama", {"attention_bias": True}, "o_proj.bias"),
    "mlp bias": ("llama", {"mlp_bias": True}, "mlp_bias is True"),
    "gelu": ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "sliding window": ("qwen2", {"use_sliding_window": True}, "use_sliding_window is True"),
    "sliding layers": (
        "qwen2",
        {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "layer_types is",
    ),
    "quantised": ("qwen2", {"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    "partial rope": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "sizes missing": ("llama", {"hidden_size": ..., "vocab_size": ...}, "vocab_size, hidden_size"),
    "a size as text": ("llama", {"hidden_size": "32"}, "hidden_size"),
    "heads do not divide": ("qwen2", {"num_attention_heads": 5}, "multiple of num_attention_heads"),
    "absurd layers": ("qwen2", {"num_hidden_layers": 10**9}, "1,000,000,000 layers"),
    "one layer more": ("qwen2", {"num_hidden_layers": 4}, "lacks 12 tensors"),
    "one layer less": ("qwen2", {"num_hidden_layers": 2}, "12 tensors that a qwen2 model"),
    "another width": ("qwen2", {"intermediate_size": 49}, "the config says"),
    "said to be tied": ("qwen2 tied", {"tie_word_embeddings": False}, "must say tie_word_emb"),
    "tied to what": ("qwen2", {"tie_word_embeddings": "yes"}, "must be true or false"),
    "qwen2 called llama": ("qwen2", {"model_type": "llama"}, "9 tensors that a llama model"),
    "llama called qwen2": ("llama", {"model_type": "qwen2"}, "lacks 9 tensors"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_mimo_cannot_hold_is_refused_by_name(case: str, tmp_path: Path) -> None:
    family, changes, message = REFUSED[case]
    make_foreign(tmp_path / "theirs", **FAMILIES[family])
    edit_config(tmp_path / "theirs", **changes)
    with pytest.raises(UserError, match=message) as raised:
        import_model(str(tmp_path / "theirs"), tmp_path / "ours", Options())
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ours").exists()


def test_pickles_are_refused_without_being_opened(tmp_path: Path) -> None:
    make_foreign(tmp_path, **FAMILIES["llama"])
    (tmp_path / WEIGHTS).rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickle"):
        import_model(str(tmp_path), tmp_path / "ours", Options())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    make_foreign(tmp_path / "theirs", **FAMILIES["llama"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists already"):
        import_model(str(tmp_path / "theirs"), tmp_path / "mine", Options())
    with pytest.raises(UserError, match="exists already"):
        import_model(str(tmp_path / "theirs"), tmp_path / "theirs", Options())
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("source", ["no/such/folder", "nothing", "/etc/hostname", ""])
def test_no_such_source(source: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        import_model(source, tmp_path / "ours", Options())


def test_a_tokenizer_that_begins_every_text_with_a_token_is_named(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "theirs"
    make_foreign(folder, **FAMILIES["llama 3"] | {"vocab_size": 304})
    tokenizer.save(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    single = [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}},
              {"Sequence": {"id": "A", "type_id": 0}}]  # fmt: skip
    template = {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}
    content["padding"] = "x" * 2**21  # real ones are larger than any config.json
    (folder / "tokenizer.json").write_text(json.dumps(content))
    plain = import_model(str(folder), tmp_path / "a", Options())
    assert not any("begins every text" in warning for warning in plain.warnings)
    for processor in (template, {"type": "Sequence", "processors": [{"type": "x"}, template]}):
        content["post_processor"] = processor
        (folder / "tokenizer.json").write_text(json.dumps(content))
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        report = import_model(str(folder), tmp_path / "b", Options())
        assert any("every text with <|im_start|>" in warning for warning in report.warnings)


@pytest.mark.parametrize("context", [2048, 256])
def test_a_recipe_that_goes_on_from_the_model_lies_in_the_folder(
    tokenizer: Tokenizer, tmp_path: Path, context: int
) -> None:
    sizes = {"max_position_embeddings": context, "vocab_size": 304}
    make_foreign(tmp_path / "theirs", **FAMILIES["llama 3"] | sizes)
    tokenizer.save(tmp_path / "theirs")
    import_model(str(tmp_path / "theirs"), tmp_path / "ours", Options(add_mtp=True))
    recipe = load_config(Recipe, str(tmp_path / "ours" / "recipe.toml"))
    assert recipe.model == load_model(tmp_path / "ours").config
    assert recipe.init_from == str(tmp_path / "ours")
    assert (recipe.mtp_heads.tune_first, recipe.pretrain.schedule) == (True, ())
    import_model(str(tmp_path / "theirs"), tmp_path / "trunk", Options())
    assert not (tmp_path / "trunk" / "recipe.toml").exists()


def test_what_the_original_says_of_its_ends_is_kept(tokenizer: Tokenizer, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    make_foreign(folder, **FAMILIES["qwen2"] | {"vocab_size": 304})
    tokenizer.save(folder)
    edit_config(folder, bos_token_id=5, eos_token_id=[7, 9])
    generation = {"eos_token_id": [7, 9], "temperature": 1.3, "repetition_penalty": 1.1}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    import_model(str(folder), tmp_path / "ours", Options())
    send = export_model(Model.from_folder(tmp_path / "ours"), tmp_path / "out", "qwen2").path
    for target in (tmp_path / "ours", send):
        config = json.loads((target / "config.json").read_text())
        assert (config["bos_token_id"], config["eos_token_id"]) == (5, [7, 9])
        assert json.loads((target / "generation_config.json").read_text()) == generation
    # Without the file none is invented; ids that are left out follow from the tokenizer.
    (folder / "generation_config.json").unlink()
    edit_config(folder, bos_token_id=..., eos_token_id=...)
    import_model(str(folder), tmp_path / "plain", Options())
    assert not (tmp_path / "plain" / "generation_config.json").exists()
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert config["eos_token_id"] == tokenizer.eos_id


def test_numbers_too_large_for_the_dtype_are_refused(tmp_path: Path) -> None:
    make_foreign(tmp_path / "theirs", **FAMILIES["qwen2"])
    path = tmp_path / "theirs" / WEIGHTS
    tensors = load_file(path)
    tensors["model.norm.weight"][3] = 1e30
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.norm\.weight has numbers .* float16"):
        import_model(str(tmp_path / "theirs"), tmp_path / "a", Options(dtype=torch.float16))
    assert not (tmp_path / "a").exists()
    import_model(str(tmp_path / "theirs"), tmp_path / "a", Options())
    with pytest.raises(UserError, match="float16"):
        export_model(Model.from_folder(tmp_path / "a"), tmp_path / "b", "hf", torch.float16)


@pytest.mark.parametrize(
    ("stored", "asked"), [(torch.bfloat16, torch.float16), (torch.float16, torch.bfloat16)]
)
def test_one_16_bit_type_is_rounded_to_the_other(
    tmp_path: Path, stored: torch.dtype, asked: torch.dtype
) -> None:
    make_foreign(tmp_path / "theirs", stored, **FAMILIES["qwen2"])
    report = import_model(str(tmp_path / "theirs"), tmp_path / "ours", Options(dtype=asked))
    assert any("are rounded to" in change for change in report.changes)


def test_no_folder_but_the_target_is_touched(tmp_path: Path) -> None:
    # Neither one with the name of a temporary folder, nor one that appears meanwhile.
    make_foreign(tmp_path / "x.tmp", **FAMILIES["llama"])
    before = {path.name: path.read_bytes() for path in (tmp_path / "x.tmp").iterdir()}
    bring_in(tmp_path / "x.tmp", tmp_path / "x")
    assert {path.name: path.read_bytes() for path in (tmp_path / "x.tmp").iterdir()} == before
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("link", "x"):
        with pytest.raises(UserError, match="exists already"):
            import_model(str(tmp_path / "x.tmp"), tmp_path / name, Options())
    (tmp_path / "empty").mkdir()
    bring_in(tmp_path / "x.tmp", tmp_path / "empty")
    with pytest.raises(UserError, match="exists already"), new_dir(tmp_path / "late") as partial:  # noqa: PT012
        (partial / "ours").touch()
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "theirs").touch()
    assert [path.name for path in (tmp_path / "late").iterdir()] == ["theirs"]
    assert not list(tmp_path.glob(".*.tmp"))


def test_links_to_other_files_are_not_copied(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    make_foreign(folder, **FAMILIES["llama"])
    (tmp_path / "secret").write_text("secret")
    for name in ("LICENSE", "NOTICE.txt", "README.md"):
        (folder / name).symlink_to(tmp_path / "secret")
    (folder / "LICENSE.bin").write_text("no text")
    (folder / "LICENSE.md").write_text("the licence")
    import_model(str(folder), tmp_path / "ours", Options())
    export_model(Model.from_folder(tmp_path / "ours"), tmp_path / "out", "hf")
    for target in (tmp_path / "ours", tmp_path / "out"):
        names = {path.name for path in target.iterdir()}
        assert "LICENSE.md" in names
        assert not names & {"LICENSE", "NOTICE.txt", "LICENSE.bin", "ORIGINAL_README.md"}


def test_a_sentencepiece_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    make_foreign(tmp_path / "theirs", **FAMILIES["llama"])
    (tmp_path / "theirs" / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(UserError, match="sentencepiece"):
        import_model(str(tmp_path / "theirs"), tmp_path / "ours", Options())


def test_what_is_read_needs_a_layer_that_reads(tmp_path: Path) -> None:
    make_foreign(tmp_path / "theirs", **FAMILIES["llama"])
    for options in (Options(mtp_hidden="post_norm"), Options(mtp_order="embedding_first")):
        with pytest.raises(UserError, match="no MTP layer"):
            import_model(str(tmp_path / "theirs"), tmp_path / "ours", options)
