"""How much memory `mimo import` and `mimo export` need for a large model: one shard and one tensor.

    python benchmarks/import_memory.py --gb 3 --shard-gb 0.5 --json -

Generates a random Qwen2 folder of that size, imports it and exports it again, each in a process of
its own, and reads their peak resident memory. What a process needs for an almost empty model
(Python, torch) is subtracted. All weights are compared bit for bit.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from openmimo.config.schema import ModelConfig
from openmimo.model.folder import write_weights
from openmimo.model.layout import tensor_shapes
from openmimo.model.published import as_qwen2, to_published
from openmimo.model.tensors import open_weights

GB = 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=3.0, help="size of the model (default: 3)")
    parser.add_argument("--shard-gb", type=float, default=0.5, help="of a file (default: 0.5)")
    parser.add_argument("--dir", type=Path, help="where to work (default: the temporary folder)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - is stdout")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        figures = measure(Path(folder), options.gb, options.shard_gb)
    text = json.dumps(figures, indent=2)
    if options.json and options.json != "-":
        Path(options.json).write_text(text + "\n")
    else:
        print(text)


def measure(work: Path, gb: float, shard_gb: float) -> dict[str, Any]:
    config = shape(gb)
    tensors = dict(tensor_shapes(config))
    write_source(work / "source", config, int(shard_gb * GB))
    write_source(work / "small", shape(0.001), GB)
    base, _ = run("import", work / "small", work / "small-in", "--shard-gb", str(shard_gb))
    peak, seconds = run("import", work / "source", work / "in", "--shard-gb", str(shard_gb))
    out_peak, out_seconds = run(
        "export", work / "in", work / "out", "--to", "hf", "--shard-gb", str(shard_gb)
    )
    source, out = open_weights(work / "source"), open_weights(work / "out")
    equal = all(torch.equal(source.read(name), out.read(name)) for name in tensors)
    return {
        "model_gb": sum(map(math.prod, tensors.values())) * 2 / GB,
        "shard_gb": shard_gb,
        "largest_tensor_gb": max(map(math.prod, tensors.values())) * 2 / GB,
        "process_alone_gb": base,
        "import_peak_gb": peak - base,
        "export_peak_gb": out_peak - base,
        "import_seconds": seconds,
        "export_seconds": out_seconds,
        "bit_equal_after_import_and_export": equal,
    }


def shape(gb: float) -> ModelConfig:
    """A trunk of about this size in bfloat16, wide for its depth as large models are."""
    hidden = max(16, int((gb * GB / 2 / 20 / 13) ** 0.5) // 16 * 16)
    return ModelConfig(
        vocab_size=2048,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=20,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=hidden // 16 // 2 * 2,
        max_position_embeddings=4096,
        num_nextn_predict_layers=0,
    )


def write_source(folder: Path, config: ModelConfig, shard_bytes: int) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    shapes = dict(tensor_shapes(config))
    write_weights(
        folder,
        shapes,
        lambda name: torch.empty(shapes[name], dtype=torch.bfloat16).normal_(generator=generator),
        torch.bfloat16,
        shard_bytes,
    )
    published = as_qwen2(to_published(config, "bfloat16"))
    (folder / "config.json").write_text(json.dumps(published))


# Read inside, at the end: ru_maxrss of a child begins with what its parent had when it forked.
CHILD = """
import re, sys
from openmimo.cli import main
code = main(sys.argv[2:])
open(sys.argv[1], "w").write(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
sys.exit(code)
"""


def run(*arguments: Any) -> tuple[float, float]:
    """Peak memory in GB and seconds of one `mimo` command."""
    began = time.monotonic()
    with tempfile.NamedTemporaryFile("r") as file:
        command = [sys.executable, "-c", CHILD, file.name, *map(str, arguments)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return int(file.read()) * 1024 / GB, time.monotonic() - began


if __name__ == "__main__":
    main()
