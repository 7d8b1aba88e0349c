"""Renders the templates, and writes pages."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from openmimo.errors import UserError
from openmimo.report.tables import number, percent


def page(template: str, values: Mapping[str, Any]) -> str:
    """A page of `templates/`; text is escaped if the template's name has ".html" in it."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("openmimo.report"),
        autoescape=lambda name: name is not None and ".html" in name,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, number=number, cell=_cell, fenced=fenced)
    return environment.get_template(template).render(values)


def _cell(value: Any) -> str:
    """Text of the data in a Markdown table: it must neither end the cell nor be HTML."""
    text = " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("&", "&amp;").replace("<", "&lt;")


def fenced(text: str) -> str:
    """A Markdown code block that no backticks in the text can close."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def write(path: Path, text: str) -> None:
    """Raises UserError if it cannot be written; the old file is there until the new one is."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"cannot write {path} ({error}): free space or fix its rights") from error
