"""A Ray cluster of several processes on this machine, and the means to kill some of them."""

import os
from pathlib import Path

import pytest

NODE = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 80_000_000}


@pytest.fixture(scope="package")
def cluster():
    """A `ray.cluster_utils.Cluster` with one node of two CPUs; this process is not connected."""
    pytest.importorskip("ray", reason="no Ray: pip install 'openmimo[ray]'")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="session")
def actor_processes():
    """Finds the process ids of this process' Ray actors."""

    def find() -> list[int]:
        return [
            int(folder.name)
            for folder in Path("/proc").iterdir()
            if folder.name.isdigit() and _is_actor(folder) and _is_ours(int(folder.name))
        ]

    return find


def _is_actor(folder: Path) -> bool:
    try:
        return (folder / "cmdline").read_bytes().startswith(b"ray::Host")
    except OSError:
        return False


def _is_ours(pid: int) -> bool:
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return False
