"""Models by their name on the Hugging Face hub: only weights and text files are ever fetched."""

from __future__ import annotations

import re
from pathlib import Path

from openmimo.errors import UserError

_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)"
    r"(?:/(?P<file>[\w./-]+\.gguf))?"
    r"(?:@(?P<revision>[\w./-]+))?"
)
# No pickles (*.bin, *.pt) and no code (*.py).
_PATTERNS = ["*.safetensors", "*.json", "*.jinja", "merges.txt", "*.md", "LICENSE*", "NOTICE*"]


def is_hub_name(source: str) -> bool:
    """Whether `source` reads OWNER/NAME, OWNER/NAME/FILE.gguf, or either with @REVISION."""
    return _NAME.fullmatch(source) is not None


def download(source: str) -> Path:
    """The local folder (or GGUF file) of a hub model; what is there already is not fetched again.

    Files land in the hub library's own cache; HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE
    work as always. An interrupted download goes on where it was.

    Raises:
        UserError: no such repository, revision or file, no access, or no connection.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    match = _NAME.fullmatch(source)
    if match is None:
        raise UserError(f"{source!r} is no name on the hub: OWNER/NAME or OWNER/NAME@REVISION")
    repo, file, revision = match["repo"], match["file"], match["revision"]
    try:
        if file:
            return Path(hf_hub_download(repo, file, revision=revision))
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_PATTERNS))
    except GatedRepoError as error:
        raise UserError(f"{repo} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"no folder {source} here, and no model {repo} on the hub (or it is private: set "
            "HF_TOKEN)"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{repo} has no revision {revision!r}") from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"no folder {source} here, and the hub cannot be reached: check the connection, or "
            "name a local folder"
        ) from error
    except EntryNotFoundError as error:
        raise UserError(f"{repo} has no file {file}") from error
    except (HfHubHTTPError, OSError) as error:
        first = (str(error).splitlines() or ["unknown"])[0]
        raise UserError(f"cannot download {source}: {first}") from error
