"""The command `mimo`: a verb a stage, each imported only when it runs, so that help is instant."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from openmimo.cli_curate import add_curate_verb
from openmimo.cli_judge import add_judge_verbs
from openmimo.cli_models import MODEL_VERBS, add_model_verbs
from openmimo.cli_plan import add_plan_verb, plan
from openmimo.cli_report import add_report_verbs
from openmimo.cli_rollout import add_rollout_verb
from openmimo.cli_serve import add_serve_verb
from openmimo.errors import UserError
from openmimo.torchrun import end_with_torchrun, tell_torchrun

if TYPE_CHECKING:
    from openmimo.config.schema import Recipe
    from openmimo.runs import Run


@dataclass(frozen=True)
class StageVerb:
    """A stage as the command line sees it; its name in the run folder is the verb with ``_``."""

    help: str
    module: str
    """Has ``run(recipe, run, **arguments)``."""
    sections: tuple[str, ...]
    """The settings that it reads: parts of the recipe, or single ones by their dotted path."""
    after: tuple[str, ...] = ()
    """The verbs whose results it reads."""
    arguments: tuple[tuple[str, Any], ...] = ()
    parallel: bool = False
    """Whether several processes may do it together, under torchrun."""


_ROLLOUTS = ("compute.rollouts", "compute.ray_engines", "compute.ray_cpus", "compute.ray_gpus")
_RL = ("rl", "compute.trackers", "compute.judge", "compute.trace_steps", *_ROLLOUTS)

# In the order of `mimo speedrun`.
STAGES = {
    "data": StageVerb(
        "build corpus, tokenizer and problems",
        "openmimo.data.build",
        ("init_from", "data", "sft.responses_per_query"),
    ),
    "pretrain": StageVerb(
        "pre-train Base in three stages, or take the model of init_from",
        "openmimo.training.pretrain",
        ("init_from", "model", "pretrain", "compute"),
        after=("data",),
        parallel=True,
    ),
    "mtp-heads": StageVerb(
        "copy Base's MTP layer and tune the copies, or the layer itself",
        "openmimo.training.mtp_heads",
        ("mtp_heads", "compute"),
        after=("pretrain",),
        parallel=True,
    ),
    "sft": StageVerb(
        "fine-tune Base into SFT",
        "openmimo.training.sft",
        ("sft", "compute"),
        after=("mtp-heads",),
        parallel=True,
    ),
    "difficulty": StageVerb(
        "measure how hard each test of the RL problems is",
        "openmimo.rl.difficulty",
        (
            "rl.problems",
            "rl.max_prompt_tokens",
            "rl.levels",
            "rl.level_clustering",
            "rl.level_samples",
            "rl.test_seconds",
            "rl.test_memory_mb",
            "rl.max_new_tokens",
            "compute.judge",
            *_ROLLOUTS,
        ),
        after=("mtp-heads", "sft"),
    ),
    "rl-zero": StageVerb(
        "train RL-Zero from Base",
        "openmimo.rl.train",
        _RL,
        after=("difficulty",),
        arguments=(("variant", "rl_zero"),),
    ),
    "rl": StageVerb(
        "train RL from SFT",
        "openmimo.rl.train",
        _RL,
        after=("difficulty",),
        arguments=(("variant", "rl"),),
    ),
    "eval": StageVerb(
        "score the four variants",
        "openmimo.evals.run",
        ("eval", "rl.test_seconds", "rl.test_memory_mb", "compute.judge", *_ROLLOUTS),
        after=("rl-zero", "rl"),
    ),
    "release": StageVerb(
        "write the four release folders", "openmimo.release", ("release",), after=("eval",)
    ),
}

DESCRIPTION = "Train, evaluate and use a MiMo: an open implementation of the MiMo-7B recipe."
EPILOG = "`mimo VERB --help` lists the settings that a verb reads."
OVERRIDES = "Any setting may follow, as `rl.learning_rate=1e-4` or `--rl.learning-rate 1e-4`."


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code is 0, 2 for a mistake of the user's, 130 for Ctrl-C,
    141 if the reader of its output has left."""
    try:
        run_verb(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read the output has left, as `head` does: that is no fault to report.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        verb = next(iter(sys.argv[1:] if arguments is None else arguments), "")
        if os.environ.get("RANK", "0") != "0":
            return 130
        again = (
            "nothing was written"
            if verb in (*MODEL_VERBS, "plan", "serve", "judge", "judge-serve", "trace", "chat")
            else "the same command goes on from here"
        )
        print(f"mimo: stopped; {again}", file=sys.stderr)
        return 130
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        where = f"rank {rank}: " if (rank := os.environ.get("RANK")) else ""
        line = f"mimo: error: {where}{' '.join(message.splitlines())}"
        print(line, file=sys.stderr, flush=True)
        tell_torchrun(line)
        return 2
    return 0


def explain(error: Exception) -> str | None:
    """What the user did or can do about ``error``; None if it is a bug and needs its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left{_at(error)}: free some and repeat the command, it goes on from here"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"no permission to write or read{_at(error)}"
    if type(error).__name__ == "SafetensorError":  # by name: importing it here would cost time
        return f"a weights file is corrupt ({error}): delete its folder and repeat the command"
    return None


def _at(error: OSError) -> str:
    return f" for {error.filename}" if error.filename else ""


def run_verb(arguments: list[str]) -> None:
    end_with_torchrun()
    parser = make_parser()
    options, overrides = parser.parse_known_args(arguments)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        check_parallel(options.verb)
    if options.verb is None:
        parser.print_help()
    elif options.verb in STAGES or options.verb == "speedrun":
        if options.help:
            print_settings(options, overrides)
        else:
            train(options, overrides)
    elif options.verb == "plan":
        plan(options, *load_recipe(options, overrides))
    elif overrides:
        if options.verb == "export" and options.target is None and overrides[0][:1] != "-":
            # argparse takes both positional arguments where it meets the first.
            raise UserError(f"write TARGET beside RUN|DIR, before the options: {overrides[0]!r}")
        raise UserError(f"mimo {options.verb} takes no {overrides[0]!r}")
    elif "handler" in options:
        options.handler(options)
    else:
        chat(options)


def check_parallel(verb: str | None) -> None:
    """Raise UserError unless several processes may do `verb` together."""
    parallel = [name for name, stage in STAGES.items() if stage.parallel]
    if verb not in parallel:
        raise UserError(
            f"mimo {verb or ''} works in one process: start it without torchrun; only "
            f"{', '.join(parallel)} train on several"
        )


class Parser(argparse.ArgumentParser):
    """Faults end like all others, and an abbreviation never hides a mistyped setting."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def make_parser() -> Parser:
    """All verbs. The stages' help is printed by `print_settings`, not by argparse."""
    parser = Parser(prog="mimo", description=DESCRIPTION, epilog=EPILOG)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")

    stages = {"speedrun": "all stages below and the report"}
    stages |= {name: stage.help for name, stage in STAGES.items()}
    for name, text in stages.items():
        _add_run_options(
            verbs.add_parser(name, help=text, description=text, epilog=OVERRIDES, add_help=False)
        )

    add_plan_verb(verbs, epilog=OVERRIDES)
    add_model_verbs(verbs)
    add_serve_verb(verbs)
    add_curate_verb(verbs)
    add_judge_verbs(verbs)
    add_report_verbs(verbs)
    add_rollout_verb(verbs)

    talk = verbs.add_parser("chat", help="talk to a model in the terminal")
    talk.add_argument("model", metavar="MODEL", type=Path, help="a release folder, such as RUN/rl")
    talk.add_argument("--system", default="", help="system prompt (default: empty, as MiMo's)")
    talk.add_argument("--temperature", type=float, default=0.6, help="0 is greedy (default: 0.6)")
    talk.add_argument("--top-p", type=float, default=0.95, help="(default: 0.95)")
    talk.add_argument("--max-tokens", type=int, default=512, help="an answer (default: 512)")
    talk.add_argument("--seed", type=int, default=0, help="(default: 0)")
    return parser


def _add_run_options(verb: argparse.ArgumentParser) -> None:
    add = verb.add_argument
    add("--out", metavar="RUN", type=Path, help="the run's folder (default: runs/RECIPE)")
    add(
        "--recipe",
        metavar="NAME|FILE",
        help="a preset or a TOML file (default: the run's own config.toml, else nano)",
    )
    add("--smoke", action="store_true", help="the preset's small twin, to see that all works")
    add("--seed", metavar="N", help="short for seed=N")
    add("--force", action="store_true", help="do it again although it is done")
    add("-h", "--help", action="store_true", help="show this and the settings")
    verb.set_defaults(parser=verb)


def train(options: argparse.Namespace, overrides: list[str]) -> None:
    """One stage, or all of them and the report."""
    from openmimo.config.base import to_toml
    from openmimo.runs import Run, atomic_write
    from openmimo.world import World

    folder, recipe = load_recipe(options, overrides)
    whole = options.verb == "speedrun"
    if whole and options.force:
        raise UserError("speedrun takes no --force: name another --out, or force one stage")
    if not folder.exists() and not whole and STAGES[options.verb].after:
        raise UserError(f"no run {folder}: begin with `mimo data` or `mimo speedrun`")
    began = time.monotonic()
    timeout = recipe.compute.collective_timeout
    with World.from_environment(timeout) as world, Run(folder, world) as run:
        if not whole:
            check_stages_before(options.verb, recipe, run)
        world.barrier()  # all have read the settings of before
        if world.main:
            atomic_write(run.dir / "config.toml", to_toml(recipe))
        if options.force and world.main:
            # Its settings are the same, so nothing else would tell later stages that they are old.
            for name in (name for name in STAGES if options.verb in (name, *stages_before(name))):
                run.set_aside(name.replace("-", "_"), f"of --force {options.verb}")
        world.barrier()
        for name in STAGES if whole else [options.verb]:
            run_stage(name, recipe, run)
    if whole:
        from openmimo.report import render_report

        print(f"report: {render_report(run.dir).html}")
        print(f"speedrun: {time.monotonic() - began:.0f} s")


def stages_before(name: str) -> set[str]:
    """Every stage that `name` depends on."""
    direct = STAGES[name].after
    return {*direct, *(earlier for stage in direct for earlier in stages_before(stage))}


def check_stages_before(name: str, recipe: Recipe, run: Run) -> None:
    """Raise UserError if a finished stage before this one was made with other settings.

    Else the run's config.toml would show settings that nothing was made with.
    """
    from openmimo.config.base import is_neutral, settings
    from openmimo.config.load import load_config
    from openmimo.config.schema import Recipe

    saved = run.dir / "config.toml"
    if not saved.is_file():
        return
    then, now = (
        {setting.path: setting.value for setting in settings(each)}
        for each in (load_config(Recipe, str(saved)), recipe)
    )
    changed = sorted(path for path in then.keys() | now.keys() if then.get(path) != now.get(path))
    for stage in (stage for stage in STAGES if stage in stages_before(name)):
        used = [path for path in changed if reads(stage, path) and not is_neutral(path)]
        if used and run.done(stage.replace("-", "_")):
            raise UserError(
                f"the {stage} stage of {run.dir} was made with another {used[0]}: leave it as it "
                "is, redo all with `mimo speedrun`, or name another --out"
            )


def reads(stage: str, path: str) -> bool:
    """Whether a stage reads the setting at a dotted path."""
    return any(
        path == part or path.startswith(f"{part}.") for part in (*STAGES[stage].sections, "seed")
    )


def load_recipe(options: argparse.Namespace, overrides: list[str]) -> tuple[Path, Recipe]:
    """The run's folder and its checked settings."""
    from openmimo.config.load import load_config
    from openmimo.config.schema import Recipe
    from openmimo.training.start import check_start, take_model

    if options.recipe == "":
        raise UserError("--recipe is empty: name a preset or a TOML file")
    name = options.recipe or "nano"
    if options.smoke:
        if name.endswith(".toml"):
            raise UserError("--smoke goes with a preset, not with a file")
        name += "-smoke"
    folder = options.out or Path("runs") / Path(name).stem
    saved = folder / "config.toml"
    if not options.recipe and not options.smoke and saved.is_file():
        name = str(saved)
    if options.seed is not None:
        overrides = [*overrides, f"seed={options.seed}"]
    recipe = load_config(Recipe, name, overrides, complete=take_model)
    check_start(recipe)
    return folder, recipe


def run_stage(name: str, recipe: Recipe, run: Run) -> None:
    """Do one stage unless it is done, and say how long it took.

    A stage that was asked to stop saves what it has and returns without being done.
    """
    import importlib

    stage, folder = STAGES[name], name.replace("-", "_")
    began, before = time.monotonic(), run.done(folder)
    importlib.import_module(stage.module).run(recipe, run, **dict(stage.arguments))
    [stopped] = run.world.any(run.interrupt.requested)
    if stopped:
        raise KeyboardInterrupt
    if not run.world.main:
        return
    if before == run.done(folder):
        print(f"{name}: done, skipped", flush=True)
    else:
        print(f"{name}: {time.monotonic() - began:.1f} s", flush=True)


def chat(options: argparse.Namespace) -> None:
    if not options.model.is_dir():
        raise UserError(f"no folder {options.model}: name a release folder, such as runs/nano/rl")
    from openmimo.inference.chat import chat as talk

    talk(
        options.model,
        system=options.system,
        temperature=options.temperature,
        top_p=options.top_p,
        max_tokens=options.max_tokens,
        seed=options.seed,
    )


def print_settings(options: argparse.Namespace, overrides: list[str]) -> None:
    """A verb's --help: its options, and the settings that it reads with the recipe's values."""
    import textwrap

    from openmimo.config.base import settings

    options.parser.print_help()
    _, recipe = load_recipe(options, overrides)
    whole = options.verb not in STAGES
    print("\nvalues in this recipe:")
    for setting in settings(recipe):
        if whole or reads(options.verb, setting.path):
            print(f"  {setting.path} = {setting.value}")
            print(textwrap.indent(textwrap.fill(setting.help, 88), "      "))


if __name__ == "__main__":
    sys.exit(main())
