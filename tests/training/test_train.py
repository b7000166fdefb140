import csv
import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf.runs import read_checkpoint
from factorizenet_tf.training import train as training
from factorizenet_tf.training.loop import batchnorm_estimator, make_step

COMMAND = """
import sys, factorizenet_tf as fnet
from factorizenet_tf.recipe import recipe_from_json
from factorizenet_tf.spec import spec_from_json
spec, recipe = spec_from_json(sys.argv[1]), recipe_from_json(sys.argv[2])
fnet.train(spec, fnet.load_dataset("digits", input_shape=spec.input_shape), out=sys.argv[3], recipe=recipe, verbose=False)
"""
EPOCHS = [("float", i) for i in range(1, 7)] + [("qat", 1), ("qat", 2)]
FILES = [
    "spec.json",
    "recipe.json",
    "dataset.json",
    "initial.json",
    "history.csv",
    "float.h5",
    "qat.h5",
    "model.tflite",
    "metrics.json",
    "checkpoint.npz",
]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_learns_and_leaves_all_its_files(run, digits):
    assert sorted(os.listdir(run.folder)) == sorted(FILES)
    accuracies = run.metrics["accuracy"]["test"]
    assert set(accuracies) == {"float", "ptq_per_tensor", "ptq_per_channel", "qat", "tflite"}
    assert min(accuracies.values()) > 0.9
    assert accuracies["tflite"] == fnet.accuracy(run.int8_model(), digits.test)
    assert accuracies["qat"] == fnet.accuracy(run.qat_model(), digits.test)
    assert run.metrics["images"] == {"train": 1294, "validation": 144, "test": 359}
    assert run.metrics["macs"] == fnet.count_macs(run.spec)
    assert fnet.load_run(run.folder) == run


def test_the_history_is_whole_and_the_loss_falls(run):
    rows = list(csv.DictReader((run.folder / "history.csv").read_text().splitlines()))
    assert [(row["phase"], int(row["epoch"])) for row in rows] == EPOCHS
    assert float(rows[5]["loss"]) < 0.7 * float(rows[0]["loss"])
    assert [row["loss"] for row in run.history()] == [float(row["loss"]) for row in rows]


def test_a_finished_run_is_given_without_training(run, digits, recipe):
    before = files(run.folder)
    assert fnet.train(run.spec, digits, out=run.folder, recipe=recipe, verbose=False) == run
    assert files(run.folder) == before


def test_a_folder_with_another_run_is_refused_with_the_difference(run, digits, recipe, tmp_path):
    before = files(run.folder)
    with pytest.raises(ValueError, match=r"recipe\.epochs: the folder has 6, you gave 7"):
        fnet.train(run.spec, digits, out=run.folder, recipe=dataclasses.replace(recipe, epochs=7), verbose=False)
    other = fnet.ModelSpec(2, width=8, input_shape=(16, 16, 1), stages=run.spec.stages)
    with pytest.raises(ValueError, match=r"spec\.level: the folder has 1, you gave 2"):
        fnet.train(other, digits, out=run.folder, recipe=recipe, verbose=False)
    fewer = dataclasses.replace(digits, train=fnet.Split(digits.train.images[:500], digits.train.labels[:500]))
    with pytest.raises(ValueError, match=r"dataset\.images"):
        fnet.train(run.spec, fewer, out=run.folder, recipe=recipe, verbose=False)
    assert files(run.folder) == before
    (tmp_path / "letter.txt").write_text("")
    with pytest.raises(ValueError, match="holds other files and no run"):
        fnet.train(run.spec, digits, out=tmp_path, recipe=recipe, verbose=False)


def test_data_spec_and_recipe_that_do_not_fit_are_refused(digits, spec, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="digits has 10 classes, the net 4; use num_classes=10"):
        fnet.train(fnet.ModelSpec(1, input_shape=(16, 16, 1), num_classes=4), digits, out=out)
    with pytest.raises(ValueError, match=r"the images are \(16, 16, 1\), the net takes \(32, 32, 3\)"):
        fnet.train(fnet.ModelSpec(1), digits, out=out)
    with pytest.raises(ValueError, match="batch_size is 5000, the training images are 1294"):
        fnet.train(spec, digits, out=out, recipe=fnet.Recipe(batch_size=5000))
    with pytest.raises(ValueError, match="batch_size 64 is no multiple of the strategy's 3 replicas"):
        fnet.train(spec, digits, out=out, strategy=SimpleNamespace(num_replicas_in_sync=3))
    assert not out.exists()


def test_a_folder_that_cannot_be_made_is_an_os_error(digits, spec, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        fnet.train(spec, digits, out=tmp_path / "file" / "run")


def test_interrupted_in_both_phases_a_run_goes_on_as_if_it_had_not_been(run, digits, recipe, tmp_path, no_conversion):
    for epochs, left in ((3, ("float", 3)), (4, ("qat", 1))):
        with pytest.raises(KeyboardInterrupt):
            fnet.train(run.spec, digits, out=tmp_path, recipe=recipe, callbacks=[Interrupt(epochs)], verbose=False)
        checkpoint = read_checkpoint(tmp_path / "checkpoint.npz")
        assert (checkpoint.phase, checkpoint.epoch) == left
        assert (tmp_path / "float.h5").exists() == (left[0] == "qat")
    again = fnet.train(run.spec, digits, out=tmp_path, recipe=recipe, verbose=False)
    assert [(row["phase"], row["epoch"]) for row in again.history()] == EPOCHS
    assert_same_training(again, run)


def assert_same_training(one, other):
    """Sums of several threads may differ in the last bit, and that grows."""
    losses = [[row["loss"] for row in each.history()] for each in (one, other)]
    np.testing.assert_allclose(*losses, rtol=0.02)
    for a, b in zip(one.qat_model().get_weights(), other.qat_model().get_weights()):
        np.testing.assert_allclose(a, b, atol=0.05 * max(1, np.abs(b).max()))


@pytest.mark.slow
def test_killed_in_both_phases_the_same_command_continues(run, tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-W", "ignore", "-c", COMMAND, run.spec.to_json(), run.recipe.to_json(), folder]

    def kill_after(rows):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        history = folder / "history.csv"
        while process.poll() is None and not (history.exists() and len(history.read_text().splitlines()) > rows):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "metrics.json").exists()
        return history.read_text()

    first = kill_after(2)
    second = kill_after(7)
    assert second.startswith(first)
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert (folder / "history.csv").read_text().startswith(second)
    killed = fnet.load_run(folder)
    assert [(row["phase"], row["epoch"]) for row in killed.history()] == EPOCHS
    assert_same_training(killed, run)
    assert sorted(os.listdir(folder)) == sorted(FILES)


def test_a_run_killed_while_it_writes_its_first_files_continues(digits, spec, recipe, tmp_path):
    (tmp_path / ".aside-spec.json-x.json").write_text("half")
    with pytest.raises(KeyboardInterrupt):
        fnet.train(spec, digits, out=tmp_path, recipe=recipe, callbacks=[Interrupt(0)], verbose=False)
    assert sorted(os.listdir(tmp_path)) == ["dataset.json", "initial.json", "recipe.json", "spec.json"]


def test_a_truncated_checkpoint_is_named_and_kept(digits, spec, recipe, run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("spec.json", "recipe.json", "dataset.json", "checkpoint.npz"):
        content = (run.folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2] if name == "checkpoint.npz" else content)
    with pytest.raises(ValueError, match=r"checkpoint\.npz is damaged"):
        fnet.train(spec, digits, out=folder, recipe=recipe, verbose=False)
    assert (folder / "checkpoint.npz").exists()


def test_without_its_checkpoint_a_run_starts_anew_and_repeats_no_epoch(digits, spec, run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    (folder / "metrics.json").unlink()
    (folder / "checkpoint.npz").unlink()
    with pytest.raises(KeyboardInterrupt):
        fnet.train(spec, digits, out=folder, recipe=run.recipe, callbacks=[Interrupt(1)], verbose=False)
    assert [(row["phase"], row["epoch"]) for row in read_checkpoint(folder / "checkpoint.npz").history] == EPOCHS[:1]


class Interrupt(keras.callbacks.Callback):
    """Ctrl-C in the first batch after so many epochs."""

    def __init__(self, epochs):
        super().__init__()
        self.left = epochs

    def on_train_batch_end(self, batch, logs=None):
        if not self.left:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        self.left -= 1


class Record(keras.callbacks.Callback):
    """What a callback is told."""

    def __init__(self):
        super().__init__()
        self.epochs, self.steps, self.begun, self.ended = [], 0, 0, 0

    def on_train_begin(self, logs=None):
        self.begun += 1

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append((epoch, *sorted(logs)))

    def on_train_end(self, logs=None):
        self.ended += 1


def test_callbacks_see_each_epoch_and_early_stopping_ends_a_phase(digits, spec, tmp_path, no_conversion):
    record = Record()
    # Nothing improves by that much after the first epoch, so the second is the last.
    stop = keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=1)
    recipe = fnet.recipe_for("digits", epochs=4, qat_epochs=3, calibration_images=64)
    run = fnet.train(spec, digits, out=tmp_path / "run", recipe=recipe, callbacks=[record, stop], verbose=False)
    names = "accuracy", "learning_rate", "loss", "val_accuracy"
    assert record.epochs == [(0, *names), (1, *names)] * 2
    assert record.steps == 4 * (1294 // 64)
    assert (record.begun, record.ended) == (2, 2)
    assert [row["phase"] for row in run.history()] == ["float", "float", "qat", "qat"]


def test_a_baseline_trains_by_the_same_door_and_without_qat(digits, tmp_path):
    spec = fnet.baselines.ResNet8(input_shape=(16, 16, 1))
    recipe = fnet.recipe_for("digits", epochs=2, qat_epochs=0, warmup_epochs=0.5, calibration_images=64)
    run = fnet.train(spec, digits, out=tmp_path / "run", recipe=recipe, verbose=False)
    assert set(run.metrics["accuracy"]["test"]) == {"float", "ptq_per_tensor", "ptq_per_channel", "tflite"}
    assert run.metrics["accuracy"]["test"]["tflite"] == run.metrics["accuracy"]["test"]["ptq_per_channel"] > 0.5
    assert "agreement" not in run.metrics
    assert sorted(os.listdir(run.folder)) == sorted({*FILES} - {"qat.h5"})
    assert fnet.load_run(run.folder).spec == spec


def test_a_disk_that_fills_up_leaves_the_epoch_before_and_no_half_file(digits, spec, recipe, tmp_path, monkeypatch):
    replace, checkpoints = os.replace, []

    def fill_up(source, target):
        if Path(target).name == "checkpoint.npz":
            checkpoints.append(target)
            if len(checkpoints) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fill_up)
    with pytest.raises(OSError, match="No space left"):
        fnet.train(spec, digits, out=tmp_path, recipe=recipe, verbose=False)
    names = ["checkpoint.npz", "dataset.json", "history.csv", "initial.json", "recipe.json", "spec.json"]
    assert sorted(os.listdir(tmp_path)) == names
    assert read_checkpoint(tmp_path / "checkpoint.npz").epoch == 1
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt):
        fnet.train(spec, digits, out=tmp_path, recipe=recipe, callbacks=[Interrupt(1)], verbose=False)
    checkpoint = read_checkpoint(tmp_path / "checkpoint.npz")
    assert [row["epoch"] for row in checkpoint.history] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_decay": 1.0}, r"the loss is nan at step \d+ of float epoch 1; no epoch was finished: use a lower"),
        ({}, r"the mean loss of float epoch 1 is [\d.e+]+; guessing has 2.3; no epoch was finished: use a lower"),
    ],
    ids=["not finite", "far above guessing"],
)
def test_a_learning_rate_that_explodes_in_the_first_epoch_is_said_so(digits, tmp_path, changes, message):
    spec = fnet.ModelSpec(1, width=8, input_shape=(16, 16, 1), stages=((1, 2),))
    recipe = fnet.recipe_for("digits", epochs=1, learning_rate=100.0, warmup_epochs=0, **changes)
    with pytest.raises(fnet.NanLossError, match=f"training diverged: {message}"):
        fnet.train(spec, digits, out=tmp_path, recipe=recipe, verbose=False)
    assert sorted(os.listdir(tmp_path)) == ["dataset.json", "initial.json", "recipe.json", "spec.json"]


def test_a_net_worse_than_guessing_that_cannot_be_converted_diverged(digits, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no int8 form")

    monkeypatch.setattr(training, "to_tflite", fail)
    spec = fnet.ModelSpec(1, width=8, input_shape=(16, 16, 1), stages=((1, 2),))
    recipe = fnet.recipe_for("digits", epochs=1, qat_epochs=0, learning_rate=0.0)  # as it was made: a loss above ln(10)
    with pytest.raises(fnet.DivergedError, match=r"loss is \S+, more than guessing's 2.3, .*\(no int8 form\)"):
        fnet.train(spec, digits, out=tmp_path / "diverged", recipe=recipe, verbose=False)
    recipe = fnet.recipe_for("digits", epochs=2, qat_epochs=0)  # one that learns
    with pytest.raises(RuntimeError, match=r"^no int8 form$"):
        fnet.train(spec, digits, out=tmp_path / "learns", recipe=recipe, verbose=False)


def test_batchnorms_statistics_are_those_of_the_training_images(digits):
    spec = fnet.ModelSpec(1, width=8, input_shape=(16, 16, 1), stages=((1, 2),))
    model, recipe = fnet.build(spec), fnet.Recipe(batch_size=100, crop_padding=0.0, flip=False)
    estimate = batchnorm_estimator(model, digits.train, recipe, tf.distribute.get_strategy())
    for _ in range(2):  # the same, however often
        estimate()
        inputs = model.get_layer("stem")(digits.train.images[:1200] / np.float32(255)).numpy()  # 12 whole batches
        norm = model.get_layer("stem_bn")
        np.testing.assert_allclose(norm.moving_mean, inputs.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(norm.moving_variance, inputs.var((0, 1, 2)), rtol=1e-3)
    assert not np.allclose(model.get_layer("stage1_block1_pointwise_bn").moving_variance, 1)


def test_the_last_float_epochs_accuracy_is_that_of_the_file(run, digits):
    last = [row for row in run.history() if row["phase"] == "float"][-1]
    assert last["val_accuracy"] == run.metrics["accuracy"]["validation"]["float"]
    assert last["val_accuracy"] == fnet.accuracy(run.float_model(), digits.validation)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(digits, spec, tmp_path):
    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.layers[-1].kernel.assign(np.full(self.model.layers[-1].kernel.shape, np.nan))

    recipe = fnet.recipe_for("digits", epochs=3)
    with pytest.raises(
        fnet.NanLossError, match=r"the loss is nan at step 1 of float epoch 2; float epoch 1 stays in .*lower"
    ):
        fnet.train(spec, digits, out=tmp_path, recipe=recipe, callbacks=[Poison()], verbose=False)
    checkpoint = read_checkpoint(tmp_path / "checkpoint.npz")
    assert checkpoint.epoch == 1
    assert all(np.isfinite(array).all() for array in checkpoint.arrays)


def test_weight_decay_reaches_kernels_only_and_the_step_is_pure():
    model = fnet.build(fnet.ModelSpec(0, width=8, input_shape=(8, 8, 1), stages=((1, 2),)))
    step = make_step(model, fnet.Recipe(batch_size=4, weight_decay=1.0, momentum=0.0, label_smoothing=0.0))
    images, labels = tf.zeros((4, 8, 8, 1), tf.uint8), tf.zeros((4,), tf.int32)
    model.get_layer("stem_bn").beta.assign([1.0] * 8)
    kernel, beta = model.get_layer("stem").kernel, model.get_layer("stem_bn").beta
    before = kernel.numpy()
    step.train(images, labels, tf.constant(0.1), tf.constant([1, 2]))
    np.testing.assert_allclose(kernel.numpy(), 0.9 * before, atol=1e-4)  # a black image: no gradient but the decay's
    assert np.abs(beta.numpy() - 0.9).min() > 1e-3


def test_xla_compiles_the_step_and_every_variable_is_listed():
    model = fnet.build(fnet.ModelSpec(3, width=8, input_shape=(8, 8, 1), stages=((1, 2),)))
    step = make_step(model, fnet.Recipe(batch_size=4))
    arguments = tf.zeros((4, 8, 8, 1), tf.uint8), tf.zeros((4,), tf.int32), tf.constant(0.1), tf.constant([1, 2])
    compiled = tf.function(step.train, jit_compile=True)
    loss, accuracy = compiled(*arguments)
    assert np.isfinite(loss)
    assert 0 <= accuracy <= 1
    known = {variable.handle.ref() for variable in step.variables}
    assert all(captured.ref() in known for captured in compiled.get_concrete_function(*arguments).captured_inputs)


@pytest.mark.slow
def test_two_replicas_train_as_one_device_does(digits, tmp_path):
    code = """
import sys, numpy as np, tensorflow as tf, tf_keras
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import factorizenet_tf as fnet
from factorizenet_tf.training.loop import compiled_step
from factorizenet_tf.recipe import recipe_from_json
from factorizenet_tf.spec import spec_from_json
from factorizenet_tf.training.loop import make_step
spec, recipe = spec_from_json(sys.argv[1]), recipe_from_json(sys.argv[2])
data = fnet.load_dataset("digits", input_shape=spec.input_shape)
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert two.num_replicas_in_sync == 2

# Each replica gets the same 8 images, so that BatchNorm sees there what it sees in a whole batch of both.
images, labels = (np.concatenate([a[:8], a[:8]]) for a in (data.train.images, data.train.labels))
def after_three_steps(strategy):
    tf_keras.utils.set_random_seed(0)
    with strategy.scope():
        model = fnet.build(spec)
        step = make_step(model, recipe)
    run = compiled_step(step, strategy, 16)
    for i in range(3):
        run(images, labels, 0.1, np.array([0, i], np.int32))
    return [v.numpy() for v in model.trainable_variables]
for a, b in zip(after_three_steps(tf.distribute.get_strategy()), after_three_steps(two)):
    np.testing.assert_allclose(a, b, atol=1e-4)

fnet.train(spec, data, out=sys.argv[3], recipe=recipe, strategy=two, verbose=False)
"""
    spec = fnet.ModelSpec(1, width=8, input_shape=(16, 16, 1), stages=((1, 2),))
    recipe = fnet.recipe_for("digits", epochs=3, qat_epochs=1, crop_padding=0.0, calibration_images=64)
    command = [sys.executable, "-W", "ignore", "-c", code, spec.to_json(), recipe.to_json(), tmp_path / "two"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    with pytest.raises(KeyboardInterrupt):
        fnet.train(spec, digits, out=tmp_path / "one", recipe=recipe, callbacks=[Interrupt(3)], verbose=False)
    one, two = read_checkpoint(tmp_path / "one" / "checkpoint.npz").history, fnet.load_run(tmp_path / "two").history()
    assert [(row["phase"], row["epoch"]) for row in two] == [("float", 1), ("float", 2), ("float", 3), ("qat", 1)]
    # BatchNorm sees half a batch on each replica.
    np.testing.assert_allclose([row["loss"] for row in one], [row["loss"] for row in two[:3]], rtol=0.1)
