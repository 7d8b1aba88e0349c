"""README.md of a release folder: what the model is, how it was made, what it scored.

All numbers come from the files of the run. What a run has not measured is said to be missing.
"""

from __future__ import annotations

import importlib.resources
import json
import math
from pathlib import Path
from typing import Any

import jinja2

from openmimo.config.schema import ModelConfig
from openmimo.errors import REDO, UserError
from openmimo.metrics import read_metrics
from openmimo.model.layout import MTP, tensor_shapes

TITLES = {"base": "Base", "rl_zero": "RL-Zero", "sft": "SFT", "rl": "RL"}

# The stages behind each variant, in order.
_LINEAGE = {
    "base": ("pretrain", "mtp_heads"),
    "rl_zero": ("pretrain", "mtp_heads", "rl_zero"),
    "sft": ("pretrain", "mtp_heads", "sft"),
    "rl": ("pretrain", "mtp_heads", "sft", "rl"),
}


def model_card(run: Path, variant: str, config: ModelConfig, dtype: str) -> str:
    """The card of `variant` ("base", "rl_zero", "sft" or "rl") as Markdown.

    Args:
        run: the run's folder.
        variant: which one of its four models.
        config: that model's sizes.
        dtype: of the weights in the release folder.

    Raises:
        UserError: a results or metrics file of the run is damaged.
    """
    results = _read_json(run / "stages" / "eval" / "results.json")
    metrics = {name: _read_metrics(run, name) for name in _LINEAGE[variant]}
    done = {name: _read_json(run / "stages" / name / "done.json") for name in metrics}
    title, own = TITLES[variant], results.get("variants", {}).get(variant, {})
    sizes = {name: math.prod(shape) for name, shape in tensor_shapes(config)}
    mtp = sum(size for name, size in sizes.items() if name.startswith(MTP))
    values = {
        "title": title,
        "folder": variant,
        "parameters": {"trunk": sum(sizes.values()) - mtp, "mtp": mtp},
        "layers": config.num_nextn_predict_layers,
        "mtp_hidden": config.mtp_hidden,
        "dtype": dtype,
        "start": done["pretrain"].get("init_from"),
        "recipe": [_describe(name, metrics[name], done[name]) for name in metrics],
        "pretraining": _last_of_each_stage(metrics["pretrain"]),
        "sources": _read_json(run / "stages" / "data" / "stats.json").get("sources", {}),
        "scores": _by_title(results.get("variants", {})) if own else {},
        "parts": {**own.get("by_domain", {}), **own.get("by_tier", {})},
        "sampling": results.get("sampling", {}),
        "mtp": results.get("mtp", {}).get(variant),
    }
    try:
        return _template().render(values)
    except jinja2.UndefinedError as error:
        raise UserError(
            f"a file in {run / 'stages'} lacks a number of the {title} card ({error}): {REDO}"
        ) from error


def _describe(stage: str, rows: list[dict[str, Any]], done: dict[str, Any]) -> str:
    """One line on what a stage did, from the last record of its metrics and its done.json."""
    last = rows[-1] if rows else {}
    tokens = f"{last['tokens']:,} tokens" if "tokens" in last else "tokens not recorded"
    steps = f"{last['step']:,} steps" if last else "steps not recorded"
    return {
        "pretrain": _describe_start(done.get("init_from"), tokens if rows else None),
        "mtp_heads": f"{_describe_heads(done)}, the rest frozen: {tokens}.",
        "sft": f"Supervised fine-tuning on worked solutions, MTP layers too: {tokens}.",
        "rl_zero": "Reinforcement learning from Base on verified answers (GRPO), MTP layers "
        f"frozen: {steps}.",
        "rl": "Reinforcement learning from SFT on verified answers (GRPO), MTP layers frozen: "
        f"{steps}.",
    }[stage]


def _describe_start(start: str | None, tokens: str | None) -> str:
    """start: the folder of `init_from`; tokens: None if there was no pre-training."""
    if start is None:
        return f"Pre-training from nothing, with one MTP layer: {tokens or 'tokens not recorded'}."
    further = f"; pre-training went on, with one MTP layer: {tokens}" if tokens else ""
    return f"Started from the imported model `{start}`{further}."


def _describe_heads(done: dict[str, Any]) -> str:
    if not done.get("tune_first"):
        text = "The MTP layer copied; the copies tuned to draft further ahead"
    elif done["layers"] == 1:
        text = "The MTP layer tuned"
    else:
        text = "The MTP layer copied; it and the copies tuned"
    return f"{text} on the model's own answers" if done.get("generations") else text


def _last_of_each_stage(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({row["stage"]: row for row in rows}.values())


def _by_title(variants: dict[str, Any]) -> dict[str, Any]:
    return {title: variants[name] for name, title in TITLES.items() if name in variants}


def _template() -> jinja2.Template:
    source = importlib.resources.files("openmimo") / "model_card.md.j2"
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["percent"] = lambda share: f"{100 * share:.1f}"
    environment.filters["count"] = lambda number: f"{number:,.0f}"
    return environment.from_string(source.read_text(encoding="utf-8"))


def _read_metrics(run: Path, stage: str) -> list[dict[str, Any]]:
    path = run / "stages" / stage / "metrics.jsonl"
    try:
        return read_metrics(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): {REDO}") from error


def _read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty if there is no such file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): {REDO}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold one JSON object: {REDO}")
    return content
