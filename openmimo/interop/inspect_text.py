"""An `Inspection` as text for a terminal, a pipe or a file: aligned, one fact a line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from openmimo.errors import printable
from openmimo.interop.inspect import Inspection

_WIDTH = 16
_PARTS = ("embedding", "trunk_layers", "final_norm", "head", "mtp", "other")


def render(found: Inspection) -> str:
    """The whole report, ending with a newline."""
    lines: list[str] = [printable(found.path)]
    for title, body in (
        ("architecture", _architecture(found)),
        ("parameters", _parameters(found.parameters)),
        ("weights", _storage(found.storage)),
        ("MTP", _mtp(found)),
        ("tokenizer", _tokenizer(found)),
        ("memory", _memory(found.memory)),
        ("values", found.weights),
        ("deviations", found.deviations),
        ("faults", found.faults),
    ):
        for number, line in enumerate(body or ()):
            lines.append(f"{title if number == 0 else '':<{_WIDTH}}{printable(line)}")
    return "\n".join(lines) + "\n"


def _architecture(found: Inspection) -> Iterator[str]:
    a = found.architecture
    if not a:
        return
    scaling = a["rope_scaling"]
    stretched = f", {scaling['kind']} scaling by {scaling['factor']:g}" if scaling else ", unscaled"
    yield (
        f"{found.family}: {a['num_hidden_layers']} layers, hidden {a['hidden_size']}, "
        f"{a['num_attention_heads']}/{a['num_key_value_heads']} heads of {a['head_dim']}, "
        f"FFN {a['intermediate_size']}"
    )
    yield (
        f"vocabulary {a['vocab_size']:,}, context {a['max_position_embeddings']:,}, "
        f"RoPE base {a['rope_theta']:,.10g}{stretched}"
    )


def _parameters(parts: dict[str, Any]) -> Iterator[str]:
    if not parts.get("total"):
        return
    rows: list[tuple[str, int]] = []
    for name in _PARTS:
        if name == "mtp":
            rows += [(f"MTP layer {layer}", size) for layer, size in enumerate(parts["mtp"])]
        elif parts[name]:
            rows.append((name.replace("_", " "), parts[name]))
    rows += [
        ("total", parts["total"]),
        ("trunk without embedding and head", parts["trunk_without_embeddings"]),
        ("all without embedding and head", parts["without_embeddings"]),
    ]
    for name, size in rows:
        yield f"{size:>16,}  {name}"


def _storage(storage: dict[str, Any]) -> Iterator[str]:
    if not storage.get("files"):
        return
    for dtype, kind in storage["dtypes"].items():
        yield f"{kind['tensors']:,} tensors, {dtype}, {_gb(kind['bytes'])}"
    shape = "sharded" if storage["sharded"] else "one file"
    size = f", total_size {storage['total_size']}" if storage["total_size"] else ""
    yield f"{storage['format']}, {shape}, {'indexed' if storage['indexed'] else 'no index'}{size}"
    for file in storage["files"]:
        yield f"{file['bytes']:>16,}  {file['name']}, {file['tensors']:,} tensors"


def _mtp(found: Inspection) -> Iterator[str]:
    mtp = found.mtp
    if not mtp.get("layers"):
        yield from ["no MTP layer"] if mtp else []
        return
    where = "; layers 1 and up in mtp_extra.safetensors" if mtp["in_extra_file"] else ""
    mask = ", position 0 masked" if mtp["mask_first"] else ""
    yield f"{mtp['layers']} in all, config.json announces {mtp['published']}{where}"
    when = "before" if mtp["hidden"] == "pre_norm" else "after"
    yield f"they read the trunk's state {when} the final norm ({mtp['hidden']}){mask}"


def _tokenizer(found: Inspection) -> Iterator[str]:
    tokenizer = found.tokenizer
    if tokenizer is None:
        yield from ["none that can be read"] if found.architecture else []
        return
    chat = "ChatML" if tokenizer["chatml"] else "no ChatML tokens"
    template = ""
    if "chat_template" in tokenizer:
        template = ", chat template" if tokenizer["chat_template"] else ", no chat template"
    excess = tokenizer["ids"] - found.architecture["vocab_size"]
    rows = (
        f"{excess:,} more ids than rows" if excess > 0 else f"{tokenizer['dead_rows']:,} dead rows"
    )
    yield f"{tokenizer['kind']}, {tokenizer['ids']:,} ids, {rows}"
    yield f"{chat}{template}, a turn ends with {tokenizer['eos_id']}"


def _memory(needs: list[dict[str, Any]]) -> Iterator[str]:
    for need in needs:
        parts = ", ".join(f"{name} {_gb(size)}" for name, size in need["parts"].items())
        yield f"{_gb(need['bytes']):>13}  to {need['for']}"
        for line in textwrap.wrap(f"{parts} ({need['assumes']})", 78):
            yield f"{'':>15}{line}"


def _gb(size: int) -> str:
    return f"{size / 1e9:,.2f} GB"
