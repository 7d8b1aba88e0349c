"""JSON objects out of files that nobody vouches for."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from openmimo.errors import UserError, shown

MAX_CONFIG = 2**20
"""Bytes of a config.json; parsed, JSON can take thirty times as much memory."""


def read_json(path: Path, limit: int = MAX_CONFIG) -> dict[str, Any]:
    """The object in a JSON file of at most `limit` bytes.

    Raises:
        UserError: it is missing, no plain file, too large, not JSON, or no object; or it has a key
            twice, and other readers may take the other value.
    """
    if not os.path.isfile(path):  # opening a pipe would wait forever
        raise UserError(f"cannot read {path}: no such file")
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
        if len(raw) > limit:
            raise UserError(f"{path} has more than {limit:,} bytes: that is no such file")
        return parse_object(raw)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from error


def parse_object(raw: bytes) -> dict[str, Any]:
    """The JSON object in `raw`.

    Raises:
        ValueError: for anything else, for repeated keys, and for half a surrogate pair, which JSON
            can spell and no text can hold: nothing could print or store it.
    """
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeats)
        if re.search(rb"\\u[dD]", raw):
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise ValueError(f"it holds {half}, half a surrogate pair, which is no text") from None
    except RecursionError as error:
        raise ValueError(f"it is nested too deep ({error})") from error
    if not isinstance(content, dict):
        raise ValueError("it must hold one JSON object")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it has the key {shown(repeated)} twice")
    return content
