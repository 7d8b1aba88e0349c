"""From a recipe and overrides to checked settings; every mistake is one line that names its place.

The recipe is a preset's name or a TOML file. A file may start from another one with
``extends = "nano"``: tables are merged, everything else (lists too) is replaced.
"""

import difflib
import importlib.resources
import json
import tomllib
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from openmimo.config.base import NONE, Config, options
from openmimo.errors import UserError

COMMAND_LINE = "command line"

Key = str | int
Keys = tuple[Key, ...]
C = TypeVar("C", bound=Config)


def load_config(
    schema: type[C],
    recipe: str,
    overrides: list[str] | None = None,
    complete: Callable[[dict[str, Any]], None] | None = None,
) -> C:
    """Read ``recipe`` (a preset's name or the path of a TOML file) and apply ``overrides``.

    ``complete`` may add to the settings what follows from them, before they are checked.

    An override is ``rl.learning_rate=1e-4`` or ``--rl.learning-rate 1e-4``; a number in the path
    indexes a list (``pretrain.stages.0.tokens=1e6``). Raises `UserError` for a missing file,
    broken TOML, an unknown key or a value of the wrong type.
    """
    data: dict[str, Any] = {}
    origins: dict[Keys, str] = {}
    for origin, layer in _layers(recipe):
        _merge(data, layer, (), origin, origins)
    for path, text in split_overrides(overrides or []):
        keys = _keys(path)
        _check_known(schema, keys, COMMAND_LINE)
        _assign(data, keys, _parse(text, _annotation(schema, keys)), path)
        origins[keys] = COMMAND_LINE
    if complete:
        complete(data)
    try:
        # Through JSON, because only there "strict" lets a list be a tuple and a string a path.
        return schema.model_validate_json(json.dumps(_spell_out(data, schema)), strict=True)
    except ValidationError as error:
        raise UserError(_explain(error, schema, data, origins)) from None


def preset_names() -> list[str]:
    """The presets that come with the package."""
    folder = importlib.resources.files("openmimo.recipes")
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name[-5:] == ".toml")


def split_overrides(words: list[str]) -> list[tuple[str, str]]:
    """Command-line words as (dotted path, text of the value)."""
    pairs = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, text = word.partition("=")
        if not equals:
            if not word.startswith("--"):
                raise UserError(f"cannot read {word!r}: an override is KEY=VALUE or --KEY VALUE")
            if not queue:
                raise UserError(f"{word} needs a value")
            text = queue.pop(0)
        pairs.append((name.removeprefix("--").replace("-", "_"), text))
    return pairs


def _layers(recipe: str) -> list[tuple[str, dict[str, Any]]]:
    """The recipe's files as (origin, content), the one that all others extend first."""
    layers: list[tuple[str, dict[str, Any]]] = []
    folder = Path()
    name: Any = recipe
    while name is not None:
        origin, folder, content = _read(name, folder)
        if origin in [seen for seen, _ in layers]:
            raise UserError(f"{origin} extends itself, through {layers[-1][0]}")
        name = content.pop("extends", None)
        layers.insert(0, (origin, content))
        if name is not None and not isinstance(name, str):
            raise UserError(f"{origin}: extends must be a preset's name or a path, not {name!r}")
    return layers


def _read(name: str, folder: Path) -> tuple[str, Path, dict[str, Any]]:
    """One TOML file as (origin, its folder, content); a path is relative to ``folder``."""
    if name.endswith(".toml"):
        path = folder / name
        origin, folder = str(path), path.parent
    else:
        path = Path(str(importlib.resources.files("openmimo.recipes") / f"{name}.toml"))
        origin = f"preset {name}"
    try:
        return origin, folder, tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        presets = ", ".join(preset_names())
        raise UserError(
            f"no recipe {name!r}: the presets are {presets}; a file's name ends in .toml"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe {origin}: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{origin} is not valid TOML: {error}") from error


def _merge(
    into: dict[str, Any], layer: dict[str, Any], at: Keys, origin: str, origins: dict[Keys, str]
) -> None:
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value, (*at, key), origin, origins)
        else:
            into[key] = value
            origins[(*at, key)] = origin


def _keys(path: str) -> Keys:
    return tuple(int(key) if key.isdecimal() else key for key in path.split("."))


def _assign(data: dict[str, Any], keys: Keys, value: Any, path: str) -> None:
    """Set one value deep in ``data``; tables on the way are made, list items are not."""
    place: Any = data
    for position, key in enumerate(keys):
        if isinstance(place, list) and not (isinstance(key, int) and key < len(place)):
            raise UserError(f"{path}: there is no item {key}, the list has {len(place)} items")
        if not isinstance(place, list | dict):
            raise UserError(f"{path}: {key} is inside a plain value")
        if position == len(keys) - 1:
            place[key] = value  # type: ignore[index]
        elif isinstance(place, dict):
            place = place.setdefault(key, {})
        else:
            place = place[key]  # type: ignore[index]


def _parse(text: str, annotation: Any) -> Any:
    """The value that ``text`` spells: TOML, or the bare text where text is wanted."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    fits = isinstance(value, str) or type(value) in options(annotation)  # int | Literal["auto"]
    return text if not fits and _wants_text(annotation) else value


def _wants_text(annotation: Any) -> bool:
    return any(
        option is str
        or (typing.get_origin(option) is typing.Literal and isinstance(option.__args__[0], str))
        for option in options(annotation)
    )


def _spell_out(value: Any, annotation: Any) -> Any:
    """What TOML cannot say: "none" for None, and 1e9 as a whole number (of tokens, say)."""
    if isinstance(value, dict):
        return {key: _spell_out(item, _inside(annotation, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [_spell_out(item, _inside(annotation, 0)) for item in value]
    if value == NONE and type(None) in options(annotation):
        return None
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _annotation(schema: type[BaseModel], keys: Keys) -> Any:
    """The type of the setting at ``keys``; None if the schema says nothing about it."""
    found: Any = schema
    for key in keys:
        found = _inside(found, key)
    return found


def _inside(annotation: Any, key: Key) -> Any:
    for option in options(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            field = option.model_fields.get(str(key))
            return field.annotation if field else None
        arguments = typing.get_args(option)
        if arguments and typing.get_origin(option) in (list, tuple, dict):
            return arguments[-1] if typing.get_origin(option) is dict else arguments[0]
    return None


def _check_known(schema: type[BaseModel], keys: Keys, origin: str) -> None:
    if _annotation(schema, keys) is None:
        raise UserError(_unknown(schema, keys, origin))


def _unknown(schema: type[BaseModel], keys: Keys, origin: str) -> str:
    path = _dotted(keys)
    known = list(_all_paths(schema))
    ends = {full.rsplit(".", 1)[-1]: full for full in reversed(known)}
    near = difflib.get_close_matches(path, known, n=1, cutoff=0.75)
    # A right name in the wrong section: look for the last part alone.
    near += [ends[end] for end in difflib.get_close_matches(str(keys[-1]), list(ends), n=1)]
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown setting {path} ({origin}){hint}"


def _all_paths(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        yield prefix + name
        for option in options(field.annotation):
            inner, step = option, ""
            if typing.get_origin(option) in (list, tuple):
                inner, step = option.__args__[0], ".0"
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _all_paths(inner, f"{prefix}{name}{step}.")


def _explain(
    error: ValidationError, schema: type[BaseModel], data: Any, origins: dict[Keys, str]
) -> str:
    """One line for the first fault, and how many more there are."""
    faults = error.errors(include_url=False)
    # An unknown key is often the cause of a missing one, so it goes first.
    fault = min(faults, key=lambda fault: fault["type"] != "extra_forbidden")
    keys = _real_keys(fault["loc"], data, missing=fault["type"] == "missing")
    origin = _origin(keys, origins)
    path = _dotted(keys)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    if fault["type"] == "extra_forbidden":
        return _unknown(schema, keys, origin) + more
    if fault["type"] == "missing":
        return f"{path} is not set, and has no default{more}"
    reason = fault["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if isinstance(fault["input"], dict | list):  # a rule about a whole section
        return f"{path + ': ' if path else ''}{reason} ({origin}){more}"
    return f"{path} is {fault['input']!r} ({origin}): {reason}{more}"


def _real_keys(loc: Keys, data: Any, missing: bool) -> Keys:
    """``loc`` without the names of union members, which pydantic adds and no user wrote."""
    keys: list[Key] = []
    for position, key in enumerate(loc):
        inside_list = isinstance(data, list) and isinstance(key, int)
        if inside_list or (isinstance(data, dict) and key in data):
            keys.append(key)
            data = data[key]
        elif missing and position == len(loc) - 1:
            keys.append(key)
    return tuple(keys)


def _origin(keys: Keys, origins: dict[Keys, str]) -> str:
    for length in range(len(keys), 0, -1):
        if keys[:length] in origins:
            return origins[keys[:length]]
    inside = [origin for place, origin in origins.items() if place[: len(keys)] == keys]
    return inside[-1] if inside else "default"


def _dotted(keys: Keys) -> str:
    return ".".join(map(str, keys))
