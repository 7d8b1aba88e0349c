"""What the run ran on, from files and package metadata alone (importing torch takes seconds)."""

import importlib.metadata
import os
import platform
from pathlib import Path

PACKAGES = ("openmimo", "torch", "numpy", "tokenizers", "transformers")


def hardware() -> dict[str, object]:
    """Plain facts about this machine: ``cpu``, ``cores``, ``memory_gb`` (GB of 1e9 bytes),
    ``gpus`` (model names, NVIDIA only), ``system``; None where the system does not tell."""
    return {
        "cpu": _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or None,
        "cores": _cores(),
        "memory_gb": _memory_gb(),
        "gpus": sorted(
            name
            for folder in Path("/proc/driver/nvidia/gpus").glob("*/information")
            if (name := _field(folder, "Model"))
        ),
        "system": f"{platform.system()} {platform.machine()}",
    }


def versions() -> dict[str, str]:
    """Installed versions of what a run depends on, Python included."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _cores() -> int | None:
    # A container's or taskset's share, not the machine's whole count.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_gb() -> float | None:
    total = _field(Path("/proc/meminfo"), "MemTotal")  # "16384 kB"
    return round(int(total.split()[0]) * 1024 / 1e9, 1) if total else None


def _field(path: Path, name: str) -> str | None:
    """The value of the first ``name : value`` line."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), None)
