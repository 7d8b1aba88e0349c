"""The `release` stage: RUN/{base,rl_zero,sft,rl}, the four variants of a run as release folders.

Each has the public MiMo layout (`openmimo.model.checkpoint`) and a model card.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from openmimo.config.base import config_hash
from openmimo.evals.run import VARIANTS
from openmimo.model.checkpoint import open_model
from openmimo.model.folder import copy_papers, write_folder
from openmimo.model_card import model_card
from openmimo.runs import Run, atomic_dir
from openmimo.tokenizer import Tokenizer

if TYPE_CHECKING:
    from openmimo.config.schema import Recipe

TOKENIZER = Path("stages") / "data" / "tokenizer"
PAPERS = Path("stages") / "pretrain" / "papers"
"""Of a run, in its folder; the second has licence and notice of the model it went on from."""


def run(recipe: Recipe, run: Run) -> None:
    """Write the release folders, unless they are there and nothing before them has changed.

    Without a finished evaluation the cards say so, and the next release writes them anew.

    Raises:
        UserError: a stage that trains a variant has not finished, or left a damaged file.
    """
    trained = [run.require(name) for name in VARIANTS.values()]
    evaluated = str((run.done("eval") or {}).get("config_hash"))
    stage = run.stage("release", config_hash(recipe.release, *trained, evaluated))
    if stage.is_done() and all((run.dir / variant).is_dir() for variant in VARIANTS):
        return
    for variant in VARIANTS:
        run.interrupt.check()
        write_variant(run.dir, variant, recipe.release.dtype)
    stage.finish()


def write_variant(run: Path, variant: str, dtype: str) -> None:
    """Write one release folder; it appears whole or not at all.

    Args:
        run: the run's folder.
        variant: a key of `VARIANTS`, and the name of the new folder.
        dtype: of the stored weights: "bfloat16", "float16" or "float32".
    """
    config, files = open_model(trained(run, variant))
    tokenizer = Tokenizer.load(run / TOKENIZER)
    card = model_card(run, variant, config, dtype)
    with atomic_dir(run / variant) as folder:
        write_folder(folder, config, files.read, getattr(torch, dtype), tokenizer)
        copy_papers(run / PAPERS, folder)
        (folder / "README.md").write_text(card, encoding="utf-8")


def trained(run: Path, variant: str) -> Path:
    """Where a run keeps the weights of a variant as they were trained."""
    return run / "stages" / VARIANTS[variant] / "model"
