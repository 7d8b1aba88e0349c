"""`mimo import`: a model of another project as an openmimo folder, tensor by tensor.

What the model computes stays as it was; every change of form is listed in `Imported.changes` and in
the new folder's README.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from openmimo.config.base import Config, to_toml
from openmimo.config.schema import ModelConfig
from openmimo.errors import UserError
from openmimo.interop.families import Family, check_stored, read_family
from openmimo.interop.fresh_mtp import FreshMTP
from openmimo.interop.sources import Source, open_source
from openmimo.model.folder import SHARD_BYTES, dtype_name, write_folder
from openmimo.model.layout import BIASES, EMBEDDING, HEAD, MTP, tensor_count, tensor_shapes
from openmimo.model.tensors import DTYPES
from openmimo.progress import Progress
from openmimo.runs import check_new, new_dir
from openmimo.tokenizer import Tokenizer

_STORED = {dtype: name for name, dtype in DTYPES.items()}

RECIPE = "recipe.toml"

MtpOrder = Literal["hidden_first", "embedding_first"]


@dataclass(frozen=True)
class Options:
    """How to import.

    add_mtp: give a model without MTP layers a fresh one.
    mtp_order: which half of `input_proj` comes first in the source: MiMo's folders have the hidden
        state first, Megatron, DeepSeek and torchtitan the embedding.
    mtp_hidden: what the source's MTP layer reads; None: what the folder says, else `pre_norm`.
    dtype: of the new folder; None: the one that holds every weight exactly.
    max_shard_bytes: of one file.
    """

    add_mtp: bool = False
    mtp_order: MtpOrder = "hidden_first"
    mtp_hidden: Literal["pre_norm", "post_norm"] | None = None
    dtype: torch.dtype | None = None
    max_shard_bytes: int = SHARD_BYTES


@dataclass(frozen=True)
class Imported:
    """What came of an import.

    parameters: in the new folder.
    changes: what is another form of the same thing now, a sentence each.
    warnings: what the user should know before going on, a sentence each.
    """

    name: str
    family: str
    config: ModelConfig
    dtype: torch.dtype
    parameters: int
    changes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def import_model(source: str, folder: Path, options: Options) -> Imported:
    """Import `source` (see `open_source`) as the new model folder `folder`.

    Memory stays near one shard plus one tensor. The folder appears whole or not at all.

    Raises:
        UserError: `folder` exists, or the source is damaged or has something that MiMo's
            architecture lacks; nothing is written then.
    """
    check_new(folder)
    opened = open_source(source)
    family = read_family(opened.config, opened.own, source)
    check_stored(family, opened.shapes, source)
    tokenizer = opened.tokenizer()
    _check_options(options, family, source)
    config = _target_config(family, options)
    dtype = options.dtype or opened.dtype
    shapes = dict(tensor_shapes(config))
    report = Imported(opened.name, family.name, config, dtype, sum(map(math.prod, shapes.values())))
    _note_changes(report, opened, family, options, tokenizer)
    reader = _Reader(opened, family, config, options)
    with (
        new_dir(folder) as partial,
        Progress(
            "import", tensor_count(config), every=max(1, tensor_count(config) // 5)
        ) as progress,
    ):

        def read(name: str) -> Tensor:
            tensor = reader.read(name)
            progress.step(reader.count)
            return tensor

        write_folder(
            partial, config, read, dtype, tokenizer, options.max_shard_bytes, opened.endings()
        )
        opened.copy_papers(partial)
        if config.num_nextn_predict_layers and tokenizer and tokenizer.turn_start_id is not None:
            recipe = _recipe(report, folder.resolve(), fresh=options.add_mtp)
            (partial / RECIPE).write_text(recipe, encoding="utf-8")
        (partial / "README.md").write_text(_card(report), encoding="utf-8")
    return report


class _Reader:
    """The tensors of the new folder, made from those of the source."""

    def __init__(
        self, source: Source, family: Family, config: ModelConfig, options: Options
    ) -> None:
        self._source, self._family, self._options = source, family, options
        self._fresh = FreshMTP(config, self._trunk)
        self.count = 0

    def read(self, name: str) -> Tensor:
        """The tensor of a published name; checked where only values can tell."""
        self.count += 1
        if name.startswith(MTP) and name not in self._source.shapes:
            part = name.removeprefix(MTP).split(".", 1)[1]
            return self._fresh.tensor(part)
        tensor = self._trunk(name)
        if name.startswith(MTP) and name.endswith("input_proj.weight"):
            return tensor if self._options.mtp_order == "hidden_first" else swap_halves(tensor)
        return tensor

    def _trunk(self, name: str) -> Tensor:
        if name == HEAD and self._family.tied:
            return self._tied_head()
        if name.endswith(BIASES) and name not in self._source.shapes:
            return torch.zeros(self._source.shapes[name.replace(".bias", ".weight")][:1])
        return self._source.read(name)

    def _tied_head(self) -> Tensor:
        embedding = self._source.read(EMBEDDING)
        stored = self._source.shapes.get(HEAD)
        if stored and not torch.equal(embedding, self._source.read(HEAD)):
            raise UserError(
                f"{self._source.name}: tie_word_embeddings is true, but lm_head.weight is stored "
                "and differs from the embedding: one of the two is wrong"
            )
        return embedding


def swap_halves(weight: Tensor) -> Tensor:
    """`input_proj` [D, 2D] from embedding-first to hidden-first, or back."""
    first, second = weight.chunk(2, dim=1)
    return torch.cat([second, first], dim=1)


def _check_options(options: Options, family: Family, source: str) -> None:
    layers = family.config.num_nextn_predict_layers
    if options.add_mtp and layers:
        raise UserError(f"{source} has an MTP layer already: leave out --add-mtp")
    if not layers and options.mtp_order != "hidden_first":
        raise UserError(f"{source} has no MTP layer whose input could be in another order")
    if not layers and options.mtp_hidden and not options.add_mtp:
        raise UserError(f"{source} has no MTP layer that reads anything: leave out --mtp-hidden")


def _target_config(family: Family, options: Options) -> ModelConfig:
    changes: dict[str, object] = {}
    if options.add_mtp:
        changes["num_nextn_predict_layers"] = 1
    if options.mtp_hidden:
        changes["mtp_hidden"] = options.mtp_hidden
    return family.config.model_copy(update=changes)


def _note_changes(
    report: Imported,
    source: Source,
    family: Family,
    options: Options,
    tokenizer: Tokenizer | None,
) -> None:
    config, note = report.config, report.changes.append
    if family.tied:
        extra = config.vocab_size * config.hidden_size / 1e6
        note(f"embedding and head were one matrix; they are two equal ones now (+{extra:.1f} M)")
    if not family.biases:
        note("q, k and v had no bias; they have one now, all zero")
    if options.mtp_order == "embedding_first":
        note("the halves of the MTP layers' input_proj are swapped: hidden state first")
    if options.add_mtp:
        note("a fresh MTP layer, made from the last trunk layer, is added: train it")
    kind = dtype_name(report.dtype)
    if torch.promote_types(source.dtype, report.dtype) != report.dtype:
        note(f"weights are rounded to {kind}; they were {source.stored_as}")
    elif _STORED[report.dtype] != source.stored_as:
        note(f"weights were {source.stored_as}; {kind} holds their values exactly")
    if source.prefix:
        report.warnings.append(
            f"the original begins every text with {source.prefix}, openmimo does not: expect "
            "somewhat worse answers until it is trained on"
        )
    if tokenizer is not None and tokenizer.turn_start_id is None:
        report.warnings.append(
            "the tokenizer has no <|im_start|>: the model can be exported, not chat or be trained"
        )
    if tokenizer is None:
        report.warnings.append("there is no tokenizer: the model cannot chat or be trained on text")
    if not config.num_nextn_predict_layers:
        report.warnings.append("there is no MTP layer: --add-mtp gives it one")


def _card(report: Imported) -> str:
    """README.md of an imported folder."""
    lines = [
        f"# {report.name}, imported by openmimo",
        "",
        f"A {report.family} model of {report.parameters:,} parameters in the layout of the public "
        "MiMo-7B folders. It computes what the original computes; its licence is the original's.",
        "",
        *(f"- {sentence}" for sentence in report.changes),
        *(f"- {sentence}" for sentence in report.warnings),
        "",
    ]
    return "\n".join(lines)


class _Start(Config):
    """What a recipe that goes on from an imported model says."""

    extends: str = "smol"
    name: str
    init_from: str
    model: ModelConfig
    mtp_heads: dict[str, Any]
    sft: dict[str, Any]


def _recipe(report: Imported, folder: Path, fresh: bool) -> str:
    """recipe.toml of an imported folder: `mimo speedrun --recipe DIR/recipe.toml` goes on."""
    context = report.config.max_position_embeddings
    start = _Start(
        name=report.name,
        init_from=str(folder),
        model=report.config.model_copy(update={"num_nextn_predict_layers": 1}),
        mtp_heads={
            "tune_first": fresh,
            "layers": max(2, report.config.num_nextn_predict_layers),
            "length": min(512, context),
        },
        sft={"length": min(1024, context)},
    )
    return (
        "# Goes on from this model: mimo speedrun --recipe THIS_FILE --out RUN\n"
        "# What is not set here is as in the preset smol.\n"
    ) + to_toml(start)
