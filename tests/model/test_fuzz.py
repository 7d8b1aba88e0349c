"""Damaged model folders: one clear line, or exactly the right model; never anything else.

What no reader can notice is left out: a flipped bit that leaves a weight finite, two tensors of one
shape swapped, or a config.json that consistently describes another model.
"""

import contextlib
import json
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from openmimo.cli import main
from openmimo.errors import UserError
from openmimo.interop.families import read_family
from openmimo.interop.importing import Options, import_model
from openmimo.model.checkpoint import load_model, load_release
from openmimo.model.mimo import MiMo
from openmimo.model.published import from_published
from openmimo.model.tensors import TensorFiles

from .damage import (
    ABSURD,
    BIAS,
    CONFIG,
    CONTROL,
    DEEP,
    FIRST,
    FIXED,
    HARMLESS,
    HEAD,
    INDEX,
    INPUT,
    INSTEAD,
    LIES,
    NORM,
    NUMBERS,
    OWN,
    QUERY,
    READ,
    ROPE,
    SECOND,
    UNREAD,
    WEIGHTS,
    Damage,
    Pristine,
    edit,
    replace,
    retensor,
)

pytestmark = pytest.mark.timeout(30)  # a case takes milliseconds: more is a hang

MOST_MEMORY = 200 * 2**20


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    """No case may make the process grow, whatever sizes its files claim."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < MOST_MEMORY


def outcome(load: Callable[[], MiMo], original: MiMo, folder: Path) -> str:
    """The error's message, or "" if the right model came; anything else fails the test."""
    try:
        model = load()
    except UserError as error:
        message = str(error)
        assert message.isprintable()
        assert str(folder) in message
        assert 0 < len(message) < 2500
        return message
    assert model.config == original.config
    expected, found = original.state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].float(), expected[name].float()) for name in found)
    return ""


def loaded(folder: Path, original: MiMo) -> str:
    return outcome(lambda: load_release(folder)[0], original, folder)


def imported(folder: Path, original: MiMo) -> str:
    target = folder.parent / "imported"

    def load() -> MiMo:
        import_model(str(folder), target, Options())
        return load_model(target)

    message = outcome(load, original, folder)
    assert target.exists() == (not message)
    return message


def refused(folder: Path, original: MiMo) -> None:
    assert loaded(folder, original), "this damage must be noticed"


FRACTIONS = (0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97)


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("name", READ)
def test_cut_off(pristine: Pristine, tmp_path: Path, name: str, fraction: float) -> None:
    folder = pristine.copy(tmp_path)
    size = (folder / name).stat().st_size
    os.truncate(folder / name, int(fraction * size))
    refused(folder, pristine.models["float32"])


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("offset", [1, 7, 8, 9, "header - 1", "header", "header + 1", "end - 1"])
def test_cut_off_at_a_border(
    pristine: Pristine, tmp_path: Path, name: str, offset: int | str
) -> None:
    folder = pristine.copy(tmp_path)
    raw = (folder / name).read_bytes()
    places = {"header": 8 + int.from_bytes(raw[:8], "little"), "end": len(raw)}
    place = offset if isinstance(offset, int) else eval(offset, places)
    (folder / name).write_bytes(raw[:place])
    refused(folder, pristine.models["float32"])


@pytest.mark.parametrize("seed", range(120))
def test_a_flipped_bit_in_a_header(pristine: Pristine, tmp_path: Path, seed: int) -> None:
    folder = pristine.copy(tmp_path)
    draw = random.Random(seed)
    path = folder / WEIGHTS[seed % 3]
    raw = bytearray(path.read_bytes())
    length = int.from_bytes(raw[:8], "little")
    place = seed // 3 if seed < 24 else draw.randrange(8, 8 + length)  # the length's eight, then on
    raw[place] ^= 1 << draw.randrange(8)
    path.write_bytes(raw)
    loaded(folder, pristine.models["float32"])


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_byte_in_json(pristine: Pristine, tmp_path: Path, seed: int) -> None:
    # Of the index and of the tensors' names in it; a digit of a config may become another digit.
    folder = pristine.copy(tmp_path)
    draw = random.Random(seed)
    raw = bytearray((folder / INDEX).read_bytes())
    for _ in range(draw.randrange(1, 4)):
        raw[draw.randrange(len(raw))] = draw.randrange(256)
    (folder / INDEX).write_bytes(raw)
    loaded(folder, pristine.models["float32"])


BITS = {"float32": (4, 23), "bfloat16": (2, 7), "float16": (2, 10)}  # bytes, mantissa bits


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", [HEAD, BIAS, NORM, INPUT, SECOND])
@pytest.mark.parametrize("dtype", BITS)
def test_a_weight_that_is_no_number(
    pristine: Pristine, tmp_path: Path, dtype: str, name: str, value: str, where: str
) -> None:
    folder = pristine.copy(tmp_path, dtype)
    stored = TensorFiles(folder / file for file in WEIGHTS).stored[name]
    size, mantissa = BITS[dtype]
    exponent = (1 << (8 * size - 1 - mantissa)) - 1
    bits = exponent << mantissa | (value == "nan") | (value == "-inf") << (8 * size - 1)
    with stored.file.open("r+b") as file:
        file.seek(stored.start + (0 if where == "first" else stored.bytes - size))
        file.write(bits.to_bytes(size, "little"))
    assert f"{name} holds NaN or infinities" in loaded(folder, pristine.models[dtype])


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.T if t.ndim > 1 else t[None],
    "a row short": lambda t: t[:-1].clone(),
    "a row more": lambda t: torch.cat([t, t[:1]]),
    "flat": lambda t: t.reshape(-1) if t.ndim > 1 else t.reshape(2, -1),
    "a scalar": lambda t: t.sum(),
    "empty": lambda t: t[:0].clone(),
    "one dimension more": lambda t: t[..., None],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", [HEAD, NORM, QUERY, BIAS, INPUT, SECOND])
def test_a_wrong_shape(pristine: Pristine, tmp_path: Path, name: str, shape: str) -> None:
    folder = pristine.copy(tmp_path)
    retensor(name, lambda t: t.update({name: SHAPES[shape](t[name])}))(folder)
    assert f"{name} is (" in loaded(folder, pristine.models["float32"])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "bool", "float64", "float8_e4m3fn"])
@pytest.mark.parametrize("name", [NORM, SECOND])
def test_a_type_that_cannot_be_read(
    pristine: Pristine, tmp_path: Path, name: str, dtype: str
) -> None:
    folder = pristine.copy(tmp_path)
    retensor(name, lambda t: t.update({name: t[name].to(getattr(torch, dtype))}))(folder)
    assert "only bfloat16, float16 and float32" in loaded(folder, pristine.models["float32"])


@pytest.mark.parametrize("name", [HEAD, NORM, SECOND])
def test_a_wider_type_is_the_same_model(pristine: Pristine, tmp_path: Path, name: str) -> None:
    folder = pristine.copy(tmp_path, "bfloat16")
    retensor(name, lambda t: t.update({name: t[name].float()}))(folder)
    assert loaded(folder, pristine.models["bfloat16"]) == ""
    assert {t.dtype for t in load_model(folder).state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("name", [HEAD, NORM, SECOND])
def test_a_label_of_another_type_of_that_size(
    pristine: Pristine, tmp_path: Path, name: str
) -> None:
    folder = pristine.copy(tmp_path, "bfloat16")
    retensor(name, lambda t: t.update({name: t[name].view(torch.float16)}))(folder)
    message = loaded(folder, pristine.models["bfloat16"])
    assert "float16" in message
    assert name in message


def test_weights_too_large_for_the_type_asked_for(pristine: Pristine, tmp_path: Path) -> None:
    folder = pristine.copy(tmp_path)
    retensor(NORM, lambda t: t[NORM].fill_(1e6))(folder)
    assert load_model(folder).config == pristine.models["float32"].config
    with pytest.raises(UserError, match=r"model.norm.weight is too large for float16"):
        load_model(folder, dtype=torch.float16)


@pytest.mark.parametrize("value", ABSURD)
@pytest.mark.parametrize("key", [*NUMBERS, *FIXED, *UNREAD])
def test_an_absurd_value_in_config_json(
    pristine: Pristine, tmp_path: Path, key: str, value: str
) -> None:
    folder, original = pristine.copy(tmp_path), pristine.models["float32"]
    before = json.loads((folder / CONFIG).read_text()).get(key, ...)
    edit(CONFIG, **{key: ABSURD[value]})(folder)
    message = loaded(folder, original)
    if key in UNREAD or ABSURD[value] == before:
        assert message == ""
    else:
        assert key in message


@pytest.mark.parametrize("value", ABSURD)
@pytest.mark.parametrize("key", ["num_nextn_predict_layers", "mtp_hidden", "mtp_mask_first"])
def test_an_absurd_value_in_openmimo_json(
    pristine: Pristine, tmp_path: Path, key: str, value: str
) -> None:
    folder, original = pristine.copy(tmp_path), pristine.models["float32"]
    if ABSURD[value] is not True or key != "mtp_mask_first":
        edit(OWN, **{key: ABSURD[value]})(folder)
        refused(folder, original)


@pytest.mark.parametrize("case", ROPE)
def test_senseless_rope(pristine: Pristine, tmp_path: Path, case: str) -> None:
    folder = pristine.copy(tmp_path)
    edit(CONFIG, **ROPE[case])(folder)
    assert "rope" in loaded(folder, pristine.models["float32"])


@pytest.mark.parametrize("what", INSTEAD)
@pytest.mark.parametrize("name", READ)
def test_another_thing_in_a_file_s_place(
    pristine: Pristine, tmp_path: Path, name: str, what: str
) -> None:
    if (name, what) == (INDEX, "nothing"):
        pytest.skip("see test_lies: without an index, model.safetensors is looked for")
    folder = pristine.copy(tmp_path)
    replace(name, INSTEAD[what])(folder)
    refused(folder, pristine.models["float32"])


@pytest.mark.parametrize("case", LIES)
def test_lies(pristine: Pristine, tmp_path: Path, case: str) -> None:
    folder = pristine.copy(tmp_path)
    LIES[case](folder)
    refused(folder, pristine.models["float32"])


@pytest.mark.parametrize("case", [*LIES, *INSTEAD])
def test_import_notices_them_too(pristine: Pristine, tmp_path: Path, case: str) -> None:
    folder = pristine.copy(tmp_path)
    damage = LIES[case] if case in LIES else replace(CONFIG, INSTEAD[case])
    damage(folder)
    assert imported(folder, pristine.models["float32"])


@pytest.mark.parametrize("case", HARMLESS)
@pytest.mark.parametrize("load", [loaded, imported])
def test_what_does_not_matter(
    pristine: Pristine, tmp_path: Path, case: str, load: Callable[[Path, MiMo], str]
) -> None:
    folder = pristine.copy(tmp_path)
    HARMLESS[case](folder)
    assert load(folder, pristine.models["float32"]) == ""


@pytest.mark.parametrize("name", ["", "nowhere", "x" * 5000, "a\0b", "\n", CONTROL[:-1]])
def test_a_folder_that_is_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        load_model(tmp_path / "none" / name)
    assert str(raised.value).isprintable()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
KEYS = st.sampled_from(
    [*NUMBERS, *FIXED, "rope_scaling", "rope_parameters", "layer_types", "quantization_config"]
)


@given(changes=st.dictionaries(KEYS, JSON, max_size=3), family=st.sampled_from(["qwen2", "llama"]))
@settings(max_examples=300)
def test_any_value_in_any_key(pristine: Pristine, changes: dict[str, Any], family: str) -> None:
    good = pristine.config
    theirs = {key: value for key, value in good.items() if key != "attention_bias"}
    for content, read in (
        (good | changes, from_published),
        ({**theirs, **changes, "model_type": family}, read_family),
    ):
        with contextlib.suppress(UserError):
            read(content, {}, "x/config.json")


ON_SCREEN: dict[str, Damage] = {
    "cut off": lambda f: os.truncate(f / FIRST, 1000),
    "no folder": shutil.rmtree,
    **{case: LIES[case] for case in ("index: control", "header: a name escaped", "index: up")},
    "pipe": replace(CONFIG, os.mkfifo),
    "10^300 layers": edit(CONFIG, num_hidden_layers=10**300),
    "escapes": edit(CONFIG, hidden_act="\x1b[2J\n\x07"),
    "deep": replace(OWN, lambda p: p.write_text(DEEP)),
}


@pytest.mark.parametrize("case", ON_SCREEN)
@pytest.mark.parametrize("verb", ["chat", "import"])
def test_the_command_line_says_it_in_a_line(
    pristine: Pristine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
    verb: str,
) -> None:
    folder = pristine.copy(tmp_path)
    ON_SCREEN[case](folder)
    more = [str(tmp_path / "new")] if verb == "import" else []
    assert main([verb, str(folder), *more]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mimo: error: ")
    assert err.count("\n") == 1
    assert err.strip().isprintable()
