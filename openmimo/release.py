"""The `export` stage: RUN/{base,rl_zero,sft,rl}, the four variants of a run as release folders.

Each has the public MiMo layout (`openmimo.model.checkpoint`) and a model card.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from openmimo.config.base import config_hash
from openmimo.evals.run import VARIANTS
from openmimo.model.checkpoint import load_model, write_model
from openmimo.model_card import model_card
from openmimo.runs import Run, atomic_dir
from openmimo.tokenizer import Tokenizer

if TYPE_CHECKING:
    from openmimo.config.schema import Recipe


def run(recipe: Recipe, run: Run) -> None:
    """Write the release folders, unless they are there and nothing before them has changed.

    Without a finished evaluation the cards say so, and the next export writes them anew.

    Raises:
        UserError: a stage that trains a variant has not finished, or left a damaged file.
    """
    trained = [run.require(name) for name in VARIANTS.values()]
    evaluated = str((run.done("eval") or {}).get("config_hash"))
    stage = run.stage("export", config_hash(recipe.export, *trained, evaluated))
    if stage.is_done() and all((run.dir / variant).is_dir() for variant in VARIANTS):
        return
    for variant in VARIANTS:
        run.interrupt.check()
        export(run.dir, variant, recipe.export.dtype)
    stage.finish()


def export(run: Path, variant: str, dtype: str) -> None:
    """Write one release folder; it appears whole or not at all.

    Args:
        run: the run's folder.
        variant: a key of `VARIANTS`, and the name of the new folder.
        dtype: of the stored weights: "bfloat16", "float16" or "float32".
    """
    stages = run / "stages"
    model = load_model(stages / VARIANTS[variant] / "model")
    tokenizer = Tokenizer.load(stages / "data" / "tokenizer")
    card = model_card(run, variant, model, dtype)
    with atomic_dir(run / variant) as folder:
        write_model(model, folder, getattr(torch, dtype), tokenizer)
        (folder / "README.md").write_text(card, encoding="utf-8")
