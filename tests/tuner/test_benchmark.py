"""The benchmark's parts, with tiny budgets and with what takes minutes replaced."""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from factorizenet_tf.console import Progress
from factorizenet_tf.spec import ModelSpec
from factorizenet_tf.tuner.space import Space

SCRIPT = Path(__file__).parents[2] / "tuner" / "benchmark.py"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import benchmark

    return benchmark


@pytest.fixture
def options(zoo, run):
    return argparse.Namespace(
        dataset="digits", width=8, seconds=0.05, net=f"{run.spec.name}-int8", zoo=str(zoo), json=True, job=None
    )


def test_a_figure_is_set_against_its_goal(benchmark):
    assert benchmark.row("speed", 0.8, ">=", 0.8) == {"what": "speed", "value": 0.8, "goal": ">= 0.8", "reached": True}
    assert benchmark.row("speed", np.float64(0.7), ">=", 0.8)["reached"] is False
    assert benchmark.row("seconds", 61, "<=", 60)["reached"] is False
    assert benchmark.row("seconds", 0.00001, "<=", 0)["reached"] is False
    assert benchmark.row("bare", 3) == {"what": "bare", "value": 3, "goal": "", "reached": ""}


@pytest.mark.slow
def test_decoding_loading_and_training_from_a_cache_are_measured(benchmark, options):
    options.files = (200, 400)
    rows = benchmark.measure_data(options, Progress(False))
    assert [row["goal"] for row in rows] == [">= 4000", "<= 2", ">= 0.9"]
    assert all(row["value"] > 0 for row in rows)


@pytest.mark.slow
def test_a_whole_training_is_looked_at_for_memory_that_is_no_files(benchmark, options):
    options.files = (200, 400)
    (peak,) = benchmark.measure_memory(options, Progress(False))
    assert peak["what"].startswith("training on 400 images, 0.0 GB of pixels")
    assert 0.2 < peak["value"] < 2.5


@pytest.mark.slow
def test_the_first_calls_of_a_zoo_are_timed_in_a_fresh_process_and_its_models_verified(benchmark, options):
    *calls, verified = benchmark.measure_zoo(options, Progress(False))
    assert [row["what"].rpartition(": ")[2] for row in calls] == list(benchmark.ZOO_GOALS)
    assert next(row for row in calls if "TensorFlow" in row["what"])["value"] == 0
    assert verified["what"].startswith("verification of 1 int8 models, 1 of them on their whole test split")


@pytest.mark.slow
def test_every_int8_model_of_a_zoo_is_measured_on_its_test_images_and_on_noise(benchmark, options):
    rows = benchmark.measure_micro(options, Progress(False))
    assert ["test images" in row["what"] for row in rows] == [True, True, False, False]
    assert [row["goal"] for row in rows] == ["<= 1", "<= 4"] * 2
    assert all(row["reached"] for row in rows if row["goal"] == "<= 1")


def test_distances_are_counted_in_steps_of_the_output(benchmark, models, monkeypatch, noise):
    images = noise(5)
    moved = models.int8.predict_reference(images)
    moved[2, np.argmin(np.abs(moved[2].astype(int)))] += 3  # away from the ends of int8
    monkeypatch.setattr(benchmark, "micro_outputs", lambda content, images: moved)
    (what, largest), _ = benchmark.kernel_distances(models.int8.content, images)
    assert largest == 3
    assert "98.00% equal" in what  # 49 of 50


def test_a_search_proposes_from_ten_thousand_nets(benchmark):
    assert Space(ModelSpec(0, stages=benchmark.SEARCH_STAGES), benchmark.SEARCH_WIDTHS).count() >= 10_000
    nets, times = benchmark.proposals((8,))
    assert nets == 720
    assert min(times) > 0


def test_a_missed_goal_exits_1_and_a_failed_process_says_why(benchmark, monkeypatch, capsys):
    figures = [benchmark.row("a", 1, "<=", 2), benchmark.row("b", 3, "<=", 2)]
    monkeypatch.setitem(benchmark.PARTS, "zoo", lambda options, progress: figures[: options.width])
    assert benchmark.main(["--part", "zoo", "--json", "--width", "1"]) == 0
    capsys.readouterr()
    assert benchmark.main(["--part", "zoo", "--json", "--width", "2"]) == 1
    assert [row["reached"] for row in json.loads(capsys.readouterr().out)] == [True, False]
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nMemoryError: no memory\n")
    monkeypatch.setattr(benchmark.subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(RuntimeError, match=r"the measurement 'levels' failed.*no memory"):
        benchmark.in_own_process("levels", argparse.Namespace())
    with pytest.raises(SystemExit) as ended:
        benchmark.main(["--seconds", "0"])
    assert ended.value.code == 2


@pytest.mark.slow
@pytest.mark.parametrize("onednn", ["0", "1"])
def test_levels_are_trained_with_and_without_onednn(benchmark, options, onednn):
    options.levels = [2]
    rows = benchmark.in_own_process("levels", options, {"TF_ENABLE_ONEDNN_OPTS": onednn})
    assert len(rows) == 1 + 1 + 2 + 1  # level 0's speed, level 2, QAT of both, level 2 against XLA
    assert all(row["value"] > 0 for row in rows)


@pytest.mark.slow
def test_a_training_step_waits_for_data_and_takes_memory(benchmark, options):
    (peak,) = (row for row in benchmark.in_own_process("resources", options) if "peak memory" in row["what"])
    assert 0.1 < peak["value"] < 3


@pytest.mark.slow
def test_a_net_of_the_zoo_is_served_and_asked(benchmark, options, monkeypatch):
    monkeypatch.setattr(benchmark, "REQUESTS", 16)
    options.net, options.zoo = "fnet-l2-int8", None
    rows = benchmark.measure_serving(options, Progress(False))
    assert sum(row["what"].endswith("images/s") for row in rows) == len(benchmark.CLIENTS)
    assert all(row["value"] > 0 for row in rows)
