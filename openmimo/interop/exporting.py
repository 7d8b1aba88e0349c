"""`mimo export`: a model folder, or the models of a run, in the forms that other programs read.

    hf      the published MiMo layout, for transformers; the extra MTP layers beside it
    vllm    the same without what vLLM and SGLang do not read (the extra MTP layers), and with heads
            of a size that vLLM runs (`openmimo.model.widen`)
    qwen2   the trunk alone, labelled Qwen2: every program that knows Qwen2 reads it, no remote code
    gguf    the trunk alone as one file for llama.cpp

Tensors go through one by one; memory stays near one shard.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from openmimo.config.schema import ModelConfig
from openmimo.model.checkpoint import open_model
from openmimo.model.folder import (
    CONFIG,
    SHARD_BYTES,
    Endings,
    check_vocabulary,
    copy_mode,
    copy_papers,
    dtype_name,
    is_paper,
    write_folder,
    write_json,
    write_texts,
    write_weights,
)
from openmimo.model.layout import tensor_shapes
from openmimo.model.published import as_qwen2, to_published
from openmimo.model.tensors import TensorFiles
from openmimo.model.widen import vllm_shape, widen
from openmimo.progress import Progress
from openmimo.runs import check_new, new_dir
from openmimo.tokenizer import Tokenizer
from openmimo.tokenizer_folder import has_tokenizer

Form = Literal["hf", "vllm", "qwen2", "gguf"]
FORMS: tuple[Form, ...] = ("hf", "vllm", "qwen2", "gguf")


@dataclass(frozen=True)
class Exported:
    """One model as another program reads it.

    left_out: what this form has no place for, a sentence each.
    changed: what is another number here although the model computes the same, likewise.
    drafts: whether the other program can draft with an MTP layer.
    """

    path: Path
    left_out: list[str]
    changed: list[str]
    drafts: bool


@dataclass(frozen=True)
class Model:
    """What is exported.

    name: what the new form calls it.
    folder: of its weights.
    tokenizer: the folder of its tokenizer; None if it has none.
    card: the text of README.md, if there is one.
    endings: what the folder says of its texts' ends; None: what follows from the tokenizer.
    papers: the folder of licence and notice; None: that of the weights.
    """

    name: str
    folder: Path
    tokenizer: Path | None
    card: str | None = None
    endings: Endings | None = None
    papers: Path | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> Model:
        """A model folder as it stands."""
        card = folder / "README.md"
        return cls(
            folder.resolve().name,
            folder,
            folder if has_tokenizer(folder) else None,
            card.read_text(encoding="utf-8", errors="replace") if is_paper(card) else None,
            Endings.of_folder(folder),
        )


def export_model(
    model: Model,
    target: Path,
    form: Form,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write `model` to `target`, which appears whole or not at all.

    Args:
        target: a new folder; with `gguf` a new file.
        dtype: of the weights; None: as stored.

    Raises:
        UserError: `target` exists, the model is damaged, or the form cannot hold it.
    """
    check_new(target)
    config, files = open_model(model.folder)
    tokenizer = Tokenizer.load(model.tokenizer) if model.tokenizer else None
    if tokenizer is not None:
        check_vocabulary(tokenizer, config, str(model.folder))
    left_out = list(_left_out(config, form, tokenizer))
    config = _announced(config, form)
    shape = vllm_shape(config) if form == "vllm" else config
    changed = [*_changed(config, shape), *_rounded(files.dtype, dtype or files.dtype)]
    notes = [*(f"leaves out {each}" for each in left_out), *(f"is changed: {c}" for c in changed)]
    job = _Job(model, config, shape, files, tokenizer, dtype or files.dtype, max_shard_bytes)
    if form == "gguf":
        job.write_gguf(target)
    else:
        with new_dir(target) as partial:
            job.write_qwen2(partial) if form == "qwen2" else job.write_mimo(partial)
            _copy_papers(model, partial, notes)
    return Exported(target, left_out, changed, drafts=config.num_nextn_predict_layers > 0)


@dataclass(frozen=True)
class _Job:
    """One export on its way.

    config: what is exported; `shape` is the same or, with wider heads, what is written.
    """

    model: Model
    config: ModelConfig
    shape: ModelConfig
    files: TensorFiles
    tokenizer: Tokenizer | None
    dtype: torch.dtype
    max_shard_bytes: int

    def write_mimo(self, folder: Path) -> None:
        names = [name for name, _ in tensor_shapes(self.config)]
        with _Reader(self.files, len(names)) as reader:

            def read(name: str) -> Tensor:
                return widen(name, reader.read(name), self.config, self.shape)

            write_folder(
                folder, self.shape, read, self.dtype, self.tokenizer, self.max_shard_bytes,
                self.model.endings, before_widening=self.config,
            )  # fmt: skip

    def write_qwen2(self, folder: Path) -> None:
        shapes = dict(tensor_shapes(self.config))
        with _Reader(self.files, len(shapes)) as reader:
            write_weights(folder, shapes, reader.read, self.dtype, self.max_shard_bytes)
        endings = (self.model.endings or Endings()).completed(self.tokenizer)
        published = to_published(self.config, dtype_name(self.dtype), endings.bos, endings.eos)
        write_json(folder / CONFIG, as_qwen2(published))
        write_texts(folder, self.tokenizer, self.config, endings)
        copy_mode(folder)

    def write_gguf(self, target: Path) -> None:
        from openmimo.interop.gguf_write import write_gguf

        names = [name for name, _ in tensor_shapes(self.config)]
        with _Reader(self.files, len(names)) as reader:
            write_gguf(
                target,
                self.config,
                reader.read,
                tokenizer=self.tokenizer,
                dtype=dtype_name(self.dtype),
                name=self.model.name,
            )


class _Reader:
    """Reads the tensors of an export and shows how far it is."""

    def __init__(self, files: TensorFiles, total: int) -> None:
        self._files, self._count = files, 0
        self._progress = Progress("export", total, every=max(1, total // 5))

    def read(self, name: str) -> Tensor:
        self._count += 1
        self._progress.step(self._count)
        return self._files.read(name)

    def __enter__(self) -> _Reader:
        self._progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.__exit__(None, None, None)


def _announced(config: ModelConfig, form: Form) -> ModelConfig:
    """The config with the MTP layers that a form holds."""
    most = {"hf": config.num_nextn_predict_layers, "vllm": 1, "qwen2": 0, "gguf": 0}[form]
    layers = min(config.num_nextn_predict_layers, most)
    return config.model_copy(update={"num_nextn_predict_layers": layers})


def _left_out(config: ModelConfig, form: Form, tokenizer: Tokenizer | None) -> Iterable[str]:
    layers = config.num_nextn_predict_layers
    if tokenizer is None:
        yield "a tokenizer: the model has none, so other programs take only token ids"
    if form in ("qwen2", "gguf") and layers:
        plural = "s" if layers > 1 else ""
        yield f"{layers} MTP layer{plural}: Qwen2 has none, so there is no speculative decoding"
    if form == "vllm" and layers > 1:
        yield f"{layers - 1} of {layers} MTP layers: vLLM and SGLang use only the first"
    if form in ("hf", "vllm") and layers and config.mtp_hidden == "post_norm":
        yield (
            "mtp_hidden = post_norm: transformers and vLLM feed the MTP layer the state before the "
            "final norm, so they accept fewer drafts; the text stays the same (SGLang feeds the "
            "one after it)"
        )


def _changed(config: ModelConfig, shape: ModelConfig) -> Iterable[str]:
    if config != shape:
        yield (
            f"zeros make heads of {config.head_dim} numbers {shape.head_dim} wide and hidden_size "
            f"{config.hidden_size} {shape.hidden_size}, as vLLM needs on a CPU; what the model "
            "computes is the same up to rounding"
        )


def _rounded(trained: torch.dtype, stored: torch.dtype) -> Iterable[str]:
    if torch.promote_types(trained, stored) != stored:
        was, now = dtype_name(trained), dtype_name(stored)
        yield f"weights are rounded from {was} to {now}; --dtype keeps them"


def _copy_papers(model: Model, folder: Path, notes: list[str]) -> None:
    """The card, and the licence and notice that came with the weights."""
    if model.card is not None:
        card = _with_notes(model.card, notes) if notes else model.card
        (folder / "README.md").write_text(card, encoding="utf-8")
    copy_papers(model.papers or model.folder, folder)


def _with_notes(card: str, notes: list[str]) -> str:
    """The card with what this form is or lacks on top, below its YAML header."""
    header, body = "", card
    if card.startswith("---\n") and "\n---\n" in card[4:]:
        end = card.index("\n---\n", 4) + len("\n---\n")
        header, body = card[:end], card[end:]
    quoted = "".join(f"> This copy {note}.\n" for note in notes)
    return f"{header}{quoted}\n{body}"
