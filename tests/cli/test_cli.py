import errno
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import tf_keras as keras
from user_model import small_net

import factorizenet_tf as fnet
from factorizenet_tf import data, files
from factorizenet_tf.cli import main

SMALL = ["--dataset", "digits", "--size", 16, "--channels", 1, "--width", 8, "--stages", "1x2", "--quiet"]


# Costs


def test_levels_lists_every_level_with_the_costs_of_the_spec(prints_json):
    rows = prints_json("levels", "--width", 8, "--size", 16, "--channels", 1, "--classes", 5, "--stages", "1x2,2x2")
    options = {"width": 8, "input_shape": (16, 16, 1), "num_classes": 5, "stages": ((1, 2), (2, 2))}
    specs = [fnet.ModelSpec(level, **options) for level in range(fnet.max_level(fnet.ModelSpec(0, **options)) + 1)]
    assert [row["name"] for row in rows] == [spec.name for spec in specs]
    assert [row["macs"] for row in rows] == [fnet.count_macs(spec) for spec in specs]
    assert [row["params"] for row in rows] == [fnet.count_params(spec) for spec in specs]
    assert rows[0]["share_of_level_0"] == 1
    assert rows[1]["groups"] == "2"


def test_levels_prints_a_table_with_a_line_for_each_level(succeeds):
    table = succeeds("levels")
    assert [name for name in table.split() if name.startswith("fnet-")] == [f"fnet-l{k}" for k in range(7)]
    assert "14,598,784" in table  # level 0's MACs


def test_describe_lists_the_layers_and_a_spec_that_reads_back(prints_json):
    printed = prints_json("describe", "--level", "1.2.4", "--width", 24)
    spec = fnet.ModelSpec((1, 2, 4), width=24)
    assert printed["name"] == spec.name
    assert printed["spec"] == json.loads(spec.to_json())
    assert [layer["layer"] for layer in printed["layers"]] == [layer.name for layer in spec.plan()]
    assert sum(layer["macs"] for layer in printed["layers"]) == fnet.count_macs(spec)


def test_describe_ends_its_table_with_the_sum(succeeds):
    total = next(line for line in succeeds("describe", "--level", 2).splitlines() if "total" in line)
    assert f"{fnet.count_macs(fnet.ModelSpec(2)):,}" in total


# Train


def test_train_prints_the_metrics_it_wrote_and_a_second_time_gives_the_same_run(prints_json, capfd, tmp_path):
    out = tmp_path / "run"
    command = ["train", *SMALL, "--level", 1, "--epochs", 1, "--qat-epochs", 1, "--seed", 3, "--out", out]
    metrics = prints_json(*command)
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert set(metrics["accuracy"]["test"]) == {"float", "ptq_per_tensor", "ptq_per_channel", "qat", "tflite"}
    run = fnet.load_run(out)
    assert run.spec == fnet.ModelSpec(1, width=8, input_shape=(16, 16, 1), stages=((1, 2),))
    assert (run.recipe.epochs, run.recipe.qat_epochs, run.recipe.seed, run.recipe.flip) == (1, 1, 3, False)
    written = (out / "checkpoint.npz").stat().st_mtime_ns
    assert prints_json(*command) == metrics
    assert (out / "checkpoint.npz").stat().st_mtime_ns == written
    assert capfd.readouterr().err == ""  # --quiet, and TensorFlow's C++ side as well


def test_train_prints_a_line_an_epoch_on_stderr_and_its_table_on_stdout(capfd, tmp_path):
    command = ["train", *SMALL[:-1], "--epochs", "2", "--qat-epochs", "0", "--out", tmp_path / "loud"]
    assert main([str(a) for a in command]) == 0
    out, err = capfd.readouterr()
    assert [line.split(":")[0] for line in err.splitlines()] == [
        "fnet-1x2-l2-x0.5 float 1/2",
        "fnet-1x2-l2-x0.5 float 2/2",
        "quantizing after training, per tensor",
        "quantizing after training, per channel",
        "evaluating on validation",
        "evaluating on test",
    ]
    assert "ptq per channel" in out
    assert " MACs" in out


def test_ctrl_c_exits_130_with_one_line(fails, monkeypatch, tmp_path):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("factorizenet_tf.training.loop.train_epoch", interrupted)
    message = fails("train", *SMALL, "--out", tmp_path / "run", code=130)
    assert message.startswith("error: interrupted; the same command continues")


@pytest.mark.slow
def test_after_ctrl_c_in_a_shell_the_same_command_continues(prints_json, tmp_path):
    out = tmp_path / "run"
    command = [str(a) for a in ["train", *SMALL, "--epochs", 12, "--qat-epochs", 0, "--out", out]]
    script = Path(sys.executable).with_name("factorizenet")
    # A runner in the background may ignore SIGINT, and its children with it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen([script, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    while not (out / "history.csv").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert printed == ""
    assert message.startswith("error: interrupted; the same command continues")
    assert message.count("\n") == 1
    before = (out / "history.csv").read_text()
    assert 1 <= before.count("\n") - 1 < 12
    assert not (out / "metrics.json").exists()
    prints_json(*command)
    assert (out / "history.csv").read_text().startswith(before)
    assert [row["epoch"] for row in fnet.load_run(out).history()] == list(range(1, 13))


# Quantize


@pytest.mark.parametrize(("name", "method"), [("mine.keras", "qat"), ("mine.h5", "ptq"), ("mine", "ptq-per-tensor")])
def test_a_model_of_ones_own_is_quantized_from_each_format_by_each_method(prints_json, saved, tmp_path, name, method):
    path = saved(small_net(), name)
    out = tmp_path / "out"
    epochs = ["--qat-epochs", 1] if method == "qat" else []
    arguments = ["quantize", path, "--dataset", "digits", "--method", method, *epochs, "--out", out, "--quiet"]
    metrics = prints_json(*arguments)
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert metrics["method"] == method
    assert metrics["images"] == {"train": 1294, "validation": 144, "test": 359}
    model = fnet.Int8Model(out / "model.tflite")
    assert model.size_bytes == metrics["size_bytes"]
    assert model.labels == tuple("0123456789")
    assert (out / "checkpoint.npz").exists() == (method == "qat")
    test = fnet.load_dataset("digits", input_shape=(8, 8, 1)).test
    assert fnet.accuracy(model, test) == metrics["accuracy"]["test"]["tflite"]


def test_quantize_prints_a_table_and_where_the_file_is(succeeds, saved, tmp_path):
    arguments = ["--dataset", "digits", "--method", "ptq", "--out", tmp_path / "out", "--quiet"]
    printed = succeeds("quantize", saved(small_net(activation="softmax")), *arguments)
    assert "mine on digits" in printed
    assert str(tmp_path / "out" / "model.tflite") in printed.replace("\n", "")


@pytest.mark.parametrize(
    ("model", "method", "message"),
    [
        (lambda: small_net(activation="softmax"), "qat", "ends in a softmax"),
        (lambda: small_net(classes=5), "ptq", "digits has 10 classes, the net 5"),
        (lambda: small_net(keras.layers.LayerNormalization()), "ptq", "is a LayerNormalization"),
        (lambda: small_net(keras.Sequential([keras.layers.ReLU()])), "qat", "model inside the model"),
        (lambda: small_net(keras.layers.BatchNormalization()), "qat", "TFMOT cannot quantize"),
        (lambda: small_net(shape=(8, 8, 2)), "ptq", "with 1 or 3 channels"),
        (lambda: small_net(shape=(None, None, 1)), "ptq", "of a fixed size"),
        (lambda: keras.Sequential([keras.Input((8,)), keras.layers.Dense(10)]), "ptq", "must take images"),
        (small_net, "other", "method is 'other'; it must be one of qat, ptq, ptq-per-tensor"),
    ],
)
def test_quantize_refuses_what_it_cannot_do_and_writes_nothing(fails, saved, tmp_path, model, method, message):
    path, out = saved(model()), tmp_path / "out"
    assert message in fails("quantize", path, "--dataset", "digits", "--method", method, "--out", out, "--quiet")
    assert not out.exists()


@pytest.mark.parametrize("name", ["mine.keras", "mine.h5", "mine"])
def test_a_lambda_layer_is_refused_and_its_code_not_run(fails, saved, tmp_path, name):
    mark = tmp_path / "code-was-run"
    path = saved(small_net(keras.layers.Lambda(lambda x, path=str(mark): [Path(path).touch(), x][1])), name)
    assert mark.exists()  # building the model ran it
    mark.unlink()
    message = fails("quantize", path, "--dataset", "digits", "--method", "ptq", "--out", tmp_path / "out")
    assert "has a Lambda layer" in message
    assert not mark.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["three.keras", "three.h5"])
def test_a_file_of_keras_3_is_refused_with_the_remedy(fails, tmp_path, name):
    path = tmp_path / name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras 3's own, of no concern here
        import keras as keras3

        keras3.Sequential([keras3.Input((8, 8, 1)), keras3.layers.Flatten(), keras3.layers.Dense(10)]).save(path)
    message = fails("quantize", path, "--dataset", "digits", "--out", tmp_path / "out")
    assert f"was saved by Keras {keras3.__version__}" in message
    assert "import tf_keras" in message


def test_quantize_refuses_what_is_quantized_already(fails, run, tmp_path):
    for source in (run.folder / "qat.h5", run.folder / "model.tflite", run.folder):
        assert "quantiz" in fails("quantize", source, "--dataset", "digits", "--out", tmp_path / "out", "--quiet")
    assert not (tmp_path / "out").exists()


# Evaluate


@pytest.mark.parametrize(
    ("name", "precision"), [("float.h5", "float"), ("qat.h5", "qat"), ("model.tflite", "tflite"), ("", "tflite")]
)
def test_evaluate_repeats_the_accuracy_that_train_measured(prints_json, run, name, precision):
    for split in ("test", "validation"):
        (row,) = prints_json("evaluate", run.folder / name, "--dataset", "digits", "--split", split)
        assert row["accuracy"] == run.metrics["accuracy"][split][precision]
        assert (row["dataset"], row["split"], row["images"]) == ("digits", split, run.metrics["images"][split])
    assert ("latency_ms" in row) == (precision == "tflite")


def test_evaluate_says_bytes_latency_and_threads_of_a_tflite(prints_json, run):
    (row,) = prints_json("evaluate", run.folder, "--dataset", "digits", "--threads", 2)
    assert row["file"] == str(run.folder / "model.tflite")
    assert row["size_bytes"] == (run.folder / "model.tflite").stat().st_size
    assert row["latency_ms"] > 0
    assert row["threads"] == 2


def test_evaluate_takes_a_model_of_ones_own(prints_json, saved):
    model = small_net()
    (row,) = prints_json("evaluate", saved(model), "--dataset", "digits", "--split", "train")
    train = fnet.load_dataset("digits", input_shape=(8, 8, 1)).train
    assert row["images"] == len(train) == 1294
    assert row["accuracy"] == pytest.approx(
        np.mean(model.predict(train.images / np.float32(255), verbose=0).argmax(1) == train.labels), abs=2 / 1294
    )


@pytest.fixture
def damaged(run, tmp_path):
    """Files that are no model, by what is wrong with them."""
    tflite, weights = (run.folder / "model.tflite").read_bytes(), (run.folder / "float.h5").read_bytes()
    contents = {
        "noise.tflite": bytes(500),
        "cut.tflite": tflite[: len(tflite) // 2],
        "empty.tflite": b"",
        "noise.h5": b"not HDF5" * 100,
        "cut.h5": weights[: len(weights) // 2],
        "noise.keras": b"no archive" * 10,
        "notes.txt": b"a note",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    return [tmp_path / name for name in (*contents, "folder")]


def test_damaged_and_foreign_files_are_refused_by_every_command_with_their_name(fails, damaged, tmp_path):
    for path in damaged:
        assert str(path) in fails("evaluate", path, "--dataset", "digits")
        assert str(path) in fails("export", path, "--tflite", tmp_path / "new.tflite")
        assert str(path) in fails("export", path, "--saved-model", tmp_path / "new")
        if path.suffix != ".tflite":
            assert str(path) in fails("quantize", path, "--dataset", "digits", "--out", tmp_path / "new")
    assert not list(tmp_path.glob("*new*"))


def test_a_float_tflite_is_refused(fails, tmp_path):
    import tensorflow as tf

    function = tf.function(small_net()).get_concrete_function(tf.TensorSpec((1, 8, 8, 1), tf.float32))
    (tmp_path / "float.tflite").write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([function]).convert())
    message = fails("evaluate", tmp_path / "float.tflite", "--dataset", "digits")
    assert "takes float32 and gives float32; it must be int8" in message


def test_what_is_not_there_is_named(fails, tmp_path):
    for name in ("none", "none.tflite", "none.h5"):
        path, new = tmp_path / name, tmp_path / "new"
        assert str(path) in fails("evaluate", path, "--dataset", "digits")
        assert str(path) in fails("export", path, "--tflite", new)
        assert str(path) in fails("export", path, "--saved-model", new)
        assert str(path) in fails("quantize", path, "--dataset", "digits", "--out", new)
    assert list(tmp_path.iterdir()) == []


def test_a_split_or_a_number_of_threads_that_there_is_not_is_refused(fails, run):
    assert "split is 'dev'" in fails("evaluate", run.folder, "--dataset", "digits", "--split", "dev")
    assert "threads is 0" in fails("evaluate", run.folder, "--dataset", "digits", "--threads", 0)


def test_evaluate_refuses_a_model_of_fewer_classes_than_the_data(fails, saved):
    assert "the model has 5 classes" in fails("evaluate", saved(small_net(classes=5)), "--dataset", "digits")


# Export


def test_export_writes_both_and_says_bytes_and_latency(prints_json, run, tmp_path):
    tflite, folder = tmp_path / "a" / "net.tflite", tmp_path / "b" / "net"
    rows = prints_json("export", run.folder, "--tflite", tflite, "--saved-model", folder)
    images = np.random.default_rng(0).integers(0, 256, (20, *run.spec.input_shape), np.uint8)
    expected = run.int8_model().predict_quantized(images)
    np.testing.assert_array_equal(fnet.Int8Model(tflite).predict_quantized(images), expected)
    sizes = [tflite.stat().st_size, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())]
    assert 0 < rows[0].pop("latency_ms") < 100
    assert rows == [{"file": str(tflite), "bytes": sizes[0]}, {"file": str(folder), "bytes": sizes[1]}]


def test_export_wants_a_target_that_is_not_there_yet(fails, run, tmp_path):
    (tmp_path / "mine").write_text("mine")
    assert "nothing to export" in fails("export", run.folder)
    for option in ("--tflite", "--saved-model"):
        assert "is there already" in fails("export", run.folder, option, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"


# Errors of the arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("describe --level -1", "level is -1; at these widths levels go from 0 (regular) to 6 (depthwise)"),
        ("describe --level 7", "level is 7; at these widths levels go from 0 (regular) to 6 (depthwise)"),
        ("describe --level 1.2", "has 2 entries; there are 3 stages"),
        ("describe --level two", "level is 'two'; it must be a number, or one a stage joined by dots"),
        ("levels --width 12", "width is 12; it must be a positive multiple of 8"),
        ("levels --size 3", "input of 3x3 is smaller than the strides' product 4"),
        ("levels --channels 4", "input_shape has 4 channels"),
        ("levels --classes 1", "num_classes is 1"),
        ("levels --stages 2y2", "macro-architecture is '2y2'; it must be a name"),
        ("levels --stages 1x3", "stage 1 has stride 3"),
        ("levels --width wide", "'--width'"),
        ("levels --colour red", "--colour"),
        ("sort", "No such command 'sort'"),
        ("train --dataset digits", "'--out'"),
        ("train --out {new}", "'--dataset'"),
        ("train --dataset digits --out {new} --level 9", "level is 9"),
        ("train --dataset digits --out {new} --size 0", "input of 0x0"),
        ("train --dataset digits --out {new} --channels 0", "input_shape has 0 channels"),
        ("train --dataset digits --out {new} --epochs 0", "epochs is 0"),
        ("train --dataset digits --out {new} --learning-rate nan", "learning_rate is nan"),
        ("train --dataset digits --out {new} --batch-size 5000", "the training images are 1294"),
        ("train --dataset no_such_set --out {new}", "no data set 'no_such_set'; there are digits, a folder"),
        ("train --dataset ./no/such --out {new}", "no folder no/such"),
    ],
)
def test_an_argument_out_of_range_is_one_line_with_its_value_and_writes_nothing(fails, tmp_path, arguments, message):
    new = tmp_path / "new"
    assert message in fails(*arguments.format(new=new).split())
    assert not new.exists()


def test_without_arguments_the_help_is_shown(succeeds):
    assert succeeds() == succeeds("--help")
    assert "levels" in succeeds()


def test_a_data_set_that_is_not_on_disk_without_a_network_says_how_to_get_it(fails, monkeypatch, tmp_path):
    monkeypatch.setattr(data, "_is_offline", lambda: True)
    message = fails("train", "--dataset", "cifar10", "--data-dir", tmp_path, "--out", tmp_path / "new", "--quiet")
    assert "tfds build cifar10" in message
    assert "TFDS_DATA_DIR" in message
    assert not (tmp_path / "new").exists()


def test_a_folder_without_images_or_with_a_broken_one_is_named(fails, tmp_path):
    root, new = tmp_path / "pictures", tmp_path / "new"
    root.mkdir()
    assert "has 0 class folders" in fails("train", "--dataset", root, "--out", new)
    for name in ("cats", "dogs"):
        (root / name).mkdir()
    assert str(root / "cats") in fails("train", "--dataset", root, "--out", new)
    for name in ("cats", "dogs"):
        (root / name / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    assert f"{root / 'cats' / 'a.png'} is broken" in fails("train", "--dataset", root, "--out", new)
    assert not new.exists()


# Output folders


def test_a_place_that_cannot_be_written_is_named(fails, run, tmp_path):
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "new"
    for arguments in (
        ["train", *SMALL, "--out", inside],
        ["export", run.folder, "--tflite", inside],
        ["export", run.folder, "--saved-model", inside],
    ):
        message = fails(*arguments)
        assert str(tmp_path / "file") in message
        assert "give a path that can be written" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission_is_named(fails, tmp_path):
    tmp_path.chmod(0o500)
    assert str(tmp_path) in fails("train", *SMALL, "--out", tmp_path / "new")


def test_a_full_disk_exits_1_and_says_so(fails, monkeypatch, tmp_path):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    message = fails("train", *SMALL, "--out", tmp_path / "run", code=1)
    assert "No space left on device; give a path that can be written, on a disk with room" in message


def test_a_training_that_diverges_exits_1_and_says_so(fails, tmp_path):
    message = fails("train", *SMALL, "--learning-rate", 100, "--epochs", 1, "--out", tmp_path / "run", code=1)
    assert message.startswith("error: training diverged: the mean loss of float epoch 1 is ")
    assert "use a lower learning rate in a new folder" in message


def test_the_stack_is_shown_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("FACTORIZENET_TRACEBACK", "1")
    with pytest.raises(ValueError, match="width is 12"):
        main(["levels", "--width", "12"])


# Zoo


def test_fine_tuning_starts_from_the_given_weights_and_takes_their_spec(prints_json, fails, run, tmp_path):
    command = ["train", "--from", run.folder, "--dataset", "digits", "--epochs", 1, "--qat-epochs", 1, "--quiet"]
    metrics = prints_json(*command, "--out", tmp_path / "tuned")
    assert fnet.load_run(tmp_path / "tuned").spec == run.spec
    assert metrics["initial"] == str(run.folder)
    assert metrics["accuracy"]["test"]["float"] > 0.7  # one epoch from scratch: about 0.25
    assert "initial.weights: the folder has" in fails(*command, "--out", run.folder)


def test_a_baseline_is_trained_by_name(succeeds, fails, run, monkeypatch, tmp_path):
    specs = []
    monkeypatch.setattr(
        "factorizenet_tf.training.train.train", lambda spec, *rest, **options: [specs.append(spec), run][1]
    )
    command = ["train", "--dataset", "digits", "--size", 8, "--channels", 1, "--out", tmp_path / "run"]
    succeeds(*command, "--baseline", "resnet8")
    assert specs == [fnet.baselines.ResNet8(input_shape=(8, 8, 1))]
    assert "there is resnet8" in fails(*command, "--baseline", "vgg")
    assert "exclude each other" in fails(*command, "--baseline", "resnet8", "--from", run.folder)


def test_an_option_that_would_have_no_effect_is_refused_with_the_reason(fails, saved, run, tmp_path):
    new = ["--dataset", "digits", "--out", tmp_path / "new", "--quiet"]
    for options in (["--level", 1], ["--width", 16], ["--macro", "2x2,2x2"]):
        message = fails("train", "--from", run.folder, *new, *options)
        assert f"is a {run.spec.name}, so {options[0]} would have no effect; leave it out" in message
    for options in (["--level", 2], ["--width", 16], ["--macro", "1x2"]):
        message = fails("train", "--baseline", "resnet8", *new, *options)
        assert f"--baseline resnet8 is one net, so {options[0]} would have no effect" in message
    model = saved(small_net())
    message = fails("quantize", model, "--method", "ptq", "--qat-epochs", 3, *new)
    assert "--method ptq trains nothing, so --qat-epochs would have no effect" in message
    message = fails("evaluate", run.folder / "float.h5", "--dataset", "digits", "--threads", 2)
    assert "so --threads would have no effect" in message
    message = fails("train", *SMALL, "--zoo", tmp_path, "--out", tmp_path / "new")
    assert "without --from no net is looked up, so --zoo would have no effect" in message
    message = fails("train", *SMALL, "--data-dir", tmp_path, "--out", tmp_path / "new")
    assert "--data-dir is where TFDS keeps its data, and digits is none of its sets" in message
    assert not (tmp_path / "new").exists()
