"""What every group of settings has in common, and how settings are written and hashed."""

import hashlib
import json
import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

NONE = "none"  # TOML has no null: this word stands for None in files and on the command line


NEUTRAL = (
    "tokens_per_microbatch",
    "checkpoint_every",
    "activation_checkpointing",
    "compile",
    "head_chunk",
    "collective_timeout",
    "keep_checkpoints",
    "trackers",
    "validate_every",
    "validation_problems",
    "judge",
    "rollouts",
    "ray_engines",
    "ray_cpus",
    "ray_gpus",
    "trace_steps",
)
"""Settings that a stage's result does not depend on, rounding aside: changing them must not redo
the stage."""


class Config(BaseModel):
    """A group of settings: unknown keys are errors, values never change after loading.

    The docstring below a field is its help text.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


@dataclass(frozen=True)
class Setting:
    """One line of `mimo VERB --help`."""

    path: str
    """Dotted name, as an override spells it."""
    value: Any
    """The value in the loaded recipe."""
    help: str


def settings(config: Config, prefix: str = "") -> Iterator[Setting]:
    """Every setting of ``config`` in the order of the schema; lists of groups go by index."""
    for name, field in type(config).model_fields.items():
        value, path = getattr(config, name), f"{prefix}{name}"
        if isinstance(value, Config):
            yield from settings(value, f"{path}.")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Config):
            for index, item in enumerate(value):
                yield from settings(item, f"{path}.{index}.")
        else:
            yield Setting(path, value, " ".join((field.description or "").split()))


def is_neutral(path: str) -> bool:
    """Whether a stage's result does not depend on the setting at this dotted path."""
    return path.rsplit(".", 1)[-1] in NEUTRAL


def options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union type, or the type itself as the only one."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def config_hash(part: BaseModel | dict[str, Any], *upstream: str) -> str:
    """Sixteen hex digits that change when a setting of ``part`` or an ``upstream`` hash changes,
    those of NEUTRAL aside.

    Equal settings give equal hashes in every process and on every machine.
    """
    values = part.model_dump(mode="json") if isinstance(part, BaseModel) else part
    values = {name: value for name, value in values.items() if not is_neutral(name)}
    text = json.dumps([values, *upstream], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def to_toml(config: BaseModel) -> str:
    """``config`` as a TOML file that loads to an equal config."""
    return "\n".join(_table(config.model_dump(mode="json"), "")).strip() + "\n"


def _table(table: dict[str, Any], path: str) -> Iterator[str]:
    """Lines of one table: plain values first, since a TOML header owns every line below it."""
    plain = {key: value for key, value in table.items() if not _has_header(value)}
    for key, value in plain.items():
        yield f"{_key(key)} = {_value(value)}"
    for key, value in table.items():
        inner = f"{path}.{_key(key)}" if path else _key(key)
        if isinstance(value, dict):
            yield from ("", f"[{inner}]")
            yield from _table(value, inner)
        elif key not in plain:
            for item in value:
                yield from ("", f"[[{inner}]]")
                yield from _table(item, inner)


def _has_header(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, dict) for item in value)
    return isinstance(value, dict)


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _value(key)


def _value(value: Any) -> str:
    if value is None:
        return f'"{NONE}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are a subset of TOML's, but JSON leaves DEL alone and TOML forbids it.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(_value(item) for item in value)}]"
    return repr(value)
