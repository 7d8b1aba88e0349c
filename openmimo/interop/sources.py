"""Where an import reads from: a model folder, a GGUF file, or a name on the hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from openmimo.errors import UserError
from openmimo.json_files import read_json
from openmimo.model.checkpoint import add_extra_layers, read_own_config
from openmimo.model.folder import CONFIG, ORIGINAL_CARD, Endings, copy_papers, is_paper
from openmimo.model.layout import Shape
from openmimo.model.tensors import existing, open_weights
from openmimo.tokenizer import Tokenizer
from openmimo.tokenizer_folder import MAX_BYTES, has_tokenizer

LEGACY_BUFFERS = (".rotary_emb.inv_freq", ".masked_bias")
"""Ends of names that older transformers saved; their values follow from the config."""


class Source(Protocol):
    """A model to import, described without reading its weights.

    name: what to call it.
    config: as a config.json.
    own: as an openmimo.json.
    shapes: of the stored tensors, by published name.
    dtype: the type that holds every stored weight exactly.
    stored_as: the stored types, for people.
    prefix: the special tokens that its tokenizer puts before every text; mostly none.
    """

    name: str
    config: dict[str, Any]
    own: dict[str, Any]
    shapes: dict[str, Shape]
    dtype: torch.dtype
    stored_as: str
    prefix: str

    def read(self, name: str) -> Tensor:
        """One tensor; raises UserError if it is damaged or not finite."""

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer beside the weights, if there is one."""

    def endings(self) -> Endings:
        """Where its texts begin and end."""

    def copy_papers(self, folder: Path) -> None:
        """Copy its licence, notice and card, if it has them, into the new folder."""


class FolderSource:
    """A folder of safetensors files with a config.json."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.config = read_json(existing(folder / CONFIG))
        self.own = read_own_config(folder)
        self._files = open_weights(folder)
        layers = self.own.get("num_nextn_predict_layers", 0)
        add_extra_layers(self._files, folder, layers if isinstance(layers, int) else 0)
        self.shapes = {
            name: shape
            for name, shape in self._files.shapes.items()
            if not name.endswith(LEGACY_BUFFERS)
        }
        self.dtype = self._files.dtype
        self.stored_as = ", ".join(sorted({t.dtype for t in self._files.stored.values()}))

        self.prefix = added_prefix(folder / "tokenizer.json")

    def read(self, name: str) -> Tensor:
        return self._files.read(name)

    def tokenizer(self) -> Tokenizer | None:
        return Tokenizer.load(self.folder) if has_tokenizer(self.folder) else None

    def endings(self) -> Endings:
        return Endings.of_folder(self.folder)

    def copy_papers(self, folder: Path) -> None:
        copy_papers(self.folder, folder)
        card = self.folder / "README.md"
        # An original card that came with an earlier import is worth more than that import's own.
        if is_paper(card) and not (folder / ORIGINAL_CARD).exists():
            shutil.copyfile(card, folder / ORIGINAL_CARD)


def added_prefix(tokenizer: Path) -> str:
    """What a tokenizer.json's post-processor puts before a text, as Llama 3's does."""
    if not tokenizer.is_file():
        return ""
    processor = read_json(tokenizer, MAX_BYTES).get("post_processor")
    parts = processor.get("processors", [processor]) if isinstance(processor, dict) else []
    for part in parts if isinstance(parts, list) else []:
        single = part.get("single") if isinstance(part, dict) else None
        first = single[0] if isinstance(single, list) and single else None
        special = first.get("SpecialToken") if isinstance(first, dict) else None
        if isinstance(special, dict):
            return str(special.get("id"))[:40]
    return ""


def open_source(source: str) -> Source:
    """A model by the path of its folder or GGUF file, or by its name on the hub.

    Raises:
        UserError: there is no such model, or it cannot be read.
    """
    path, name = Path(source).expanduser(), source
    if path.exists():
        name = path.resolve().name
    else:
        from openmimo.interop.hub import download, is_hub_name

        if not is_hub_name(source):
            raise UserError(f"no folder or file {source}, and no name on the hub (OWNER/NAME)")
        path = download(source)
    if path.is_dir():
        return FolderSource(path, name)
    if path.suffix != ".gguf":
        raise UserError(f"{source} is neither a model folder nor a .gguf file")
    from openmimo.interop.gguf_read import GGUFSource

    return GGUFSource(path)
