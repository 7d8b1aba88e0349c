"""How a benchmark hands over its figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write(figures: dict[str, Any], target: str) -> None:
    """Write figures as JSON to the file `target`; `-` is standard output."""
    text = json.dumps(figures, indent=2) + "\n"
    if target == "-":
        print(text, end="")
    else:
        Path(target).write_text(text, encoding="utf-8")
