import csv
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future
from pathlib import Path
from types import SimpleNamespace

import keras_tuner
import numpy as np
import pytest
import tensorflow as tf
from filelock import FileLock

import factorizenet_tf as fnet
from factorizenet_tf.tuner import FactorizationOracle, FactorizationTuner, search_space
from factorizenet_tf.tuner import tuner as search_tuner

SPEC = fnet.ModelSpec(0, width=8, input_shape=(16, 16, 1), stages=((1, 2), (1, 2)))
RECIPE = fnet.recipe_for("digits", epochs=2, qat_epochs=1, calibration_images=64)
BUDGET = 60_000  # levels 2 to 4


def make(folder, digits, *, max_macs=BUDGET, recipe=RECIPE, **options):
    keys = ("seed", "max_trials", "min_accuracy", "patience")
    oracle = FactorizationOracle(SPEC, max_macs=max_macs, **{k: options.pop(k) for k in keys if k in options})
    return FactorizationTuner(oracle, digits, recipe=recipe, directory=folder, **options)


@pytest.fixture(scope="module")
def searched(digits, tmp_path_factory):
    """A search of one trial, whose nets start from others' weights."""
    tuner = make(tmp_path_factory.mktemp("search"), digits, max_trials=1, inherit=True)
    tuner.search()
    return tuner


def statuses(tuner):
    return [trial.status for trial in tuner._own_oracle.trials.values()]


def test_a_trial_is_a_whole_run_with_all_its_metrics(searched):
    (first,) = searched.oracle.trials.values()
    assert statuses(searched) == ["COMPLETED"]
    run = searched.load_run(first)
    assert run.spec.level == 2
    accuracies = run.metrics["accuracy"]["validation"]

    def value(name):
        return first.metrics.get_last_value(name)

    assert first.score == pytest.approx(accuracies["tflite"], abs=1e-6)
    assert value("val_int8_accuracy") == accuracies["tflite"]
    assert value("val_qat_accuracy") == pytest.approx(accuracies["qat"], abs=1e-6)
    assert value("val_float_accuracy_epoch_2") == pytest.approx(run.history()[1]["val_accuracy"], abs=1e-6)
    assert value("macs") == fnet.count_macs(run.spec)
    assert value("size_bytes") == len((run.folder / "model.tflite").read_bytes())
    assert value("latency_ms") > 0
    assert json.loads((searched.run_folder("0") / "initial.json").read_text()) == {"weights": None}


def test_a_net_starts_from_the_weights_of_the_one_it_was_made_from_the_same_at_each_call(searched):
    (first,) = searched.oracle.trials.values()
    values = {"stage1": 2, "stage2": 3, "walk/parent": "0"}
    child = SimpleNamespace(trial_id="1", hyperparameters=SimpleNamespace(values=values))
    parent = searched.load_run(first).float_model().get_weights()
    once, again = (searched._training(child).initial for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(once, again))
    np.testing.assert_array_equal(once[0], parent[0])  # the stem
    assert searched._training(first).initial is None


@pytest.mark.slow
def test_the_best_model_comes_back(searched, digits):
    (trial,) = searched.oracle.get_best_trials()
    (model,) = searched.get_best_models()
    assert fnet.accuracy(model, digits.validation) == pytest.approx(trial.metrics.get_last_value("val_qat_accuracy"))


def test_a_finished_search_is_given_without_training(searched, digits, monkeypatch):
    monkeypatch.setattr(search_tuner, "train", None)
    again = make(searched.directory, digits, max_trials=1, inherit=True)
    again.search()
    assert [t.score for t in again.oracle.trials.values()] == [t.score for t in searched.oracle.trials.values()]


def test_changed_requirement_recipe_and_data_are_refused_with_the_difference(searched, digits):
    folder = searched.directory
    with pytest.raises(ValueError, match=r"search\.max_macs: the folder has 60000, you gave 70000"):
        make(folder, digits, max_macs=70_000, inherit=True)
    with pytest.raises(ValueError, match=r"search\.inherit: the folder has True, you gave False"):
        make(folder, digits)
    with pytest.raises(ValueError, match=r"search\.recipe_epochs: the folder has 2, you gave 3"):
        make(folder, digits, inherit=True, recipe=fnet.recipe_for("digits", epochs=3, calibration_images=64))
    other = fnet.load_dataset((digits.train.images, digits.train.labels))
    with pytest.raises(ValueError, match=r"dataset\.images: the folder has"):
        make(folder, other, inherit=True)
    (Path(folder) / "new" / "search").mkdir(parents=True)
    (Path(folder) / "new" / "search" / "letter.txt").write_text("")
    with pytest.raises(ValueError, match="holds other files and no search"):
        make(Path(folder) / "new", digits)


def test_what_does_not_fit_is_refused(digits, tmp_path):
    with pytest.raises(ValueError, match="the recipe has no QAT"):
        make(tmp_path, digits, recipe=fnet.recipe_for("digits", qat_epochs=0))
    with pytest.raises(ValueError, match=r"the images are \(16, 16, 1\), the net takes \(32, 32, 3\)"):
        FactorizationTuner(FactorizationOracle(fnet.ModelSpec(0), max_macs=10**7), digits, directory=tmp_path)
    with pytest.raises(ValueError, match="the objective is 'val_loss'; it must be one of val_float_accuracy"):
        FactorizationTuner(FactorizationOracle(SPEC, max_macs=10**7, objective="val_loss"), digits, directory=tmp_path)
    assert not list(tmp_path.iterdir())


class Fake:
    """Stands for `train`: raises what it is told at each net, or does as if."""

    accuracy = 0.5

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), []

    def __call__(self, spec, dataset, *, out, **options):
        self.calls.append(spec)
        if self.errors and (error := self.errors.pop(0)) is not None:
            raise error
        accuracies = dict.fromkeys(("float", "ptq_per_tensor", "ptq_per_channel", "qat", "tflite"), self.accuracy)
        metrics = {"accuracy": {"validation": accuracies}, "macs": 1, "size_bytes": 1, "training_seconds": 1}
        return FakeRun(metrics)


class FakeRun:
    def __init__(self, metrics):
        self.metrics = metrics

    def int8_model(self):
        return self

    def latency_ms(self):
        return fnet.Latency(1.0, 1.0, 1.0, 1, 1)


def test_a_net_whose_loss_explodes_or_that_needs_too_much_memory_is_skipped(digits, tmp_path, monkeypatch):
    fake = Fake(
        fnet.NanLossError("training diverged: the loss is nan"),
        None,
        tf.errors.ResourceExhaustedError(None, None, "OOM"),
    )
    monkeypatch.setattr(search_tuner, "train", fake)
    tuner = make(tmp_path, digits)
    tuner.search()
    assert statuses(tuner)[:3] == ["FAILED", "COMPLETED", "FAILED"]
    assert tuner.oracle.trials["0000"].message == "training diverged: the loss is nan"
    assert "fnet-1x2.1x2-l4-x0.5 does not fit into memory: OOM" in tuner.oracle.trials["0002"].message
    assert len(fake.calls) == len(set(fake.calls)) > 3


def test_all_nets_start_from_a_net_that_is_named_and_another_net_is_refused(searched, digits, tmp_path, monkeypatch):
    begun = searched.load_run(next(iter(searched.oracle.trials.values())))
    starts = {}

    class Started(Fake):
        def __call__(self, spec, dataset, *, initial, **options):
            starts[spec] = initial
            return super().__call__(spec, dataset, **options)

    monkeypatch.setattr(search_tuner, "train", Started())
    tuner = make(tmp_path, digits, initial=begun.folder, max_macs=200_000, max_trials=3)
    tuner.search()
    assert 0 in [spec.level for spec in starts]
    wanted = begun.float_model()
    for start in starts.values():
        for name in ("stem", "stem_bn", "logits"):
            for found, expected in zip(start.get_layer(name).get_weights(), wanted.get_layer(name).get_weights()):
                np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match=r"search\.initial: the folder has [0-9a-f]{64}, you gave None"):
        make(tmp_path, digits, max_macs=200_000, max_trials=3)
    with pytest.raises(
        ValueError, match="the nets cannot start from baseline-resnet8-float: it must be one of the package's own"
    ):
        make(tmp_path / "other", digits, initial="baseline-resnet8-float")


def test_a_net_without_a_finite_accuracy_has_failed(digits, tmp_path, monkeypatch):
    fake = Fake()
    fake.accuracy = float("nan")
    monkeypatch.setattr(search_tuner, "train", fake)
    with pytest.raises(
        RuntimeError, match=r"3 trials in a row failed.* val_int8_accuracy of fnet-1x2.1x2-l4-x0\.5 is nan"
    ):
        make(tmp_path, digits).search()


def test_a_hopeless_training_is_given_up_and_ranks_last(digits, tmp_path):
    tuner = make(tmp_path, digits, max_trials=1)
    trial = tuner.oracle.create_trial("tuner0")
    trial.hyperparameters.values["walk/threshold"] = "1.01 1.01"
    metrics = tuner.run_trial(trial)
    assert metrics["pruned"] == 1
    assert metrics["val_int8_accuracy"] == metrics["val_float_accuracy_epoch_1"] < 0.9
    assert "val_float_accuracy_epoch_2" not in metrics
    assert tuner.run_trial(trial) == metrics  # as after a kill between giving up and saying so
    tuner.oracle.update_trial(trial.trial_id, metrics)
    trial.status = "COMPLETED"
    tuner.oracle.end_trial(trial)
    assert trial.score < 0


def stock(folder, digits, kind, **options):
    objective = keras_tuner.Objective("val_int8_accuracy", "max")
    oracle = getattr(keras_tuner.oracles, kind)(
        objective=objective, seed=1, hyperparameters=search_space(SPEC), **options
    )
    oracle.verbose = 0
    return FactorizationTuner(oracle, digits, spec=SPEC, recipe=RECIPE, directory=folder)


def test_a_stock_oracle_searches_the_same_nets_and_goes_on(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(search_tuner, "train", fake := Fake(None, None, ZeroDivisionError))
    tuner = stock(tmp_path, digits, "RandomSearchOracle", max_trials=4)
    with pytest.raises(ZeroDivisionError):
        tuner.search()
    for again in (tuner, stock(tmp_path, digits, "RandomSearchOracle", max_trials=5)):
        again.search()
        assert statuses(again) == ["COMPLETED"] * again.oracle.max_trials
    assert fake.calls[3] == fake.calls[2]
    assert {len(net.levels) for net in fake.calls} == {2}
    with pytest.raises(ValueError, match=r"search\.oracle: the folder has RandomSearchOracle, you gave Bayesian"):
        stock(tmp_path, digits, "BayesianOptimizationOracle", max_trials=4)


def test_a_grid_that_was_begun_cannot_go_on_and_says_why(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(search_tuner, "train", Fake(ZeroDivisionError))
    tuner = stock(tmp_path, digits, "GridSearchOracle", max_trials=3)
    with pytest.raises(ZeroDivisionError):
        tuner.search()
    again = stock(tmp_path, digits, "GridSearchOracle", max_trials=3)
    with pytest.raises(ValueError, match="KerasTuner keeps its place in no file; search in a new folder"):
        again.search()
    tuner.search()  # in memory the place is there
    assert statuses(tuner) == 3 * ["COMPLETED"]


def test_what_an_oracle_cannot_do_is_refused(digits, tmp_path):
    with pytest.raises(ValueError, match="a HyperbandOracle compares trainings of a few epochs"):
        stock(tmp_path, digits, "HyperbandOracle", max_epochs=2)
    oracle = keras_tuner.oracles.RandomSearchOracle(
        objective=keras_tuner.Objective("val_int8_accuracy", "max"), hyperparameters=search_space(SPEC)
    )
    with pytest.raises(ValueError, match="a RandomSearchOracle knows no net; give spec="):
        FactorizationTuner(oracle, digits, recipe=RECIPE, directory=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="a RandomSearchOracle proposes no batches; leave the executor out"):
        stock(tmp_path / "stock", digits, "RandomSearchOracle").search(Backwards())


class Backwards(Executor):
    """Runs the calls of a batch when the first result is asked for, the last one first, on copies as another process would."""

    def __init__(self):
        self.waiting = []

    def submit(self, function, /, *arguments):
        executor, future = self, Future()
        future.result = lambda: executor.run() or Future.result(future)
        self.waiting.append((future, function, pickle.dumps(arguments)))
        return future

    def run(self):
        while self.waiting:
            future, function, arguments = self.waiting.pop()
            try:
                future.set_result(function(*pickle.loads(arguments)))
            except Exception as error:
                future.set_exception(error)


def scores(tuner):
    return [(tuner.oracle.net(trial).name, trial.status, trial.score) for trial in tuner.oracle.trials.values()]


def test_with_an_executor_the_search_is_the_same_in_whatever_order_its_calls_end(digits, tmp_path, monkeypatch):
    class Size(Fake):
        def __call__(self, spec, dataset, *, out, **options):
            if spec.level == 3:
                raise fnet.NanLossError("training diverged")
            self.accuracy = 0.5 + fnet.count_macs(spec) / 10**6
            return super().__call__(spec, dataset, out=out, **options)

    monkeypatch.setattr(search_tuner, "train", alone := Size())
    expected = make(tmp_path / "alone", digits)
    expected.search()
    monkeypatch.setattr(search_tuner, "train", many := Size())
    tuner = make(tmp_path / "many", digits)
    tuner.search(Backwards())
    assert scores(tuner) == scores(expected)
    assert "FAILED" in statuses(tuner)
    assert tuner.oracle.end_order == expected.oracle.end_order
    assert many.calls != alone.calls
    assert sorted(net.name for net in many.calls) == sorted(net.name for net in alone.calls)


@pytest.mark.parametrize("executor", [None, Backwards])
@pytest.mark.parametrize("is_new_process", [True, False])
def test_a_bug_is_raised_as_it_was_and_what_had_not_ended_is_done_again_by_the_next_search(
    executor, is_new_process, digits, tmp_path, monkeypatch
):
    errors = (
        [None, ZeroDivisionError("my own")] if executor is None else [ZeroDivisionError("my own")]
    )  # in a batch the last
    monkeypatch.setattr(search_tuner, "train", fake := Fake(*errors))
    tuner = make(tmp_path, digits)
    with pytest.raises(ZeroDivisionError, match="my own"):
        tuner.search(executor and executor())
    again = make(tmp_path, digits) if is_new_process else tuner
    assert statuses(again)[:2] == ["COMPLETED", "RUNNING"]
    again.search(executor and executor())
    assert set(statuses(again)) == {"COMPLETED"}
    names = [net.name for net in fake.calls]
    assert {name: names.count(name) for name in names if names.count(name) > 1} == {names[len(errors) - 1]: 2}


@pytest.mark.parametrize("shared", [True, False])
def test_a_machine_that_sees_the_folder_trains_there_and_another_sends_its_files(digits, tmp_path, monkeypatch, shared):
    def written(spec, dataset, *, out, **options):
        assert (out.parent.parent == tmp_path / "search" / "trial_0") == shared or out.parent == trial_folder
        out.mkdir(parents=True)
        (out / "metrics.json").write_text("{}")
        (out / "float.h5").write_bytes(b"weights")
        return Fake()(spec, dataset, out=out)

    monkeypatch.setattr(search_tuner, "train", written)
    tuner = make(tmp_path, digits, max_trials=1)
    trial_folder = tuner.run_folder("0").parent
    if not shared:
        monkeypatch.setattr(search_tuner, "SEARCH_FILE", "of another machine")
    tuner.search(Backwards())
    assert (tuner.run_folder("0") / "float.h5").read_bytes() == b"weights"
    assert (tuner.run_folder("0") / "metrics.json").exists()


def test_two_processes_do_not_search_in_one_folder(digits, tmp_path, monkeypatch):
    tuner = make(tmp_path, digits, max_trials=1)
    monkeypatch.setattr(search_tuner, "train", Fake())
    held = FileLock(tmp_path / "search" / ".lock")
    with held, pytest.raises(RuntimeError, match=r"another process searches in .*search; wait for its end"):
        tuner.search()
    tuner.search()
    assert statuses(tuner) == ["COMPLETED"]


COMMAND = """
import sys, factorizenet_tf as fnet
from factorizenet_tf.recipe import recipe_from_json
from factorizenet_tf.spec import spec_from_json
spec, recipe = spec_from_json(sys.argv[1]), recipe_from_json(sys.argv[2])
data = fnet.load_dataset("digits", input_shape=spec.input_shape)
oracle = fnet.tuner.FactorizationOracle(spec, max_macs=60_000, max_trials=2)
fnet.tuner.FactorizationTuner(oracle, data, recipe=recipe, directory=sys.argv[3]).search()
"""


def epochs(folder, phase):
    history = folder / "history.csv"
    rows = list(csv.DictReader(history.read_text().splitlines())) if history.exists() else []
    return sum(row["phase"] == phase for row in rows)


PHASES = {
    "proposal": lambda trial, run: (trial / "trial.json").exists() and not run.exists(),
    "float": lambda trial, run: epochs(run, "float") == 1,
    "qat": lambda trial, run: (run / "float.h5").exists() and not (run / "qat.h5").exists(),
    "conversion": lambda trial, run: (run / "qat.h5").exists() and not (run / "metrics.json").exists(),
    "report": lambda trial, run: (run / "metrics.json").exists() and '"RUNNING"' in (trial / "trial.json").read_text(),
}


@pytest.mark.slow
def test_killed_in_every_phase_one_after_the_other_the_same_command_goes_on(digits, tmp_path):
    recipe = fnet.recipe_for("digits", epochs=2, qat_epochs=2, calibration_images=64)
    command = [sys.executable, "-W", "ignore", "-c", COMMAND, SPEC.to_json(), recipe.to_json(), tmp_path]
    trial = tmp_path / "search" / "trial_0"
    for name, is_reached in PHASES.items():
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not is_reached(trial, trial / "run"):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, name
        assert '"RUNNING"' in (trial / "trial.json").read_text()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    tuner = make(tmp_path, digits, max_trials=2, recipe=recipe)
    assert statuses(tuner) == ["COMPLETED"] * 2
    assert tuner.oracle.end_order == ["0", "1"]
    left = sorted(set(os.listdir(tmp_path / "search")) - {".lock"})
    assert left == ["dataset.json", "oracle.json", "search.json", "trial_0", "trial_1"]
    for ended in tuner.oracle.trials.values():
        rows = [(row["phase"], row["epoch"]) for row in tuner.load_run(ended).history()]
        assert rows == [("float", 1), ("float", 2), ("qat", 1), ("qat", 2)]
        observations = ended.metrics.get_history("val_int8_accuracy")
        assert [len(observation.value) for observation in observations] == [1]
