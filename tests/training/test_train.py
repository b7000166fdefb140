import csv
import dataclasses
import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf.console import Progress
from factorizenet_tf.loading import resolve
from factorizenet_tf.runs import read_checkpoint
from factorizenet_tf.training import train as training
from factorizenet_tf.training.loop import TrainingLoop, batchnorm_estimator, make_step
from factorizenet_tf.zoo.publishing import training_command

EPOCHS = [("float", i) for i in range(1, 7)] + [("qat", 1), ("qat", 2)]
BEGUN = ["dataset.json", "initial.json", "recipe.json", "spec.json"]
FILES = [*BEGUN, "history.csv", "float.h5", "qat.h5", "model.tflite", "metrics.json", "checkpoint.npz"]
FILES = sorted([*FILES, "classes.csv", "confusion.svg", "float_best.h5", "history.svg", "qat_best.h5"])
SMALL = fnet.ModelSpec(1, width=8, input_shape=(16, 16, 1), stages=((1, 2),))


@pytest.fixture(scope="module")
def few(digits):
    """130 training images, two steps an epoch."""
    return dataclasses.replace(digits, train=fnet.Split(digits.train.images[:130], digits.train.labels[:130]))


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


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def epochs_of(history):
    return [(row["phase"], row["epoch"]) for row in history]


def test_the_five_likeliest_of_more_than_20_classes_are_measured_and_no_test_number_without_a_test_split(
    models, digits
):
    many = dataclasses.replace(digits, class_names=tuple(map(str, range(21))))
    both = {"float": models.float, "tflite": models.int8}
    rest = dataclasses.replace(digits, test=None)
    found, untested = (training.measure(both, data, Progress(False)) for data in (many, rest))
    assert list(found["top5_accuracy"]) == ["validation", "test"]
    assert found["accuracy"]["test"]["tflite"] < found["top5_accuracy"]["test"]["tflite"] <= 1
    assert "top5_accuracy" not in untested
    assert list(untested["accuracy"]) == ["validation"]
    assert list(untested["images"]) == ["train", "validation"]


def test_a_run_learns_and_leaves_all_its_files(run, models, digits):
    assert sorted(os.listdir(run.folder)) == FILES
    accuracies = run.metrics["accuracy"]["test"]
    assert list(accuracies) == ["float", "ptq_per_tensor", "ptq_per_channel", "qat", "tflite"]
    assert min(accuracies.values()) > 0.9
    assert accuracies["tflite"] == fnet.accuracy(models.int8, digits.test)
    assert accuracies["qat"] == fnet.accuracy(models.qat, digits.test)
    agreement = fnet.agreement(models.qat, models.int8, digits.test.images)
    assert run.metrics["agreement"] == dataclasses.asdict(agreement)
    assert agreement.top1 >= 0.99  # one image of 359 may be a tie
    assert (agreement.within_1_lsb >= 0.99, agreement.largest_lsb <= 3) == (True, True)
    assert run.metrics["images"] == {"train": 1294, "validation": 144, "test": 359}
    assert run.metrics["macs"] == fnet.count_macs(run.spec)
    assert fnet.load_run(run.folder) == run
    rows = list(csv.DictReader((run.folder / "history.csv").read_text().splitlines()))
    assert [(row["phase"], int(row["epoch"])) for row in rows] == EPOCHS == epochs_of(run.history())
    assert float(rows[5]["loss"]) < 0.7 * float(rows[0]["loss"])
    # The accuracy that the last float epoch shows is the file's.
    assert float(rows[5]["val_accuracy"]) == run.metrics["accuracy"]["validation"]["float"]
    assert float(rows[5]["val_accuracy"]) == fnet.accuracy(models.float, digits.validation)
    best = resolve(run.folder / "float_best.h5")
    highest = max(float(row["val_accuracy"]) for row in rows[:6])
    assert fnet.accuracy(best.float_model(), digits.validation) == highest
    assert (best.dataset_name, resolve(run.folder / "qat_best.h5").precision) == ("digits", "int8")
    said = "epochs: the folder has 6, you gave 7; it is finished: for more epochs train from it"
    with pytest.raises(ValueError, match=said):
        fnet.train(run.spec, digits, out=run.folder, recipe=dataclasses.replace(run.recipe, epochs=7))


def test_a_finished_run_is_given_and_another_run_refused_with_every_difference(run, models, digits, recipe, tmp_path):
    before = files(run.folder)
    assert fnet.train(run.spec, digits, out=run.folder, recipe=recipe, verbose=False) == run
    other = fnet.ModelSpec(2, width=8, input_shape=(16, 16, 1), stages=run.spec.stages)
    fewer = dataclasses.replace(digits, train=fnet.Split(digits.train.images[:500], digits.train.labels[:500]))
    with pytest.raises(ValueError, match="holds another run") as error:
        fnet.train(other, fewer, out=run.folder, recipe=dataclasses.replace(recipe, epochs=7), verbose=False)
    said = "recipe.epochs: the folder has 6, you gave 7", "spec.level: the folder has 1, you gave 2", "dataset.sha256"
    assert all(text in str(error.value) for text in said)
    assert files(run.folder) == before
    (tmp_path / "letter.txt").write_text("")
    with pytest.raises(ValueError, match="holds other files and no run"):
        fnet.train(run.spec, digits, out=tmp_path, recipe=recipe, verbose=False)
    older = tmp_path / "older"
    older.mkdir()
    for name in ("spec.json", "recipe.json", "dataset.json"):  # it has no initial.json
        shutil.copy(run.folder / name, older)
    with pytest.raises(ValueError, match="started from random weights, you gave weights to start from"):
        fnet.train(run.spec, digits, out=older, recipe=recipe, initial=models.float, verbose=False)
    assert "initial.json" not in os.listdir(older)


@pytest.mark.parametrize(
    ("net", "batch_size", "message"),
    [
        (dataclasses.replace(SMALL, num_classes=4), 64, "digits has 10 classes, the net 4; .*num_classes=10"),
        (fnet.ModelSpec(1), 64, r"the images are \(16, 16, 1\), the net takes \(32, 32, 3\)"),
        (SMALL, 5000, "batch_size is 5000, the training images are 1,294"),
    ],
)
def test_data_spec_and_recipe_that_do_not_fit_are_refused(digits, tmp_path, net, batch_size, message):
    with pytest.raises(ValueError, match=message):
        fnet.train(net, digits, out=tmp_path / "run", recipe=fnet.Recipe(batch_size=batch_size))
    assert not (tmp_path / "run").exists()


def test_stopped_by_a_full_disk_and_ctrl_c_a_run_goes_on_as_if_it_had_not_been(
    run, digits, recipe, tmp_path, no_conversion, monkeypatch
):
    replace, checkpoints = os.replace, []

    def fill_up(source, target):
        if Path(target).name == "checkpoint.npz":
            checkpoints.append(target)
            if len(checkpoints) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    def train(*callbacks):
        return fnet.train(run.spec, digits, out=tmp_path, recipe=recipe, callbacks=callbacks, verbose=False)

    (tmp_path / ".aside-spec.json-x.json").write_text("half")  # of a process killed while it wrote the first files
    monkeypatch.setattr(os, "replace", fill_up)  # the second checkpoint only
    with pytest.raises(OSError, match="No space left"):
        train()
    assert sorted(os.listdir(tmp_path)) == sorted([*BEGUN, "checkpoint.npz", "float_best.h5", "history.csv"])
    assert read_checkpoint(tmp_path / "checkpoint.npz").epoch == 1
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 2
    with pytest.raises(KeyboardInterrupt):
        train(Interrupt(6))
    checkpoint = read_checkpoint(tmp_path / "checkpoint.npz")
    assert (checkpoint.phase, checkpoint.epoch) == ("qat", 1)
    again = train()
    assert epochs_of(again.history()) == EPOCHS
    # Sums of several threads may differ in the last bit, and that grows.
    np.testing.assert_allclose(*([row["loss"] for row in each.history()] for each in (again, run)), rtol=0.02)
    for a, b in zip(again.qat_model().get_weights(), run.qat_model().get_weights()):
        np.testing.assert_allclose(a, b, atol=0.05 * max(1, np.abs(b).max()))


def test_frozen_stages_keep_weights_and_statistics_in_float_and_a_stopped_run_goes_on_with_them(
    run, models, few, tmp_path, no_conversion
):
    def train(name, qat_epochs, **options):
        recipe = fnet.recipe_for("digits", epochs=2, qat_epochs=qat_epochs, calibration_images=64)
        options = {"recipe": recipe, "initial": models.float, "freeze": np.int64(1), "verbose": False} | options
        return fnet.train(run.spec, few, out=tmp_path / name, **options)

    whole = train("whole", 1)
    with pytest.raises(KeyboardInterrupt):
        train("stopped", 0, callbacks=[Interrupt(1)])
    for one, other in zip(train("stopped", 0).float_model().get_weights(), whole.float_model().get_weights()):
        np.testing.assert_allclose(one, other, atol=1e-3)
    assert whole.metrics["freeze"] == 1
    found = {layer.name: layer.get_weights() for layer in whole.float_model().layers if layer.weights}
    for name, weights in found.items():
        is_kept = all(map(np.array_equal, weights, models.float.get_layer(name).get_weights()))
        assert is_kept == name.startswith(("stem", "stage1_")), name
    kernels = [w for w in whole.qat_model().get_weights() if w.shape == found["stem"][0].shape]
    assert not any(np.array_equal(w, found["stem"][0]) for w in kernels)  # QAT trains all
    with pytest.raises(ValueError, match=r"initial\.freeze: the folder has 1, you gave 2"):
        train("whole", 1, freeze=2)
    for options, said in (
        ({"freeze": 3}, "freeze is 3; fnet-1x2.2x2-l1-x0.5 has 2 stages: give a number from 0"),
        ({"initial": None}, "freeze is 1 and the net starts from random weights"),
    ):
        with pytest.raises(ValueError, match=said):
            train("new", 1, **options)


def test_without_its_checkpoint_a_run_starts_anew(digits, spec, run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    for name in ("metrics.json", "checkpoint.npz"):
        (folder / name).unlink()
    with pytest.raises(KeyboardInterrupt):
        fnet.train(spec, digits, out=folder, recipe=run.recipe, callbacks=[Interrupt(1)], verbose=False)
    assert epochs_of(read_checkpoint(folder / "checkpoint.npz").history) == EPOCHS[:1]  # no epoch is repeated


def test_callbacks_see_each_epoch_and_early_stopping_ends_a_phase(few, tmp_path):
    names, told = ("accuracy", "learning_rate", "loss", "val_accuracy"), []
    record = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: told.append("begin"),
        on_train_batch_end=lambda batch, logs: told.append("step"),
        on_epoch_end=lambda epoch, logs: told.append((epoch, *sorted(logs))),
        on_train_end=lambda logs: told.append("end"),
    )
    # Nothing improves by that much after the first epoch, so the second is the last.
    stop = keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=1)
    recipe = fnet.recipe_for("digits", epochs=4, qat_epochs=3)
    model = fnet.build(SMALL)
    loop = TrainingLoop(tmp_path, "a net", few, recipe, (record, stop), Progress(False))
    for phase in ("float", "qat"):
        loop.fit(phase, model)
    assert told == 2 * ["begin", "step", "step", (0, *names), "step", "step", (1, *names), "end"]
    assert epochs_of(loop.history) == [("float", 1), ("float", 2), ("qat", 1), ("qat", 2)]


def test_a_baseline_trains_by_the_same_door_and_without_qat(few, tmp_path):
    spec = fnet.baselines.ResNet8(input_shape=(16, 16, 1))
    recipe = fnet.recipe_for("digits", epochs=1, qat_epochs=0, calibration_images=4)
    run = fnet.train(spec, few, out=tmp_path / "run", recipe=recipe, verbose=False)
    accuracies = run.metrics["accuracy"]["test"]
    assert list(accuracies) == ["float", "ptq_per_tensor", "ptq_per_channel", "tflite"]
    assert accuracies["tflite"] == accuracies["ptq_per_channel"]
    assert "agreement" not in run.metrics
    assert sorted(os.listdir(run.folder)) == sorted({*FILES} - {"qat.h5", "qat_best.h5"})
    assert fnet.load_run(run.folder).spec == spec


def own_net(*layers):
    """A net of somebody's own: what it does to pixels, a convolution, a head."""
    inputs = keras.Input((16, 16, 1))
    x = inputs
    for layer in (*layers, keras.layers.Conv2D(4, 3, name="conv"), keras.layers.GlobalAveragePooling2D()):
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(10, name="logits")(x), name="own")


def test_an_own_net_starts_from_its_own_weights_and_its_card_names_them_and_no_path(few, tmp_path, no_conversion):
    model = own_net(keras.layers.Rescaling(2.0, -1.0))
    spec, still = fnet.architecture_of(model, "mine"), fnet.Recipe(epochs=1, qat_epochs=0, learning_rate=0)
    options = {"recipe": still, "initial": model, "verbose": False}
    run = fnet.train(spec, few, out=tmp_path / "run", teacher=model, **options)
    for before, after in zip(model.get_weights(), run.float_model().get_weights()):
        np.testing.assert_array_equal(before, after)
    command = training_command(run, {"name": "digits"})
    assert command.startswith("fnet.train(fnet.architecture_of(model, 'mine'), ")
    assert ", initial=model, teacher=teacher)" in command
    run.metrics["teacher"] = str(tmp_path / "teacher.h5")
    assert ", teacher='path/to/teacher.h5')" in training_command(run, {"name": "digits"})


def test_an_own_net_that_qat_cannot_take_is_refused_before_the_float_epochs(few, tmp_path):
    spec = fnet.architecture_of(own_net(keras.layers.PReLU()))
    with pytest.raises(ValueError, match=r"TFMOT cannot quantize .*PReLU"):
        fnet.train(spec, few, out=tmp_path / "run", recipe=fnet.Recipe(epochs=1), verbose=False)
    assert not any(tmp_path.iterdir())


def test_a_learning_rate_that_explodes_in_the_first_epoch_is_said_so(digits, tmp_path):
    recipe = fnet.recipe_for("digits", epochs=1, learning_rate=100.0, warmup_epochs=0)
    message = r"the mean loss of float epoch 1 is [\d.e+]+; guessing has 2.3; no epoch was finished: use a lower"
    with pytest.raises(fnet.NanLossError, match=f"training diverged: {message}"):
        fnet.train(SMALL, digits, out=tmp_path, recipe=recipe, verbose=False)
    assert sorted(os.listdir(tmp_path)) == BEGUN


def test_a_net_worse_than_guessing_that_cannot_be_converted_diverged(few, recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "to_tflite", lambda *arguments, **options: 1 / 0)
    loop = TrainingLoop(tmp_path, "a net", few, recipe, (), Progress(False))
    for loss, error, message in (  # guessing has ln(10)
        (2.2, ZeroDivisionError, "division"),
        (2.4, fnet.DivergedError, r"loss is 2.4, more than guessing's 2.3, .*\(division by zero\)"),
    ):
        loop.history = [{"loss": loss}]
        with pytest.raises(error, match=message):
            training._convert(loop, None, None)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(few, tmp_path):
    class Poison(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.layers[-1].kernel.assign(np.full(self.model.layers[-1].kernel.shape, np.nan))

    message = r"the loss is nan at step 1 of float epoch 2; float epoch 1 stays in .*lower"
    with pytest.raises(fnet.NanLossError, match=message):
        fnet.train(SMALL, few, out=tmp_path, callbacks=[Poison()], verbose=False)
    checkpoint = read_checkpoint(tmp_path / "checkpoint.npz")
    assert checkpoint.epoch == 1
    assert all(np.isfinite(array).all() for array in checkpoint.arrays)


def test_batchnorms_statistics_are_those_of_the_training_images_and_stay_where_frozen(digits, few):
    model, recipe = fnet.build(SMALL), fnet.Recipe(batch_size=100, crop_padding=0.0, flip=False)
    estimate = batchnorm_estimator(model, digits.train, recipe)
    for _ in range(2):  # the same, however often
        estimate()
        inputs = model.get_layer("stem")(digits.train.images[:1200] / np.float32(255)).numpy()  # 12 whole batches
        norm = model.get_layer("stem_bn")
        np.testing.assert_allclose(norm.moving_mean, inputs.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(norm.moving_variance, inputs.var((0, 1, 2)), rtol=1e-3)
    assert not np.allclose(model.get_layer("stage1_block1_pointwise_bn").moving_variance, 1)
    model.trainable, before = False, norm.moving_mean.numpy()
    batchnorm_estimator(model, few.train, recipe)()  # of other images
    np.testing.assert_array_equal(norm.moving_mean, before)


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


def test_class_weights_weigh_each_images_loss():
    model = fnet.build(fnet.ModelSpec(0, width=8, input_shape=(8, 8, 1), stages=((1, 2),)))
    model.layers[-1].bias.assign(np.arange(10.0))

    def loss(labels, weights=None):
        step = make_step(model, fnet.Recipe(batch_size=4), class_weights=weights)
        images, rate, seed = tf.zeros((4, 8, 8, 1), tf.uint8), tf.constant(0.0), tf.constant([1, 2])
        return float(step.train(images, tf.constant(labels), rate, seed)[0])

    first, second = loss([0, 0, 0, 0]), loss([1, 1, 1, 1])
    weighed = loss([0, 0, 1, 1], np.array([0.5, 1.5] + 8 * [7.0]))
    assert weighed == pytest.approx(0.25 * first + 0.75 * second, rel=1e-4)
    assert first != pytest.approx(second, rel=1e-4)


@pytest.mark.slow
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
