import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf.checkpoint import read_checkpoint
from factorizenet_tf.step import make_step

COMMAND = """
import sys, factorizenet_tf as fnet
spec = fnet.ModelSpec(1, width=8, input_shape=(16, 16, 1), stages=((1, 2), (2, 2)))
data = fnet.load_dataset("digits", input_shape=spec.input_shape)
recipe = fnet.recipe_for("digits", epochs=5, qat_epochs=2, calibration_images=64)
fnet.train(spec, data, out=sys.argv[1], recipe=recipe, verbose=False)
"""


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_run_learns_and_leaves_all_its_files(run, digits):
    names = "spec.json recipe.json dataset.json history.csv float.h5 qat.h5 model.tflite metrics.json checkpoint.npz"
    assert sorted(path.name for path in run.folder.iterdir()) == sorted(names.split())
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
    assert [(row["phase"], int(row["epoch"])) for row in rows] == [("float", i) for i in range(1, 7)] + [("qat", 1)]
    assert float(rows[5]["loss"]) < 0.7 * float(rows[0]["loss"])
    assert [row["loss"] for row in run.history()] == [float(row["loss"]) for row in rows]


def test_a_finished_run_is_given_without_training(run, digits, recipe):
    before = files(run.folder)
    assert fnet.train(run.spec, digits, out=run.folder, recipe=recipe, verbose=False) == run
    assert files(run.folder) == before


def test_a_folder_with_another_run_is_refused_with_the_difference(run, digits, recipe, tmp_path):
    before = files(run.folder)
    with pytest.raises(ValueError, match=r"recipe\.epochs is 6 there, 7 now"):
        fnet.train(run.spec, digits, out=run.folder, recipe=dataclasses.replace(recipe, epochs=7), verbose=False)
    other = fnet.ModelSpec(2, width=8, input_shape=(16, 16, 1), stages=run.spec.stages)
    with pytest.raises(ValueError, match=r"spec\.level is 1 there, 2 now"):
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
    assert not out.exists()


def test_a_folder_that_cannot_be_made_is_an_os_error(digits, spec, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        fnet.train(spec, digits, out=tmp_path / "file" / "run")


def test_killed_in_both_phases_the_same_command_continues(tmp_path):
    def start(folder):
        command = [sys.executable, "-W", "ignore", "-c", COMMAND, str(folder)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def kill_after(folder, lines):
        process = start(folder)
        history = folder / "history.csv"
        while process.poll() is None and not (history.exists() and len(history.read_text().splitlines()) > lines):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "metrics.json").exists()

    killed, straight = tmp_path / "killed", tmp_path / "straight"
    kill_after(killed, 2)
    kill_after(killed, 6)
    assert start(killed).wait() == 0
    assert start(straight).wait() == 0
    runs = fnet.load_run(killed), fnet.load_run(straight)
    epochs = [[(row["phase"], row["epoch"]) for row in run.history()] for run in runs]
    assert epochs[0] == epochs[1] == [("float", i) for i in range(1, 6)] + [("qat", 1), ("qat", 2)]
    losses = [[row["loss"] for row in run.history()] for run in runs]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)
    assert not [name for name in os.listdir(killed) if name.endswith(".tmp")]


def test_a_truncated_checkpoint_is_named_and_kept(digits, spec, recipe, run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("spec.json", "recipe.json", "dataset.json", "checkpoint.npz"):
        content = (run.folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2] if name == "checkpoint.npz" else content)
    with pytest.raises(ValueError, match=r"checkpoint\.npz is damaged"):
        fnet.train(spec, digits, out=folder, recipe=recipe, verbose=False)
    assert (folder / "checkpoint.npz").exists()


class StopAfter(keras.callbacks.Callback):
    def __init__(self, epoch, error=None):
        super().__init__()
        self.epoch, self.error, self.seen = epoch, error, []

    def on_train_batch_end(self, batch, logs=None):
        if self.error and len(self.seen) >= self.epoch:
            raise self.error

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append((epoch, sorted(logs)))
        if not self.error and epoch + 1 >= self.epoch:
            self.model.stop_training = True


def test_callbacks_see_each_epoch_and_can_stop_a_phase(digits, spec, tmp_path):
    callback = StopAfter(1)
    recipe = fnet.recipe_for("digits", epochs=4, qat_epochs=3, calibration_images=64)
    run = fnet.train(spec, digits, out=tmp_path / "run", recipe=recipe, callbacks=[callback], verbose=False)
    assert callback.seen == [(0, ["accuracy", "learning_rate", "loss", "val_accuracy"])] * 2
    assert [row["phase"] for row in run.history()] == ["float", "qat"]


def test_ctrl_c_leaves_the_last_whole_epoch(digits, spec, recipe, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fnet.train(
            spec, digits, out=tmp_path, recipe=recipe, callbacks=[StopAfter(2, KeyboardInterrupt())], verbose=False
        )
    assert read_checkpoint(tmp_path / "checkpoint.npz").epoch == 2
    assert not (tmp_path / "float.h5").exists()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(digits, spec, tmp_path):
    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.layers[-1].kernel.assign(np.full(self.model.layers[-1].kernel.shape, np.nan))

    recipe = fnet.recipe_for("digits", epochs=3)
    with pytest.raises(fnet.NanLossError, match=r"the loss is nan at step 1 of float epoch 2; .*lower learning rate"):
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


def test_two_replicas_train_as_one_device_does(tmp_path):
    code = """
import sys, json, tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import factorizenet_tf as fnet
spec = fnet.ModelSpec(1, width=8, input_shape=(16, 16, 1), stages=((1, 2),))
data = fnet.load_dataset("digits", input_shape=spec.input_shape)
recipe = fnet.recipe_for("digits", epochs=3, qat_epochs=1, crop_padding=0.0, calibration_images=64)
two = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert two.num_replicas_in_sync == 2
runs = [fnet.train(spec, data, out=f"{sys.argv[1]}/{name}", recipe=recipe, strategy=s, verbose=False) for name, s in (("one", None), ("two", two))]
print(json.dumps([[row["loss"] for row in run.history()] for run in runs] + [run.metrics["accuracy"]["test"]["tflite"] for run in runs]))
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-2000:]
    one, two, accuracy_one, accuracy_two = json.loads(result.stdout.strip().splitlines()[-1])
    np.testing.assert_allclose(one, two, rtol=0.1)  # BatchNorm sees half a batch on each replica
    assert abs(accuracy_one - accuracy_two) < 0.1
