"""How the sandbox's programs are started: as a package of their own, in a bare interpreter."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

_START = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); "
    "from sandbox import {module}; del sys.path[0]; {module}.main(sys.argv[1:])"
)


def python_command(module: str, options: Mapping[str, object]) -> list[str]:
    """The command line of a module of `sandbox/`, whose `main` gets `options` as JSON.

    -I without its -E, so that the hash seed can be fixed: the same program gets the same verdict
    every time.
    """
    flags = ["-s", "-P", "-S", "-B"]
    code = _START.format(module=module)
    return [sys.executable, *flags, "-c", code, str(Path(__file__).parent), json.dumps(options)]
