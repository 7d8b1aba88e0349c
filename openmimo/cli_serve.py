"""The verb serve: a model folder behind OpenAI's API."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from openmimo.errors import UserError

KEY_VARIABLE = "OPENMIMO_API_KEY"


def add_serve_verb(verbs: Any) -> None:
    """Add the verb to argparse's subparsers; it sets `handler`."""
    text = "serve a model with OpenAI's API, and a chat page"
    verb = verbs.add_parser("serve", help=text, description=text)
    add = verb.add_argument
    add("model", metavar="DIR", type=Path, help="a model folder, such as RUN/rl")
    add("--host", default="127.0.0.1", help="(default: 127.0.0.1, this machine alone)")
    add("--port", type=int, default=8000, help="(default: 8000)")
    add("--name", help="of the model, for clients (default: the folder's)")
    add("--api-key", help=f"clients must send it (default: {KEY_VARIABLE}, or none is asked for)")
    add("--device", default="cpu", help="cpu or cuda (default: cpu)")
    add("--slots", type=int, default=16, help="requests generated at once (default: 16)")
    add("--max-length", type=int, help="tokens of prompt and answer (default: the model's context)")
    add("--max-queue", type=int, default=256, help="requests that may wait (default: 256)")
    add("--max-n", type=int, default=16, help="most n of a request (default: 16)")
    add("--max-body-bytes", type=int, default=8_000_000, help="of a request (default: 8000000)")
    text = "tokens to draft in each step, by MTP layers (default: auto, as many as save time)"
    add("--drafts", type=drafts, default="auto", help=text)
    add("--timeout", type=float, default=600, help="seconds for a request (default: 600)")
    add("--drain", type=float, default=30, help="seconds that a stop waits (default: 30)")
    verb.set_defaults(handler=serve)


def drafts(text: str) -> int | str:
    """A number of drafts, or "auto"."""
    return text if text == "auto" else int(text)


def serve(options: argparse.Namespace) -> None:
    """`mimo serve DIR`."""
    if not options.model.is_dir():
        raise UserError(f"no folder {options.model}: name a model folder, such as runs/nano/rl")
    from openmimo.serving.serve import ServeSettings
    from openmimo.serving.serve import serve as run

    settings = ServeSettings(
        host=options.host,
        port=options.port,
        name=options.name,
        # An empty one is refused: whoever gives it means to have a key.
        api_key=os.environ.get(KEY_VARIABLE) if options.api_key is None else options.api_key,
        device=options.device,
        slots=options.slots,
        max_length=options.max_length,
        max_queue=options.max_queue,
        max_samples=options.max_n,
        max_body_bytes=options.max_body_bytes,
        drafts=options.drafts,
        timeout=options.timeout,
        drain=options.drain,
    )
    run(options.model, settings)
