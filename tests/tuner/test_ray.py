"""Searches on real Ray nodes, each a `ray start` of its own on this machine."""

import contextlib
import csv
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from factorizenet_tf.cli import main

OPTIONS = ["--dataset", "digits", "--size", "16", "--channels", "1", "--width", "8", "--stages", "1x2,1x2"]
OPTIONS += ["--max-macs", "60k", "--epochs", "10", "--qat-epochs", "1", "--max-trials", "5", "--quiet"]
SAME = ("trial", "name", "status", "reason", "round", "float_epochs", "val_float_accuracy", "val_int8_accuracy")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def open_files(pid):
    """Paths that a process has open; none where it has ended."""
    with contextlib.suppress(OSError):
        return [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if os.path.lexists(link)]
    return []


class Cluster:
    """A head node and a second one, with a CPU each."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(dir="/tmp", prefix="ray")  # short: Ray makes sockets in it
        self.address = f"127.0.0.1:{free_port()}"
        self.start(
            "--head",
            "--port",
            self.address.rpartition(":")[2],
            "--temp-dir",
            self.folder,
            "--include-dashboard",
            "false",
        )
        self.second = None

    def processes(self):
        """Those of the cluster: each writes to a log in its folder."""
        pids = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()} - {os.getpid()}
        return [pid for pid in pids if any(name.startswith(self.folder) for name in open_files(pid))]

    def raylets(self):
        return {pid for pid in self.processes() if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet"}

    def start(self, *options):
        """Start a node and give the id of its raylet."""
        before = self.raylets()
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus", "1", "--disable-usage-stats"]
        command += ["--object-store-memory", str(100 * 2**20), *options]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        (raylet,) = self.raylets() - before
        return raylet

    def start_second(self):
        self.second = self.start("--address", self.address)

    def kill_second_while_it_trains(self):
        """End its raylet as a machine ends, in the middle of a training; gives the run's folder and the epochs it had."""
        end = time.monotonic() + 300
        while True:
            assert time.monotonic() < end, "the second node trained nothing"
            for pid in filter(lambda pid: parent(pid) == self.second, self.processes()):
                for run in (Path(name).parent / "run" for name in open_files(pid) if name.endswith("/.lock")):
                    if 2 <= len(epochs(run)) < 9:
                        os.kill(self.second, signal.SIGKILL)
                        while str(run.parent / ".lock") in open_files(pid):
                            time.sleep(0.01)
                        return run, epochs(run)
            time.sleep(0.01)

    def end(self):
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        shutil.rmtree(self.folder, ignore_errors=True)


def parent(pid):
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def epochs(run):
    path = run / "history.csv"
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
    new = Cluster()
    yield new
    new.end()


def results(folder):
    return [
        {key: row[key] for key in SAME} for row in csv.DictReader((folder / "results.csv").read_text().splitlines())
    ]


@pytest.mark.slow
def test_a_node_that_dies_twice_loses_nothing_and_the_answer_is_the_same_as_alone(cluster, tmp_path):
    cluster.start_second()
    command = [sys.executable, "-m", "factorizenet_tf.cli", "search", *OPTIONS, "--out", tmp_path / "many"]
    search = subprocess.Popen([*command, "--ray", cluster.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        killed = [cluster.kill_second_while_it_trains()]
        cluster.start_second()
        killed.append(cluster.kill_second_while_it_trains())
        cluster.start_second()
        out, err = search.communicate(timeout=500)
    finally:
        search.kill()
    assert (search.returncode, err) == (0, b""), err.decode()[-2000:]
    for run, before in killed:
        assert epochs(run)[: len(before)] == before  # to the seconds: they were not trained again
        assert [row["epoch"] for row in epochs(run)] == [*map(str, range(1, 11)), "1"]
    state = json.loads((tmp_path / "many" / "oracle.json").read_text())
    assert sorted(state["end_order"]) == ["0", "1", "2", "3", "4"]
    assert main(["search", *OPTIONS, "--out", str(tmp_path / "alone")]) == 0
    assert results(tmp_path / "many") == results(tmp_path / "alone")
    assert b"the answer is fnet-" in out


@pytest.mark.parametrize("listens", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_where_no_ray_answers_is_one_line_within_30_seconds(listens, tmp_path, capsys):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listens:
            silent.listen()
        start = time.monotonic()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert main(["search", *OPTIONS, "--out", str(tmp_path / "out"), "--ray", address]) == 1
        assert time.monotonic() - start < 30
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: no Ray cluster answers at {address} (")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
