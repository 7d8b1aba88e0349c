"""Problem packages, read as they are: Kattis problem format, and CMS tasks (as IOI publishes).

https://www.kattis.com/problem-package-format/ (legacy and 2023-07-draft), https://cms.readthedocs.io
"""

import itertools
import json
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import yaml

from openmimo.errors import UserError
from openmimo.judge.cases import Checker, Limits, Program, StdioTest, Test
from openmimo.judge.compare import Rule

Folder = Path | zipfile.Path
_CPP = (".cpp", ".cc", ".cxx", ".c")
_CPP_FILES = (*_CPP, ".h", ".hpp")
_KATTIS_MEMORY_MB = 2048
_LARGEST_ZIP = 4 << 30  # bytes, unpacked: all tests are in memory
_DEFAULT_SECONDS = 2.0  # Kattis derives it from the jury's programs, which need to be run for it


@dataclass(frozen=True, slots=True)
class Group:
    """Tests that count together: their score if all pass (of the package's total)."""

    name: str
    score: float
    tests: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Package:
    """A problem's tests with their names, its limits, its groups (subtasks) if it has any, and
    what a C++ solution is compiled with (grader and header)."""

    name: str
    tests: tuple[Test, ...]
    test_names: tuple[str, ...]
    limits: Limits
    groups: tuple[Group, ...] = ()
    graders: tuple[tuple[str, str], ...] = ()

    def program(self, name: str, source: str) -> Program:
        """A solution, by its file's name. UserError for a language that the judge has not."""
        return read_program(name, source, self.graders)


def read_program(name: str, source: str, graders: tuple[tuple[str, str], ...] = ()) -> Program:
    """A program by its file's name; C++ is compiled with `graders`. UserError for others."""
    suffix = Path(name).suffix.lower()
    if suffix == ".py":
        return Program(source, "python")
    if suffix in _CPP:
        return Program(source, "cpp", graders)
    raise UserError(f"{name}: a program must be .py or {', '.join(_CPP)}")


def read_package(path: Path) -> Package:
    """A package, whichever kind it is. UserError if it is none, or interactive.

    `path` is a folder or, for CMS, a zip file.
    """
    try:
        return _read(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, BadZipFile) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: a problem package that cannot be read ({reason})") from error


def _read(path: Path) -> Package:
    if path.suffix == ".zip" and path.is_file():
        with zipfile.ZipFile(path) as archive:
            size = sum(item.file_size for item in archive.infolist())
        if size > _LARGEST_ZIP:
            raise UserError(f"{path} holds {size:,} bytes; at most {_LARGEST_ZIP:,} are unpacked")
        inside = [item for item in zipfile.Path(path).iterdir() if item.is_dir()]
        tasks = [item for item in inside if (item / "problem.json").is_file()]
        if len(tasks) == 1:
            return _read_cms(tasks[0])
    elif (path / "problem.yaml").is_file():
        return _read_kattis(path)
    elif (path / "problem.json").is_file():
        return _read_cms(path)
    raise UserError(f"{path} is no problem package: neither problem.yaml nor problem.json is there")


def _refuse_interactive(name: str, kind: str) -> None:
    raise UserError(
        f"{name} is interactive ({kind}): it needs a program of its own to talk to, which the "
        "judge does not run. Leave it out"
    )


def _read_cms(folder: Folder) -> Package:
    task = json.loads((folder / "problem.json").read_text())
    name = f"{task['code']} ({task['name']})"
    if task["task_type"] != "Batch":
        _refuse_interactive(name, f"task type {task['task_type']}")
    rule = _cms_rule(folder / "checker")
    inputs = sorted((f for f in _files(folder / "tests") if f.name.endswith(".in")), key=_name)
    names = tuple(file.name.removesuffix(".in") for file in inputs)
    tests = tuple(
        StdioTest(file.read_bytes(), (folder / "tests" / f"{stem}.out").read_bytes(), rule)
        for file, stem in zip(inputs, names, strict=True)
    )
    groups = []
    for file in sorted(_files(folder / "subtasks"), key=_name):
        subtask = json.loads(file.read_text())
        members = tuple(names.index(test) for test in subtask["testcases"])
        groups.append(Group(file.name.removesuffix(".json"), float(subtask["score"]), members))
    limits = Limits(
        cpu_seconds=task["time_limit"],
        wall_seconds=3 * task["time_limit"] + 5,
        memory_mb=task["memory_limit"] >> 20,
    )
    graders = _sources(folder / "graders")
    return Package(name, tests, names, limits, tuple(groups), graders)


def _cms_rule(folder: Folder) -> Rule | Checker:
    sources = dict(_sources(folder))
    programs = [name for name in sources if name.endswith(_CPP)]
    if not programs:
        return Rule("tokens")
    source = sources.pop(programs[0])
    return Checker(Program(source, "cpp", tuple(sources.items())), "cms")


def _read_kattis(folder: Path) -> Package:
    problem = _yaml(folder / "problem.yaml")
    name = folder.resolve().name
    kinds = f"{problem.get('type', '')} {problem.get('validation', '')}"
    for kind in ("interactive", "multi-pass", "submit-answer"):
        if kind in kinds:
            _refuse_interactive(name, kind)
    flags = str(problem.get("validator_flags", "")).split()
    files = sorted((folder / "data").rglob("*.in"))
    names = tuple(str(file.relative_to(folder / "data").with_suffix("")) for file in files)
    tests = []
    for file in files:
        own = _settings(file.parent, folder / "data").get("output_validator_flags")
        rule = _kattis_rule(folder, flags if own is None else str(own).split())
        tests.append(StdioTest(file.read_bytes(), file.with_suffix(".ans").read_bytes(), rule))
    limits = problem.get("limits") or {}
    seconds = float(limits.get("time_limit", _DEFAULT_SECONDS))
    memory = int(limits.get("memory", _KATTIS_MEMORY_MB))
    return Package(
        name,
        tuple(tests),
        names,
        Limits(cpu_seconds=seconds, wall_seconds=3 * seconds + 5, memory_mb=memory),
        tuple(_kattis_groups(folder / "data" / "secret", names)),
    )


def _kattis_groups(secret: Path, names: tuple[str, ...]) -> Iterator[Group]:
    for settings in sorted(secret.glob("*/testdata.yaml")):
        group = f"secret/{settings.parent.name}"
        members = tuple(i for i, name in enumerate(names) if name.startswith(f"{group}/"))
        yield Group(group, float(_yaml(settings).get("accept_score", 1)), members)


def _settings(folder: Path, root: Path) -> Mapping[str, Any]:
    """The settings of a folder of tests: its own before those of the folders around it."""
    merged: dict[str, Any] = {}
    for each in (folder, *folder.parents):
        merged = _yaml(each / "testdata.yaml") | merged
        if each == root:
            break
    return merged


def _kattis_rule(folder: Path, flags: list[str]) -> Rule | Checker:
    for name in ("output_validators", "output_validator"):
        sources = {
            file.name: file.read_text()
            for file in sorted((folder / name).rglob("*"))
            if file.name.endswith((*_CPP_FILES, ".py"))
        }
        mains = [file for file in sources if file.endswith((*_CPP, ".py"))]
        if mains:
            source = sources.pop(mains[0])
            program = read_program(mains[0], source, tuple(sources.items()))
            return Checker(program, "kattis", tuple(flags))
    return _default_rule(flags)


def _default_rule(flags: list[str]) -> Rule:
    """Kattis' own comparison: words, in any case, numbers perhaps within a tolerance."""
    tolerances = dict(itertools.pairwise(flags))
    both = tolerances.get("float_tolerance", "0")
    absolute = float(tolerances.get("float_absolute_tolerance", both))
    relative = float(tolerances.get("float_relative_tolerance", both))
    ignore_case = "case_sensitive" not in flags
    if "space_change_sensitive" in flags:
        if absolute or relative:
            raise UserError("a package that asks for exact spaces and for a float tolerance")
        return Rule("exact", ignore_case=ignore_case)
    if absolute or relative:
        return Rule("floats", absolute, relative, whole_numbers=True, ignore_case=ignore_case)
    return Rule("tokens", ignore_case=ignore_case)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        return yaml.safe_load(path.read_text()) or {} if path.is_file() else {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is no YAML: {error}") from error


def _files(folder: Folder) -> list[Folder]:
    return [item for item in folder.iterdir() if item.is_file()] if folder.is_dir() else []


def _name(file: Folder) -> str:
    return file.name


def _sources(folder: Folder) -> tuple[tuple[str, str], ...]:
    files = [file for file in _files(folder) if file.name.endswith(_CPP_FILES)]
    return tuple((file.name, file.read_text()) for file in sorted(files, key=_name))
