"""Pools on a local cluster of several processes: actors die, hang and lie, and no task is lost."""

import logging
import os
import pickle
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest

from openmimo.cluster import session
from openmimo.cluster.pool import ActorLost, ActorPool
from openmimo.errors import UserError


class Obedient:
    """A worker that does what its tasks say."""

    def __init__(self, workers):
        self._threads = ThreadPoolExecutor(workers)

    def submit(self, order, value=None):
        if order == "never":
            return Future()
        return self._threads.submit(self._do, order, value)

    def close(self):
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _do(self, order, value):
        if order == "sleep":
            time.sleep(value)
        elif order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif order == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(600)  # this thread may run on for a moment
        elif order == "raise":
            raise ValueError(value)
        elif order == "secret":
            return threading.Lock()
        elif order == "pid":
            return os.getpid()
        return value


class Sour:
    def __init__(self, workers):
        raise UserError("no landlock here")


@pytest.fixture(autouse=True, scope="module")
def by_value():
    """This file is no module that actors could import."""
    cloudpickle = pytest.importorskip("ray.cloudpickle", reason="no Ray")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def pool(cluster):
    with ActorPool(Obedient, 2, cluster.address, silent_seconds=2.0) as pool:
        yield pool


def results(futures, seconds=60):
    done = wait(futures, timeout=seconds).done
    assert len(done) == len(futures), "tasks without a result"
    return [future.exception() or future.result() for future in futures]


@pytest.mark.slow  # with the start of the cluster
def test_results_errors_and_what_cannot_be_sent_are_each_tasks_own(pool, caplog):
    orders = [("echo", n) for n in range(100)]
    orders[7], orders[50], orders[99] = ("raise", "seven"), ("secret",), ("wrong", 1, 2, 3)
    answers = results([pool.submit(*order, seconds=30) for order in orders])
    assert repr(answers[7]) == "ValueError('seven')"
    assert "cannot be sent" in str(answers[50])
    assert isinstance(answers[99], TypeError)
    kept = [n for n in range(100) if n not in (7, 50, 99)]
    assert [answers[n] for n in kept] == kept
    with pytest.raises((TypeError, pickle.PicklingError)):
        pool.submit("echo", threading.Lock(), seconds=30)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_half_of_the_actors_are_killed_again_and_again(pool, actor_processes, caplog):
    futures = [pool.submit("sleep", 0.01, seconds=30) for _ in range(300)]
    counts = [0] * len(futures)
    for number, future in enumerate(futures):
        future.add_done_callback(
            lambda _, number=number: counts.__setitem__(number, counts[number] + 1)
        )
    for _ in range(2):
        time.sleep(0.7)
        os.kill(actor_processes()[0], signal.SIGKILL)
    assert results(futures) == [0.01] * 300
    assert counts == [1] * 300


def test_a_task_that_kills_every_actor_ends_alone(pool):
    futures = [pool.submit("sleep", 0.01, seconds=30) for _ in range(60)]
    poison = pool.submit("die", seconds=30, cost=1.0)
    assert results(futures) == [0.01] * 60
    with pytest.raises(ActorLost, match="actors died"):
        poison.result(timeout=60)


@pytest.mark.slow
def test_an_actor_that_stands_still_is_replaced(cluster, actor_processes):
    with ActorPool(Obedient, 2, cluster.address, attempts=2, silent_seconds=2.0) as pool:
        stopped = pool.submit("stop", seconds=600, cost=1.0)
        futures = [pool.submit("sleep", 0.02, seconds=600) for _ in range(50)]
        assert results(futures) == [0.02] * 50
        assert isinstance(results([stopped])[0], ActorLost)


@pytest.mark.slow
def test_a_task_that_takes_too_long_ends_alone(pool):
    start = time.monotonic()
    never = pool.submit("never", seconds=0.5, cost=1.0)
    futures = [pool.submit("echo", n, seconds=0.5) for n in range(50)]
    assert results(futures) == list(range(50))
    assert "too long" in str(results([never])[0])
    assert time.monotonic() - start < 30


def test_close_gives_every_task_an_end_and_leaves_no_process(cluster, actor_processes):
    pool = ActorPool(Obedient, 2, cluster.address)
    futures = [pool.submit("sleep", 5.0, seconds=30) for _ in range(10)]
    time.sleep(0.5)
    start = time.monotonic()
    pool.close()
    assert all("was closed" in str(answer) for answer in results(futures, 0))
    assert time.monotonic() - start < 8
    with pytest.raises(UserError, match="closed"):
        pool.submit("echo", 1, seconds=30)
    deadline = time.monotonic() + 10
    while actor_processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert actor_processes() == []
    pool.close()


@pytest.mark.slow
def test_one_actor_a_node_follows_nodes_that_come_and_die(cluster):
    with ActorPool(Obedient, None, cluster.address, silent_seconds=4.0) as pool:
        first = set(results([pool.submit("pid", seconds=30) for _ in range(40)]))
        assert len(first) == 1
        node = cluster.add_node(num_cpus=3, object_store_memory=80_000_000)
        deadline = time.monotonic() + 30
        both = set()
        while len(both) < 2 and time.monotonic() < deadline:
            orders = [pool.submit("pid", seconds=30) for _ in range(40)]
            both = set(results(orders))
        assert len(both) == 2
        futures = [pool.submit("sleep", 0.05, seconds=60) for _ in range(200)]
        time.sleep(0.5)
        cluster.remove_node(node, allow_graceful=False)
        assert results(futures) == [0.05] * 200


def test_why_there_is_no_worker_is_said_at_once(cluster):
    with pytest.raises(UserError, match="UserError: no landlock here"):
        ActorPool(Sour, 1, cluster.address)


@pytest.mark.slow
def test_a_cluster_without_room_is_refused_in_time(cluster):
    start = time.monotonic()
    with pytest.raises(UserError, match="no node has room"):
        ActorPool(Obedient, 1, cluster.address, {"num_cpus": 99}, start_seconds=1.0)
    assert time.monotonic() - start < 20


def test_no_ray_and_no_cluster_are_errors_of_the_users(cluster, monkeypatch):
    with pytest.raises(UserError, match="at least one"):
        ActorPool(Obedient, 0, cluster.address)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    for address, message in {
        "127.0.0.1:1": "no Ray cluster at 127.0.0.1:1: .*refused",
        "nonsense": "no Ray cluster at nonsense",
        "ray://127.0.0.1:10001": "run on a node of the cluster",
    }.items():
        with pytest.raises(UserError, match=message):
            session.join(address)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'openmimo\[ray\]'"):
        session.join()
