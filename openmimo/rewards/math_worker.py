"""Math-Verify in a process of its own: `python -m openmimo.rewards.math_worker`.

Math-Verify guards itself with SIGALRM, which works in main threads only and fails silently
elsewhere; here its alarms are off and the parent kills the process instead.
"""

import json
import os
import resource
import struct
import sys

from openmimo.judge.sandbox.lockdown import die_with_parent

_MEMORY_BYTES = 2 << 30


def equivalent(gold: str, answer: str) -> bool:
    """Whether Math-Verify finds the normalised `answer` equal to the normalised `gold`.

    May run for ever. ValueError if the gold answer itself cannot be parsed.
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    configurations = [LatexExtractionConfig(), ExprExtractionConfig()]

    def parsed(text: str) -> list[object]:
        boxed = f"\\boxed{{{text}}}"
        result: list[object] = parse(boxed, configurations, parsing_timeout=None)
        return result

    gold_values = parsed(gold)
    if not gold_values:
        raise ValueError(f"Math-Verify cannot parse the reference answer {gold!r}")
    return bool(verify(gold_values, parsed(answer), timeout_seconds=None))


def _respond(request: bytes) -> dict[str, object]:
    gold, answer = json.loads(request)
    try:
        return {"equal": equivalent(gold, answer)}
    except Exception as error:  # a library's bug on odd input must not end the worker
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def main() -> None:
    """Answer `<I` length + JSON [gold, answer] with the same framing, until input closes."""
    # The parent's pid comes as an argument: asked here, it could already be that of init.
    die_with_parent(int(sys.argv[1]))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    equivalent("1", "1")  # imports sympy, half a second, before the first real request
    message = b"{}"
    while True:
        replies.write(struct.pack("<I", len(message)) + message)
        replies.flush()
        header = requests.read(4)
        if len(header) < 4:
            return
        message = json.dumps(_respond(requests.read(*struct.unpack("<I", header)))).encode()


if __name__ == "__main__":
    main()
