"""The verbs that work on model folders instead of runs: import, export and inspect.

Each imports what it needs when it runs, so that `mimo --help` is instant.
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmimo.errors import UserError

if TYPE_CHECKING:
    import torch

    from openmimo.interop.exporting import Model
    from openmimo.interop.importing import Imported

DTYPES = ("bfloat16", "float16", "float32")
FORMS = ("hf", "vllm", "qwen2", "gguf")
MODEL_VERBS = ("import", "export", "inspect")
"""They start anew when they are repeated."""
VARIANTS = ("base", "sft", "rl_zero", "rl")


def _path(text: str) -> Path:
    """A path, `~` expanded where the shell has not."""
    return Path(os.path.expanduser(text))


def add_model_verbs(verbs: Any) -> None:
    """Add the verbs to argparse's subparsers; each sets `handler`."""
    _add_import(verbs)
    _add_export(verbs)
    _add_inspect(verbs)


def _add_import(verbs: Any) -> None:
    text = "bring a MiMo, Qwen2 or Llama model in as a model folder"
    verb = verbs.add_parser("import", help=text, description=text)
    add = verb.add_argument
    add("source", metavar="SOURCE", help="a folder, a .gguf file, or OWNER/NAME[@REVISION]")
    add("folder", metavar="DIR", type=_path, help="the new model folder")
    add("--add-mtp", action="store_true", help="give a model without MTP layers a fresh one")
    add(
        "--mtp-order",
        choices=("hidden_first", "embedding_first"),
        default="hidden_first",
        help="of the halves of the MTP layer's input_proj: MiMo's (default), or Megatron's",
    )
    add(
        "--mtp-hidden",
        choices=("pre_norm", "post_norm"),
        help="what the MTP layer reads: the state before the final norm (default), or after",
    )
    _add_weights_options(verb, "the one that holds every weight exactly")
    verb.set_defaults(handler=import_)


def _add_export(verbs: Any) -> None:
    text = "write a model, or those of a run, for transformers, vLLM, SGLang or llama.cpp"
    verb = verbs.add_parser("export", help=text, description=text)
    add = verb.add_argument
    add("source", metavar="RUN|DIR", type=_path, help="a run's folder or a model folder")
    add("target", metavar="TARGET", type=_path, nargs="?", help="what to write (default: in RUN)")
    add(
        "--to",
        choices=FORMS,
        default="hf",
        help="hf: MiMo's layout (default); vllm: the same without what vLLM and SGLang do not "
        "read; qwen2: the trunk labelled Qwen2; gguf: the trunk as a file for llama.cpp",
    )
    add("--variant", choices=VARIANTS, help="of a run (default: all four)")
    _add_weights_options(verb, "as stored; bfloat16 for a run")
    verb.set_defaults(handler=export)


def _add_inspect(verbs: Any) -> None:
    text = "say what a model folder or GGUF file holds, needs, and does unlike the published ones"
    verb = verbs.add_parser("inspect", help=text, description=text)
    verb.add_argument("model", metavar="DIR|FILE.gguf", type=Path)
    verb.add_argument("--weights", action="store_true", help="read every weight and check it too")
    verb.add_argument("--json", metavar="FILE", help="write it as JSON; - is standard output")
    verb.set_defaults(handler=inspect)


def _add_weights_options(verb: argparse.ArgumentParser, default: str) -> None:
    verb.add_argument("--dtype", choices=DTYPES, help=f"of the weights (default: {default})")
    verb.add_argument(
        "--shard-gb", type=float, default=2.0, help="most gigabytes in a file (default: 2)"
    )


def import_(options: argparse.Namespace) -> None:
    """`mimo import SOURCE DIR`."""
    from openmimo.interop.importing import Options, import_model

    chosen = Options(
        add_mtp=options.add_mtp,
        mtp_order=options.mtp_order,
        mtp_hidden=options.mtp_hidden,
        dtype=_dtype(options.dtype),
        max_shard_bytes=_shard_bytes(options.shard_gb),
    )
    report = import_model(options.source, options.folder, chosen)
    _print_imported(report, options.folder)


def _print_imported(report: Imported, folder: Path) -> None:
    millions = report.parameters / 1e6
    print(f"{report.name} ({report.family}) is now {folder}: {millions:,.1f} M parameters")
    for sentence in report.changes:
        print(f"  - {sentence}")
    for sentence in report.warnings:
        print(f"  ! {sentence}")


def export(options: argparse.Namespace) -> None:
    """`mimo export RUN|DIR [TARGET] --to FORM`."""
    from openmimo.interop.exporting import Model, export_model
    from openmimo.runs import check_new

    if not options.source.is_dir():
        raise UserError(f"no folder {options.source}: name a run or a model folder")
    run = (options.source / "stages").is_dir()
    if options.variant and not run:
        raise UserError(f"{options.source} is one model, not a run: leave out --variant")
    if not run and options.target is None:
        raise UserError("name the TARGET to write as well")
    models = _variants(options) if run else {options.target: Model.from_folder(options.source)}
    if options.to == "gguf":
        models = {_with_suffix(target): model for target, model in models.items()}
    for target in models:
        check_new(target)  # all of them before the first is written
    dtype = _dtype(options.dtype or ("bfloat16" if run else None))
    for target, model in models.items():
        exported = export_model(model, target, options.to, dtype, _shard_bytes(options.shard_gb))
        print(f"wrote {exported.path}")
    for sentence in exported.left_out:
        print(f"  ! left out: {sentence}")
    for sentence in exported.changed:
        print(f"  ! changed: {sentence}")
    for line in usage(options.to, exported.path, exported.drafts):
        print(f"  {line}")


def _variants(options: argparse.Namespace) -> dict[Path, Model]:
    """The chosen models of a run, by where they go."""
    from openmimo.interop.exporting import Model
    from openmimo.model.checkpoint import load_config
    from openmimo.model_card import model_card
    from openmimo.release import PAPERS, TOKENIZER, trained

    run, one = options.source, options.variant
    parent = options.target or run / options.to
    if options.to == "gguf" and not one and parent.suffix == ".gguf":
        raise UserError(f"{parent} is one file, the run has several models: choose a --variant")
    models = {}
    for name in [one] if one else VARIANTS:
        folder = trained(run, name)
        if not folder.is_dir():
            if one:
                raise UserError(f"{run} has no {name} model yet: {folder} is missing")
            continue
        target = options.target if one and options.target else parent / name
        card = model_card(run, name, load_config(folder), options.dtype or "bfloat16")
        models[target] = Model(name, folder, run / TOKENIZER, card, papers=run / PAPERS)
    if not models:
        raise UserError(f"{run} has no trained model yet: run `mimo pretrain` and on")
    return models


def _with_suffix(target: Path) -> Path:
    """By its suffix `mimo import` and llama.cpp's users know a GGUF file."""
    return target if target.suffix == ".gguf" else target.with_name(f"{target.name}.gguf")


def usage(form: str, target: Path, drafts: bool) -> list[str]:
    """How to go on with what was exported: commands for the program it is for."""
    mtp, eagle, path = "", "", shlex.quote(str(target))
    if drafts:
        mtp = """ --speculative-config '{"method": "mtp", "num_speculative_tokens": 1}'"""
        eagle = (
            " --speculative-algorithm EAGLE --speculative-num-steps 1 --speculative-eagle-topk 1"
            " --speculative-num-draft-tokens 2"
        )
    return {
        "hf": [f'AutoModelForCausalLM.from_pretrained("{target}", trust_remote_code=True)'],
        "vllm": [
            f"vllm serve {path} --trust-remote-code{mtp}",
            f"python -m sglang.launch_server --model-path {path} --trust-remote-code{eagle}",
        ],
        "qwen2": [f"vllm serve {path}"],
        "gguf": [f"llama-cli -m {path}"],
    }[form]


def inspect(options: argparse.Namespace) -> None:
    """`mimo inspect DIR`: everything that can be said, then the reason if it cannot be used."""
    import dataclasses
    import json

    from openmimo.interop.inspect import inspect_model
    from openmimo.interop.inspect_text import render

    found = inspect_model(options.model, options.weights)
    if options.json:
        text = json.dumps(dataclasses.asdict(found), indent=2) + "\n"
        if options.json == "-":
            print(text, end="")
        else:
            try:
                Path(options.json).write_text(text, encoding="utf-8")
            except (OSError, ValueError) as error:
                raise UserError(f"cannot write {options.json}: {error}") from error
    if options.json != "-":
        print(render(found), end="")
    if found.faults:
        raise UserError(f"openmimo cannot use {options.model}: {found.faults[0]}")


def _dtype(name: str | None) -> torch.dtype | None:
    if name is None:
        return None
    import torch

    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _shard_bytes(gigabytes: float) -> int:
    if not gigabytes > 0:
        raise UserError(f"--shard-gb is {gigabytes:g}; it must be above 0")
    return int(min(gigabytes, 1e6) * 1e9)
