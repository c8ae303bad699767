"""Models made on a real Ray cluster of two nodes on this machine: the same bits, whatever is killed in the middle."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kit.errors import InputError
from kit.methods import get_method
from local_eval.__main__ import main
from local_eval.engines import Cluster, run_all
from local_eval.pool import EVALUATED
from local_eval.retrained import fill_retrained
from local_eval.setting import Setting, open_workspace
from local_eval.unlearned import fill_unlearned

SETTING = Setting(
    source="digits", n_train=300, forget="random:30", architecture="tinyconv", epochs=1, n_retain_sample=50
)
N = 32
PORT = 46379


def test_without_ray_one_line_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    command = ["retrain", "--source", "digits", "--n-models", "2", "--work-dir", str(tmp_path), "--engine", "ray"]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "pip install -r requirements-cluster.txt" in error and len(error.splitlines()) == 1


def test_a_time_limit_is_refused(tmp_path, capsys):
    command = ["unlearn", "--source", "digits", "--work-dir", str(tmp_path), "--engine", "ray", "--limit", "1m"]
    assert main(command) == 2
    assert "--limit: goes without --engine ray" in capsys.readouterr().err


@pytest.fixture(scope="module")
def ray():
    return pytest.importorskip("ray", reason="Ray is optional: pip install -r requirements-cluster.txt")


class Nodes:
    """A head without cores and two nodes with one core each, all on this machine."""

    def __init__(self, folder):
        self.folder, self.nodes = folder, []
        start = ["--head", f"--port={PORT}", "--num-cpus=0", "--include-dashboard=false"]
        self.head = self._start("head", start)
        for name in ("a", "b"):
            self.nodes.append(self._start(name, [f"--address=127.0.0.1:{PORT}", "--num-cpus=1"]))

    def _start(self, name, words):
        ray = Path(sys.executable).with_name("ray")
        memory = ["--object-store-memory=100000000", f"--temp-dir={self.folder}"] if "--head" in words else []
        memory = memory or ["--object-store-memory=100000000"]
        environment = {**os.environ, "RAY_raylet_start_wait_time_s": "120", "PYTHONPATH": os.pathsep.join(sys.path)}
        path = self.folder / f"{name}.log"
        with path.open("w") as log:
            command = [str(ray), "start", *words, *memory, "--block", "--disable-usage-stats"]
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        while "Ray runtime started" not in path.read_text():  # one after the other: together they take the same ports
            assert process.poll() is None, path.read_text()
            time.sleep(0.2)
        return process

    def kill(self, process):
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def end(self):
        for process in (*self.nodes, self.head):
            if process.poll() is None:
                process.terminate()
        for process in (*self.nodes, self.head):
            process.wait(30)


@pytest.fixture(scope="module")
def nodes(ray, tmp_path_factory):
    found = Nodes(tmp_path_factory.mktemp("ray"))
    try:
        ray.init(f"127.0.0.1:{PORT}", log_to_driver=False, logging_level="ERROR")
        assert ray.cluster_resources()["CPU"] == 2
        yield found
    finally:
        ray.shutdown()
        found.end()


@pytest.fixture
def cluster_workspace(nodes, tmp_path):
    return open_workspace(SETTING, tmp_path)


@pytest.fixture(scope="module")
def in_processes(tmp_path_factory):
    """The same models made by processes of this machine."""
    workspace = open_workspace(SETTING, tmp_path_factory.mktemp("runs"))
    options = {"devices": ["cpu", "cpu"], "progress": False}
    return fill_retrained(workspace, N, **options), fill_unlearned(workspace, get_method("finetune"), N, **options)


def equal(pool, expected):
    found, expected = pool.read(N), expected.read(N)
    return all(np.array_equal(found[name], expected[name]) for name in EVALUATED)


@pytest.mark.slow
def test_models_of_a_cluster_are_those_of_processes(cluster_workspace, in_processes):
    cluster = Cluster(["cpu"], cluster_workspace.folder)
    assert equal(fill_retrained(cluster_workspace, N, devices=cluster, progress=False), in_processes[0])
    pool = fill_unlearned(cluster_workspace, get_method("finetune"), N, devices=cluster, progress=False)
    assert equal(pool, in_processes[1])


def work_that_says_where(folder, device):
    def work(number):
        time.sleep(0.2)
        (folder / "said").mkdir(exist_ok=True)
        (folder / "said" / f"{number}.bin").write_bytes(bytes([number]))
        return os.getpid()

    return work


@pytest.mark.slow
def test_ctrl_c_ends_the_jobs_and_keeps_what_is_finished(cluster_workspace):
    cluster = Cluster(["cpu"], cluster_workspace.folder)
    setup = partial(work_that_says_where, cluster_workspace.folder)

    def stop(number, pid):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_all(setup, range(8), cluster, progress=False, on_result=stop)
    kept = len(list((cluster_workspace.folder / "said").iterdir()))
    assert kept == 1
    pids = set(run_all(setup, range(8), cluster, progress=False).values())
    assert len(pids) == 2, "a worker on each node, and neither busy with what was cancelled"


def fails(folder, device):
    def work(number):
        raise InputError(f"job {number} cannot be done")

    return work


@pytest.mark.slow
def test_a_mistake_of_a_job_is_raised_as_it_is(cluster_workspace):
    cluster = Cluster(["cpu"], cluster_workspace.folder)
    with pytest.raises(InputError, match=r"^job 0 cannot be done$"):
        run_all(partial(fails, cluster_workspace.folder), range(1), cluster, progress=False)


def dies_once(folder, marks, device):
    def work(number):
        if number == 3 and not Path(marks).exists():
            Path(marks).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    return work


@pytest.mark.slow
def test_the_job_of_a_killed_worker_is_done_again(cluster_workspace, tmp_path):
    cluster = Cluster(["cpu"], cluster_workspace.folder)
    setup = partial(dies_once, cluster_workspace.folder, str(tmp_path / "died"))
    assert run_all(setup, range(6), cluster, progress=False) == {number: number for number in range(6)}
    assert (tmp_path / "died").exists()


@pytest.mark.slow
def test_a_killed_nodes_jobs_are_done_on_the_others(nodes, cluster_workspace, in_processes):
    """The last test: a node is gone afterwards."""
    cluster, made = Cluster(["cpu"], cluster_workspace.folder), []

    def kill_once(number, seconds):
        made.append(number)
        if len(made) == 8:
            threading.Thread(target=nodes.kill, args=[nodes.nodes[1]]).start()

    options = {"devices": cluster, "progress": False, "on_checkpoint": kill_once}
    assert equal(fill_retrained(cluster_workspace, N, **options), in_processes[0])
    assert nodes.nodes[1].poll() is not None
