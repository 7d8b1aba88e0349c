"""Weights for vLLM: the tensors of the exported folder, through shared memory, bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openmimo.errors import UserError
from openmimo.inference import shared_weights
from openmimo.inference.shared_weights import published_weights, read_chunk, write_chunks
from openmimo.interop.exporting import Model, export_model
from openmimo.model.checkpoint import load_config, open_model, write_model
from openmimo.model.mimo import MiMo

from .conftest import make_model

# Heads that are widened, as nano's, and heads that are not.
SHAPES = {
    "widened": {"hidden_size": 80, "num_attention_heads": 4, "head_dim": 20},
    "as they are": {"hidden_size": 64, "num_attention_heads": 2, "head_dim": 32},
}


def export(model: MiMo, folder: Path) -> Path:
    (folder / "own").mkdir()
    write_model(model, folder / "own", torch.float32)
    export_model(Model.from_folder(folder / "own"), folder / "vllm", "vllm")
    return folder / "vllm"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("as_state", [False, True])
def test_the_tensors_are_those_of_the_exported_folder(
    tmp_path: Path, shape: str, as_state: bool
) -> None:
    model = make_model(**SHAPES[shape])
    folder = export(model, tmp_path)
    config, files = open_model(folder)
    weights = model.state_dict() if as_state else model
    received: dict[str, Tensor] = {}
    # Small chunks: several of them, and tensors larger than one.
    for message in write_chunks(published_weights(weights, config), chunk_bytes=5_000):
        received |= dict(read_chunk(message))
    assert received.keys() == files.stored.keys()
    for name, tensor in received.items():
        assert torch.equal(tensor, files.read(name)), name


def test_a_chunk_is_gone_once_the_next_is_asked_for_and_what_was_read_stays() -> None:
    tensors = [(f"t{n}", torch.full((100,), float(n), dtype=torch.bfloat16)) for n in range(6)]
    paths, received, sizes = [], [], []
    for message in write_chunks(iter(tensors), chunk_bytes=600):
        paths.append(Path(json.loads(message)["path"]))
        sizes.append(json.loads(message)["size"])
        assert [path.exists() for path in paths] == [False] * (len(paths) - 1) + [True]
        received += read_chunk(message)
    assert not any(path.exists() for path in paths)
    assert len(paths) == 3
    assert max(sizes) <= 600
    for (name, tensor), (wanted, value) in zip(received, tensors, strict=True):
        assert name == wanted
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, value)


def test_a_reader_that_gives_up_leaves_nothing_behind() -> None:
    messages = write_chunks([("a", torch.zeros(10)), ("b", torch.zeros(10))], chunk_bytes=1)
    path = Path(json.loads(next(messages))["path"])
    assert path.exists()
    messages.close()
    assert not path.exists()


def test_no_room_is_a_user_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(2**60)
    with pytest.raises(UserError, match="bytes of shared memory"):
        next(write_chunks([("a", huge)]))
    monkeypatch.setattr(shared_weights, "SHARED", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="bytes of shared memory"):
        next(write_chunks([("a", torch.zeros(10))]))


def test_weights_of_another_model_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    model = make_model(**SHAPES["widened"])
    target = load_config(export(model, tmp_path))
    state = dict(model.state_dict())
    del state["model.mtp_layers.0.input_proj.weight"]
    with pytest.raises(UserError, match=r"lack model\.mtp_layers\.0\.input_proj"):
        published_weights(state, target)
    with pytest.raises(UserError, match="the new weights"):
        published_weights(make_model(**SHAPES["as they are"]), target)
    with pytest.raises(UserError, match="the new weights"):
        published_weights(make_model(**SHAPES["widened"], vocab_size=62), target)
    model.rope_base = 20_000.0
    with pytest.raises(UserError, match=r"RoPE base is 20000\.0"):
        published_weights(model, target)
