"""The verb curate: raw problem sets into RL data."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openmimo.errors import UserError

if TYPE_CHECKING:
    from openmimo.curation.solver import Solver

EPILOG = (
    "SOURCE is [FORMAT:]FILE; FORMAT is gsm8k, math, mbpp, code_contests or problems (default: "
    "columns prompt, and answer or tests; see --fields). FILE is .jsonl, .json (also .gz) or "
    ".parquet, here or on the hub: hf://datasets/OWNER/NAME/FILE. docs/curation.md tells more."
)


def add_curate_verb(verbs: Any) -> None:
    """Add the verb to argparse's subparsers; it sets `handler`."""
    text = (
        "turn raw problem sets into RL data: deduplicated, decontaminated, verified, not too easy"
    )
    verb = verbs.add_parser("curate", help=text, description=text, epilog=EPILOG)
    add = verb.add_argument
    add("sources", metavar="SOURCE", nargs="+", help="a problem set, see below")
    add("--out", metavar="DIR", type=Path, required=True, help="result and everything dropped")
    add("--against", metavar="FILE", nargs="+", default=[], help="evaluation sets to keep out")
    text = "columns of sources without a format: prompt=question,answer=label"
    add("--fields", metavar="NAME=COLUMN,...", type=fields, default={}, help=text)
    text = "share of 5-grams that makes two problems duplicates (default: 0.8)"
    add("--similarity", type=share, default=0.8, help=text)
    text = "words shared with an evaluation item that give a problem away (default: 16)"
    add("--ngram", type=positive, default=16, help=text)
    text = "a function on a list of questions: the reason to drop, or None, for each"
    add("--filter", metavar="MODULE:FUNCTION", help=text)
    text = "CPU seconds of one test of a program (default: 5)"
    add("--test-seconds", type=positive_number, default=5.0, help=text)
    text = "the model to be trained, such as RUN/sft: drops what is too easy for it"
    add("--model", metavar="DIR", type=Path, help=text)
    text = "a strong model: drops what it cannot solve"
    add("--strong", metavar="DIR", type=Path, help=text)
    text = "what runs that model: native, vllm, or the URL of a vLLM server (default: native)"
    add("--model-engine", metavar="ENGINE", default="native", help=text)
    add("--strong-engine", metavar="ENGINE", default="native", help="likewise")
    add("--rollouts", type=positive, default=16, help="answers of each model (default: 16)")
    add("--max-tokens", type=positive, default=4096, help="of an answer (default: 4096)")
    add("--temperature", type=positive_number, default=1.0, help="(default: 1.0)")
    text = "of `mimo judge-serve`, separated by commas (default: programs are judged here)"
    add("--judge", metavar="URL", default="local", help=text)
    add("--seed", type=int, default=0, help="of the rollouts (default: 0)")
    verb.set_defaults(handler=curate)


def curate(options: argparse.Namespace) -> None:
    """`mimo curate SOURCE... --out DIR`."""
    from openmimo.curation.pipeline import Settings
    from openmimo.curation.pipeline import curate as run
    from openmimo.curation.solver import Sampling
    from openmimo.curation.sources import open_source

    settings = Settings(
        similarity=options.similarity,
        ngram=options.ngram,
        sampling=Sampling(
            rollouts=options.rollouts,
            tokens=options.max_tokens,
            temperature=options.temperature,
            test_seconds=options.test_seconds,
            seed=options.seed,
        ),
        fields=options.fields,
        filter=options.filter,
        strong=solver("strong", options.strong, options.strong_engine),
        own=solver("model", options.model, options.model_engine),
        judge=options.judge,
    )
    sources = [open_source(text) for text in options.sources]
    against = [open_source(text) for text in options.against]
    print(f"wrote {run(sources, against, settings, options.out)} and its funnel.md")


def solver(option: str, folder: Path | None, engine: str) -> Solver | None:
    """The model of an option and what runs it."""
    from openmimo.curation.solver import Solver
    from openmimo.inference.choose import check_engine_name

    check_engine_name(engine)
    if folder is None:
        if engine != "native":
            raise UserError(
                f"--{option}-engine {engine} without --{option}: name the model's folder"
            )
        return None
    if not folder.is_dir():
        raise UserError(f"no model folder {folder}")
    return Solver(folder, engine)


def fields(text: str) -> dict[str, str]:
    """prompt=question,answer=label as a dictionary."""
    from openmimo.curation.formats import Named

    pairs = [part.partition("=") for part in text.split(",")]
    for name, equals, column in pairs:
        if name not in Named.model_fields or not equals or not column:
            known = ", ".join(Named.model_fields)
            raise UserError(f"--fields {text}: write NAME=COLUMN,...; names are {known}")
    return {name: column for name, _, column in pairs}


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def share(text: str) -> float:
    """A number above 0, at most 1."""
    number = positive_number(text)
    if number > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 1")
    return number


def positive_number(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number
