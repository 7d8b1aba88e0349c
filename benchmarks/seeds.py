"""The speedrun with several seeds: does every claim hold, and by how much?

    python benchmarks/seeds.py --seeds 0 1 2 --out runs/seeds --json -

A run that is finished is not repeated, so an interrupted series goes on. Prints the table of
docs/results.md to standard error.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

VARIANTS = ("base", "rl_zero", "sft", "rl")


def row(report: dict[str, Any], seed: int) -> dict[str, Any]:
    """One seed's figures; gains are in points of pass@1."""
    variants = {name: report["variants"][name] for name in VARIANTS}
    rate = {name: 100 * variants[name]["pass_at_1"] for name in VARIANTS}

    def apart(low: str, high: str) -> bool:
        return bool(variants[low]["high"] < variants[high]["low"])

    return {
        "seed": seed,
        "variants": {
            name: {key: v[key] for key in ("pass_at_1", "low", "high", "n")}
            for name, v in variants.items()
        },
        "rl_over_sft": round(rate["rl"] - rate["sft"], 1),
        "rl_zero_over_base": round(rate["rl_zero"] - rate["base"], 1),
        "intervals_apart": apart("sft", "rl") and apart("base", "rl_zero"),
        "rl_is_best": rate["rl"] == max(rate.values()),
        "mtp_acceptance": report["mtp_acceptance"],
        "seconds": report["seconds"],
        "peak_memory_gb": report["peak_memory_gb"],
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| seed | Base | RL-Zero | SFT | RL | RL - SFT | RL-Zero - Base | MTP acceptance "
        "| minutes | memory GB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        cells = [
            "{:.1f} ({:.1f}-{:.1f})".format(*(100 * v[k] for k in ("pass_at_1", "low", "high")))
            for v in r["variants"].values()
        ]
        acceptance = " / ".join(f"{100 * a:.0f} %" for a in r["mtp_acceptance"])
        lines.append(
            f"| {r['seed']} | {' | '.join(cells)} | +{r['rl_over_sft']} | "
            f"+{r['rl_zero_over_base']} | {acceptance} | {r['seconds'] / 60:.1f} | "
            f"{r['peak_memory_gb']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", required=True, metavar="FILE")
    options, extra = parser.parse_known_args()
    rows = []
    for seed in options.seeds:
        folder = options.out / f"seed{seed}"
        words = ["speedrun", "--out", str(folder), "--seed", str(seed), *extra]
        subprocess.run(
            [sys.executable, "-m", "openmimo.cli", *words], check=True, stdout=sys.stderr
        )
        rows.append(row(json.loads((folder / "report.json").read_text()), seed))
    print(table(rows), file=sys.stderr)
    text = json.dumps({"runs": rows}, indent=2)
    print(text) if options.json == "-" else Path(options.json).write_text(text + "\n")


if __name__ == "__main__":
    main()
