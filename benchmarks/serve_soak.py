"""200 clients at once that stream, leave, stall and send rubbish: does `mimo serve` bear it?

    python benchmarks/serve_soak.py runs/nano/rl --seconds 300 --json -

Every completed answer must be what the engine gives for the same seed without a server; at the
end every slot is free, and the process has not grown. Exit code 1 where that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from openmimo.inference.protocol import Request
from openmimo.model.checkpoint import load_release
from openmimo.serving.serve import ServeSettings, build_engine

SLOTS, MAX_LENGTH, TOKENS = 32, 256, 64
SEEDS = 50
PROMPTS = ("What is 12 + 30?", "Hello", "Write a list of numbers:", "naïve €")
OPTIONS = ["--port", "0", "--slots", str(SLOTS), "--max-length", str(MAX_LENGTH)]
LIMITS = ["--max-queue", "150", "--max-body-bytes", "100000"]  # low enough for some to be refused


def main() -> int:
    """Run it; print or write a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--json", default="-", help="a file; - is standard output")
    options = parser.parse_args()
    expected = offline(options.model)
    with tempfile.TemporaryFile() as errors:
        command = [sys.executable, "-m", "openmimo.cli", "serve", str(options.model)]
        server = subprocess.Popen(
            [*command, *OPTIONS, *LIMITS], stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            assert server.stdout is not None
            url = re.search(r"http://\S+", server.stdout.readline())
            if not url:
                raise SystemExit("the server did not start: try `mimo serve` with the folder")
            found = asyncio.run(soak(url[0], server.pid, expected, options))
            server.terminate()
            found["exit_code"] = server.wait(60)
        finally:
            server.kill()
        errors.seek(0)
        found["tracebacks"] = errors.read().count(b"Traceback")
    text = json.dumps(found, indent=2)
    print(text) if options.json == "-" else Path(options.json).write_text(text + "\n")
    faults = ("wrong", "left_running", "exit_code", "tracebacks")
    grown = found["rss_mb"][-1] > 1.1 * found["rss_mb"][1] + 20
    return int(any(found[name] for name in faults) or grown or not found["outcomes"]["right"])


def offline(folder: Path) -> dict[tuple[str, int], str]:
    """The right answer to each prompt with each seed."""
    model, tokenizer = load_release(folder)
    engine = build_engine(model.eval(), tokenizer, ServeSettings(slots=SLOTS), MAX_LENGTH)
    stops = (tokenizer.eos_id, tokenizer.doc_end_id)
    keys = [(prompt, seed) for prompt in PROMPTS for seed in range(SEEDS)]
    requests = [
        Request(number, tokenizer.encode(prompt), TOKENS, seed=seed, stop_ids=stops)
        for number, (prompt, seed) in enumerate(keys)
    ]
    engine.submit(requests)
    answers: dict[tuple[str, int], str] = {}
    while len(answers) < len(keys):
        for done in engine.step():
            assert isinstance(done.request_id, int)
            answers[keys[done.request_id]] = tokenizer.decode(done.token_ids.tolist())
    return answers


async def soak(
    url: str, process: int, expected: dict[tuple[str, int], str], options: argparse.Namespace
) -> dict[str, Any]:
    """All clients until the time is over, then the state of the server."""
    outcomes: Counter[str] = Counter()
    memory = [resident_mb(process)]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        end = time.monotonic() + options.seconds
        clients = [
            asyncio.create_task(client(http, random.Random(n), expected, outcomes, end))
            for n in range(options.clients)
        ]
        while time.monotonic() < end:
            await asyncio.sleep(options.seconds / 10)
            memory.append(resident_mb(process))
        await asyncio.gather(*clients)
        await asyncio.sleep(1)
        metrics = (await http.get("/metrics")).text
    state = dict(
        re.findall(r"^openmimo_(active|waiting|generated_tokens_total) (\S+)", metrics, re.M)
    )
    return {
        "clients": options.clients,
        "seconds": options.seconds,
        "outcomes": dict(outcomes),
        "wrong": outcomes["wrong"],
        "left_running": float(state["active"]) + float(state["waiting"]),
        "tokens": float(state["generated_tokens_total"]),
        "rss_mb": memory,
    }


async def client(
    http: httpx.AsyncClient,
    chance: random.Random,
    expected: dict[tuple[str, int], str],
    outcomes: Counter[str],
    end: float,
) -> None:
    """One after the other, at random: mostly whole streams, sometimes something unkind."""
    kinds = [stream] * 6 + [leave] * 2 + [stall, oversize, malformed]
    while time.monotonic() < end:
        key = chance.choice(PROMPTS), chance.randrange(SEEDS)
        body = {"prompt": key[0], "seed": key[1], "max_tokens": TOKENS, "stream": True}
        try:
            outcomes[await chance.choice(kinds)(http, body, expected[key], chance)] += 1
        except httpx.TransportError as error:
            outcomes[type(error).__name__] += 1


async def stream(
    http: httpx.AsyncClient, body: dict[str, Any], right: str, chance: random.Random
) -> str:
    """Read it all, perhaps slowly."""
    return await read(http, body, right, pause=chance.choice((0, 0, 0.02)))


async def stall(
    http: httpx.AsyncClient, body: dict[str, Any], right: str, chance: random.Random
) -> str:
    """Read nothing for some seconds, then all."""
    return await read(http, body, right, begin=chance.uniform(1, 5))


async def read(
    http: httpx.AsyncClient, body: dict[str, Any], right: str, pause: float = 0, begin: float = 0
) -> str:
    text = ""
    async with http.stream("POST", "/v1/completions", json=body) as reply:
        if reply.status_code == 429:
            await asyncio.sleep(float(reply.headers["Retry-After"]))
            return "429"
        await asyncio.sleep(begin)
        async for line in reply.aiter_lines():
            if line.startswith("data: {"):
                text += json.loads(line[6:])["choices"][0]["text"]
                await asyncio.sleep(pause)
    return "right" if text == right else "wrong"


async def leave(
    http: httpx.AsyncClient, body: dict[str, Any], right: str, chance: random.Random
) -> str:
    """Close the connection after a while, perhaps before the first token."""
    body = {**body, "stream": chance.random() < 0.5, "n": 2}
    try:
        async with asyncio.timeout(chance.uniform(0.01, 1)):
            await http.post("/v1/completions", json=body)
    except TimeoutError:
        return "left"
    return "did not leave"


async def oversize(
    http: httpx.AsyncClient, body: dict[str, Any], right: str, chance: random.Random
) -> str:
    """More than the server takes."""
    body = {**body, "prompt": "a" * chance.randrange(100_000, 2_000_000)}
    return str((await http.post("/v1/completions", json=body)).status_code)


async def malformed(
    http: httpx.AsyncClient, body: dict[str, Any], right: str, chance: random.Random
) -> str:
    """Random bytes, or a part of a body."""
    whole = json.dumps(body).encode()
    content = chance.choice((chance.randbytes(100), whole[: chance.randrange(len(whole))]))
    return str((await http.post("/v1/completions", content=content)).status_code)


def resident_mb(process: int) -> float:
    """Memory of the process, in MB."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return round(int(found[1]) / 1000, 1)


if __name__ == "__main__":
    sys.exit(main())
