import csv
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf.analysis import tracker as callback
from factorizenet_tf.analysis.distributions import describe
from factorizenet_tf.analysis.graph import by_channel, fuse


@pytest.fixture
def small(digits):
    return fnet.ModelSpec(1, width=8, input_shape=digits.image_shape, stages=((1, 2),))


class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise KeyboardInterrupt


def rows_of(folder):
    with open(folder / callback.FILE, newline="") as file:
        return list(csv.DictReader(file))


def epochs_of(folder):
    return list(dict.fromkeys((row["phase"], int(row["epoch"])) for row in rows_of(folder)))


@pytest.mark.usefixtures("no_conversion")
def test_each_epoch_of_both_phases_is_tracked_and_a_stopped_training_goes_on(digits, small, tmp_path):
    few = {name: fnet.Split(*(a[:128] for a in vars(getattr(digits, name)).values())) for name in ("train", "test")}
    digits = dataclasses.replace(digits, **few)
    recipe = fnet.recipe_for("digits", epochs=2, qat_epochs=1, batch_size=128, calibration_images=32)

    def train(*extra):
        tracker = fnet.DistributionTracker(tmp_path / "tracked", digits.calibration(16), share=None)
        options = {"out": tmp_path / "run", "recipe": recipe, "verbose": False}
        return fnet.train(small, digits, callbacks=[*extra, tracker], **options)

    with pytest.raises(KeyboardInterrupt):
        train(Stop())  # before the tracker sees the first epoch's end, after its checkpoint
    assert not (tmp_path / "tracked" / callback.FILE).exists()
    run = train()
    assert epochs_of(tmp_path / "tracked") == [("float", 1), ("float", 2), ("qat", 1)]
    graph = fuse(run.float_model())
    of_epoch = [row for row in rows_of(tmp_path / "tracked") if (row["phase"], row["epoch"]) == ("float", "2")]
    last = {row["layer"]: row for row in of_epoch if row["tensor"] == "folded"}
    assert list(last) == [op.name for op in graph.kernels]
    for op in graph.kernels:
        found, row = describe(by_channel(op.folded, op.kind)).row(), last[op.name]
        assert float(row["range"]) == pytest.approx(found["range"], rel=1e-5)
        assert float(row["average_channel_precision"]) == pytest.approx(found["average_channel_precision"])
        assert float(row["per_channel_sqnr_db"]) >= float(row["per_tensor_sqnr_db"]) - 1e-6
    tags, steps = set(), set()
    for path in (tmp_path / "tracked" / "tensorboard").iterdir():
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            tags |= {value.tag for value in event.summary.value}
            steps |= {event.step} if event.summary.value else set()
    assert {"float/folded/average_channel_precision/stem", "qat/activations/logits"} < tags
    assert {"float/loss", "float/val_accuracy", "qat/accuracy", "qat/learning_rate"} < tags
    assert steps == {1, 2}


def test_epochs_that_are_trained_again_replace_their_lines(digits, small, tmp_path):
    model = fnet.build(small)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels = digits.train.images[:64] / np.float32(255), digits.train.labels[:64]

    def fit(first, last):
        tracker = fnet.DistributionTracker(tmp_path, share=None, tensorboard=False)
        model.fit(images, labels, initial_epoch=first, epochs=last, callbacks=[tracker], verbose=0)

    fit(0, 3)
    assert epochs_of(tmp_path) == [("float", 1), ("float", 2), ("float", 3)]
    before = rows_of(tmp_path)
    fit(1, 2)  # goes back to the end of epoch 1
    after = rows_of(tmp_path)
    assert epochs_of(tmp_path) == [("float", 1), ("float", 2)]
    kernels = len(fuse(model).kernels)
    assert after[:kernels] == before[:kernels]
    assert after[kernels]["range"] != before[kernels]["range"]
    assert not (tmp_path / "tensorboard").exists()
    (tmp_path / callback.FILE).write_text("phase,epoch,layer,tensor,range\nfloat,one,stem,folded,1\n")
    with pytest.raises(ValueError, match="is damaged"):
        fit(2, 3)


def test_it_takes_no_more_than_its_share_of_the_time(small, tmp_path, monkeypatch):
    clock, measured = [0.0], []
    monkeypatch.setattr(callback.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(callback, "fuse", lambda model: SimpleNamespace(kernels=()))
    tracker = fnet.DistributionTracker(tmp_path, share=0.05, tensorboard=False)
    tracker.set_model(fnet.build(small))

    def write(path, text):  # a measurement is a tenth of an epoch
        measured.append(epoch)
        clock[0] += 1.0

    monkeypatch.setattr(callback, "write_text", write)
    tracker.on_train_begin()
    for epoch in range(1, 41):
        tracker.on_epoch_begin(epoch - 1)
        clock[0] += 10.0
        tracker.on_epoch_end(epoch - 1)
    assert measured[:3] == [1, 4, 6]
    assert len(measured) / (40 * 10 + len(measured)) <= 0.05


def test_bad_arguments_are_refused(tmp_path, noise):
    with pytest.raises(ValueError, match="share is 2"):
        fnet.DistributionTracker(tmp_path, share=2)
    with pytest.raises(TypeError, match="images has dtype float64"):
        fnet.DistributionTracker(tmp_path, noise(2) / 255)
