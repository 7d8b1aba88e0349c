"""Ways to damage a model folder, and tables of them: name -> what is done to the folder."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openmimo.model.checkpoint import load_model, write_model
from openmimo.model.folder import dtype_name
from openmimo.model.mimo import MiMo
from openmimo.model.tensors import TensorFiles
from openmimo.tokenizer import Tokenizer

CONFIG, OWN, INDEX = "config.json", "openmimo.json", "model.safetensors.index.json"
FIRST, EXTRA = "model-00001-of-00002.safetensors", "mtp_extra.safetensors"
LAST = FIRST.replace("00001", "00002")
WEIGHTS = (FIRST, LAST, EXTRA)
TOKENIZER = "tokenizer.json"
READ = (*WEIGHTS, CONFIG, OWN, INDEX, TOKENIZER)

HEAD, NORM = "lm_head.weight", "model.norm.weight"
QUERY, BIAS = "model.layers.1.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.bias"
INPUT, SECOND = "model.mtp_layers.0.input_proj.weight", "model.mtp_layers.1.input_proj.weight"

Damage = Callable[[Path], Any]
DEEP = "[" * 100_000 + "]" * 100_000


class Pristine:
    """Undamaged folders, one for each stored type, and the models in them."""

    def __init__(self, folder: Path, model: MiMo, tokenizer: Tokenizer) -> None:
        self.models: dict[str, MiMo] = {}
        self._folder = folder
        size = 4 * sum(p.numel() for p in model.parameters())
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            target = folder / dtype_name(dtype)
            target.mkdir()
            # Two shards: the extra MTP layers, 30 % of this model, are in no shard.
            shard = size * dtype.itemsize // 4 * 45 // 100
            write_model(model, target, dtype, tokenizer, max_shard_bytes=shard)
            assert {path.name for path in target.glob("*.safetensors")} == set(WEIGHTS)
            self.models[target.name] = load_model(target)

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        content: dict[str, Any] = json.loads((self._folder / "float32" / CONFIG).read_text())
        return content

    def copy(self, target: Path, dtype: str = "float32") -> Path:
        return shutil.copytree(self._folder / dtype, target / "model")


def edit(name: str, **changes: Any) -> Damage:
    """Change keys of a JSON file; a value of ... removes the key."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | changes
        kept = {key: value for key, value in content.items() if value is not ...}
        (folder / name).write_text(json.dumps(kept))

    return damage


def remap(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change the index's weight_map."""

    def damage(folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text())
        change(index["weight_map"])
        (folder / INDEX).write_text(json.dumps(index))

    return damage


def replace(name: str, how: Callable[[Path], Any]) -> Damage:
    """Put something else where a file was."""

    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        how(folder / name)

    return damage


def retensor(name: str, change: Callable[[dict[str, Tensor]], Any]) -> Damage:
    """Change the tensors of the file that holds `name`."""

    def damage(folder: Path) -> None:
        path = TensorFiles(folder / file for file in WEIGHTS).stored[name].file
        tensors = load_file(path)
        change(tensors)
        save_file({key: t.contiguous() for key, t in tensors.items()}, path, {"format": "pt"})

    return damage


def reheader(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change the header of the first file; the data stay where they are."""

    def damage(folder: Path) -> None:
        raw = (folder / FIRST).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        text = change(header) or json.dumps(header)
        encoded = text.encode()
        (folder / FIRST).write_bytes(
            len(encoded).to_bytes(8, "little") + encoded + raw[8 + length :]
        )

    return damage


def repeat(name: str, key: str) -> Damage:
    """Give a key of a JSON file a second value before its own."""

    def damage(folder: Path) -> None:
        text = (folder / name).read_text()
        assert f'"{key}":' in text
        (folder / name).write_text(text.replace(f'"{key}":', f'"{key}": 7, "{key}":', 1))

    return damage


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 * 10**9)


def swap(tensors: dict[str, Any], old: str, new: str) -> None:
    tensors[new] = tensors.pop(old)


SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
)
NUMBERS = (*SIZES, "rms_norm_eps", "rope_theta", "initializer_range")
FIXED = (
    *("model_type", "hidden_act", "attention_bias", "attention_dropout", "tie_word_embeddings"),
    *("use_sliding_window", "use_mrope"),
)
UNREAD = (
    *("bos_token_id", "eos_token_id", "architectures", "auto_map", "sliding_window", "use_cache"),
    *("max_window_layers", "torch_dtype", "transformers_version", "tokenizer_class", "unheard_of"),
)
ABSURD: dict[str, Any] = {
    "zero": 0,
    "negative": -1,
    "10^18": 10**18,
    "2^63": 2**63,
    "10^300": 10**300,
    "1e300": 1e300,
    "NaN": float("nan"),
    "Infinity": float("inf"),
    "-Infinity": float("-inf"),
    "text": "32",
    "null": None,
    "true": True,
    "list": [32],
    "object": {"a": 32},
    "escape": "\x1b[2J\n",
}


ROPE: dict[str, dict[str, Any]] = {
    "a number": {"rope_scaling": 2.0},
    "a list": {"rope_scaling": []},
    "false": {"rope_scaling": False},
    "an unknown kind": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    "a list as kind": {"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}},
    "no kind": {"rope_scaling": {"rope_type": None, "factor": 2.0}},
    "two kinds": {"rope_scaling": {"rope_type": "default", "type": "mrope"}},
    "no factor": {"rope_scaling": {"rope_type": "linear"}},
    **{
        f"factor {name}": {"rope_scaling": {"rope_type": "linear", "factor": value}}
        for name, value in ABSURD.items()
    },
    "llama3 with nothing": {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
    "parameters a list": {"rope_parameters": [1]},
    "two bases": {"rope_parameters": {"rope_theta": 1.0, "rope_type": "default"}},
    "one base for each kind of layer": {"rope_parameters": {"full": {"rope_theta": 1e6}}},
    "no base": {"rope_theta": ...},
    "base null": {"rope_theta": ..., "rope_parameters": {"rope_theta": None}},
}
ROPE["one base for each kind of layer"]["rope_theta"] = ...


INSTEAD: dict[str, Callable[[Path], Any]] = {
    "nothing": lambda p: None,
    "an empty file": lambda p: p.touch(),
    "a folder": lambda p: p.mkdir(),
    "a pipe": os.mkfifo,
    "a link to nowhere": lambda p: p.symlink_to("nowhere"),
    "a link to itself": lambda p: p.symlink_to(p.name),
    "an endless device": lambda p: p.symlink_to("/dev/zero"),
    "the folder again": lambda p: p.symlink_to("."),
    "10 GB of nothing": sparse,
    "noise": lambda p: p.write_bytes(random.Random(0).randbytes(5000)),
    "white space": lambda p: p.write_text(" " * 5000),
    "null": lambda p: p.write_text("null"),
    "a list": lambda p: p.write_text("[]"),
    "deep lists": lambda p: p.write_text(DEEP),
    "a number without end": lambda p: p.write_text("1" * 100_000),
    "UTF-16": lambda p: p.write_text('{"a": 1}', encoding="utf-16"),
    "a byte order mark": lambda p: p.write_text("{}", encoding="utf-8-sig"),
    "a pickle": lambda p: torch.save({"a": torch.ones(1)}, p),
}


CONTROL = "\x1b[31m\n\u202e\ud800"
REPEATED = ((CONFIG, "rope_theta"), (CONFIG, "use_cache"), (OWN, "mtp_hidden"), (INDEX, HEAD))
LIES: dict[str, Damage] = {
    **{f"config lacks {key}": edit(CONFIG, **{key: ...}) for key in NUMBERS},
    **{f"{name} repeats {key}": repeat(name, key) for name, key in REPEATED},
    "config deep below a key": lambda f: (f / CONFIG).write_text(
        (f / CONFIG).read_text().replace("{", '{"x": ' + DEEP + ",", 1)
    ),
    **{
        f"hidden_act {depth} lists deep": lambda f, depth=depth: (f / CONFIG).write_text(
            (f / CONFIG).read_text().replace('"silu"', "[" * depth + "]" * depth)
        )
        for depth in (100, *range(800, 1000, 20))
    },
    "config too large": lambda f: edit(CONFIG, junk="x" * 2**21)(f),
    "quantised": edit(CONFIG, quantization_config={"bits": 4}),
    "some layers slide": edit(CONFIG, layer_types=["sliding_attention"] * 3),
    "half of a head rotates": edit(CONFIG, partial_rotary_factor=0.5),
    "own: unknown key": edit(OWN, **{f"mtp_hiden{CONTROL}": 1}),
    "own: fewer layers than the extra file has": edit(OWN, num_nextn_predict_layers=2),
    "own: extra layers not counted": edit(OWN, num_nextn_predict_layers=1),
    "own: says nothing": lambda f: (f / OWN).write_text("{}"),
    "own: more layers": edit(OWN, num_nextn_predict_layers=4),
    "index missing": lambda f: (f / INDEX).unlink(),
    "index: no map": edit(INDEX, weight_map=...),
    "index: empty map": edit(INDEX, weight_map={}),
    "index: map a list": edit(INDEX, weight_map=[HEAD]),
    **{
        f"index: {name}": remap(lambda m, value=value: m.update({HEAD: value}))
        for name, value in {
            "the other file": FIRST,
            "the extra file": EXTRA,
            "no such file": "model-00009-of-00002.safetensors",
            "up": "../model-00002-of-00002.safetensors",
            "absolute": "/etc/passwd",
            "absolute safetensors": "/tmp/model.safetensors",
            "down": "./model-00002-of-00002.safetensors",
            "config": "config.json",
            "pickle": "pytorch_model.bin",
            "empty": "",
            "control": f"{CONTROL}.safetensors",
            "zero byte": "\0.safetensors",
            "too long a name": "x" * 5000 + ".safetensors",
            "number": 1,
            "null": None,
            "list": [FIRST],
            "object": {},
        }.items()
    },
    "index: tensor missing": remap(lambda m: m.pop(HEAD)),
    "index: tensor more": remap(lambda m: m.update({f"x{CONTROL}": FIRST})),
    "index: tensor renamed": remap(lambda m: swap(m, HEAD, "head.weight")),
    "index: case": remap(lambda m: swap(m, HEAD, HEAD.upper())),
    "index: a file left out": remap(
        lambda m: [m.pop(name) for name in [n for n in m if m[n] == LAST]]
    ),
    "index: extra layers too": remap(lambda m: m.update({SECOND: FIRST})),
    "a shard twice": lambda f: shutil.copyfile(f / FIRST, f / LAST),
    "a shard is a link to the other": lambda f: replace(LAST, lambda p: p.symlink_to(FIRST))(f),
    "the extra file is a shard": lambda f: shutil.copyfile(f / FIRST, f / EXTRA),
    **{
        f"{name} is gone": lambda f, name=name: (
            retensor(name, lambda t: t.pop(name))(f),
            remap(lambda m: m.pop(name, None))(f),
        )
        for name in (HEAD, NORM, QUERY, BIAS, INPUT, SECOND)
    },
    **{
        f"{name} is in both": lambda f, name=name: retensor(
            "model.embed_tokens.weight", lambda t: t.update({name: torch.ones(3)})
        )(f)
        for name in (HEAD, SECOND)
    },
    **{
        f"renamed to {ascii(new)[:30]}": lambda f, new=new: (
            retensor(NORM, lambda t: swap(t, NORM, new))(f),
            remap(lambda m: swap(m, NORM, new))(f),
        )
        for new in ("model.norm", "norm.weight", "", "\x1b[2Jnorm\n", "n" * 100_000, "../norm")
    },
    "header: a name escaped": reheader(lambda h: swap(h, sorted(h)[-1], f"{CONTROL[:-1]}")),
    "header: an offset below zero": reheader(
        lambda h: h[sorted(h)[-1]].update(data_offsets=[-8, 8])
    ),
    "header: an offset beyond": reheader(
        lambda h: h[sorted(h)[-1]].update(data_offsets=[0, 2**62])
    ),
    "header: 10^18 rows": reheader(lambda h: h[sorted(h)[-1]].update(shape=[10**18])),
    "header: a fraction of a row": reheader(lambda h: h[sorted(h)[-1]].update(shape=[0.5])),
    "header: a million dimensions": reheader(lambda h: h[sorted(h)[-1]].update(shape=[1] * 10**6)),
    "header: a type unheard of": reheader(lambda h: h[sorted(h)[-1]].update(dtype=CONTROL[:-1])),
    "header: a tensor without a type": reheader(lambda h: h[sorted(h)[-1]].pop("dtype")),
    "header: a list": reheader(lambda h: "[]"),
    "header: empty": reheader(lambda h: "{}"),
    "header: deep": reheader(lambda h: DEEP),
    "header: a tensor twice": reheader(
        lambda h: json.dumps(h)[:-1] + f', "{sorted(h)[-1]}": {json.dumps(h[sorted(h)[-1]])}}}'
    ),
}


HARMLESS: dict[str, Damage] = {
    "nothing": lambda f: None,
    "weights linked, as the hub's cache does": lambda f: (
        (f / FIRST).rename(f.parent / "blob"),
        (f / FIRST).symlink_to("../blob"),
    ),
    "the papers are gone": lambda f: [
        (f / name).unlink() for name in ("generation_config.json", "modeling_mimo.py")
    ],
    "a pickle beside them": lambda f: torch.save({"a": torch.ones(1)}, f / "pytorch_model.bin"),
    "hostile code beside them": lambda f: (f / "modeling_mimo.py").write_text("raise SystemExit"),
    "another file": lambda f: (f / "other.safetensors").write_text("x"),
    "total_size wrong": edit(INDEX, metadata={"total_size": 10**300}),
    "no metadata": edit(INDEX, metadata=...),
    "a pipe nobody reads": lambda f: os.mkfifo(f / "README.md"),
    "the new form of RoPE": edit(
        CONFIG, rope_theta=..., rope_parameters={"rope_theta": 10_000.0, "rope_type": "default"}
    ),
    "a list as tokenizer_class": edit(CONFIG, tokenizer_class=["Qwen2Tokenizer"]),
    "other metadata": reheader(lambda h: h["__metadata__"].update(format="x", more="y")),
}
