"""Searches on real Ray nodes, processes of this machine."""

import csv
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from factorizenet_tf.cli import main

OPTIONS = ["--dataset", "digits", "--size", "16", "--channels", "1", "--width", "8", "--stages", "1x2,1x2"]
OPTIONS += ["--max-macs", "60k", "--epochs", "10", "--qat-epochs", "1", "--max-trials", "5", "--quiet"]
SAME = ("trial", "name", "status", "reason", "round", "float_epochs", "val_float_accuracy", "val_int8_accuracy")


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


def training_under_way(folder):
    """Wait for a training in the middle of its float epochs; gives its history's path."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        for path in folder.glob("trial_*/run/history.csv"):
            if 2 <= len(rows(path)) < 8:
                return path
        time.sleep(0.01)
    raise AssertionError("nothing was trained")


@pytest.mark.slow
def test_a_node_that_dies_twice_loses_nothing_and_the_answer_is_the_same_as_alone(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})  # the other node trains
    command = [sys.executable, "-m", "factorizenet_tf.cli", "search", *OPTIONS, "--out", tmp_path / "many"]
    search = subprocess.Popen([*command, "--ray", cluster.address], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    killed = {}
    try:
        for _ in range(2):
            node = cluster.add_node(num_cpus=1)
            path = training_under_way(tmp_path / "many")
            killed[path] = rows(path)
            cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        out, err = search.communicate(timeout=500)
    finally:
        search.kill()
        cluster.shutdown()
    assert (search.returncode, err) == (0, b""), err.decode()[-2000:]
    for path, before in killed.items():
        assert rows(path)[: len(before)] == before  # to the seconds: they were not trained again
        assert [row["epoch"] for row in rows(path)] == [*map(str, range(1, 11)), "1"]
    state = json.loads((tmp_path / "many" / "oracle.json").read_text())
    assert sorted(state["end_order"]) == ["0", "1", "2", "3", "4"]
    assert main(["search", *OPTIONS, "--out", str(tmp_path / "alone")]) == 0
    many, alone = (rows(tmp_path / name / "results.csv") for name in ("many", "alone"))
    assert [[row[key] for key in SAME] for row in many] == [[row[key] for key in SAME] for row in alone]
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
