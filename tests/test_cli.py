import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf.cli import main


@pytest.fixture
def call(capfd):
    """Run the command; gives (exit code, stdout, stderr's `error:` lines)."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, [line for line in err.splitlines() if line.startswith("error:")]

    return run


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A small tf_keras model of a user's, saved as .keras and .h5."""
    folder = tmp_path_factory.mktemp("own")
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            layers.Conv2D(8, 3, strides=2),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ],
        name="mine",
    )
    for ending in (".keras", ".h5"):
        model.save(folder / f"mine{ending}")
    return folder


def test_levels_and_describe_show_the_family(call):
    code, out, _ = call("levels", "--stages", "1x1,3x2,4x2", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["level"] for row in rows] == list(range(7))
    assert (rows[0]["macs"], rows[2]["macs"]) == (16_958_080, 6_111_872)
    code, out, _ = call("describe", "--level", "1.2.4", "--stages", "1x1,3x2,4x2", "--json")
    described = json.loads(out)
    assert described["name"] == "fnet-l1.2.4"
    assert sum(layer["macs"] for layer in described["layers"]) == fnet.count_macs(
        fnet.ModelSpec((1, 2, 4), stages=((1, 1), (3, 2), (4, 2)))
    )
    assert "6,111,872" in call("levels", "--stages", "1x1,3x2,4x2")[1]
    assert "stage1_block1_spatial" in call("describe")[1]


def test_help_and_tables_load_neither_tensorflow_nor_pandas():
    for arguments in (["--help"], ["train", "--help"], ["levels"], ["describe"], []):
        code = f"import sys\nfrom factorizenet_tf.cli import main\nassert main({arguments}) == 0\n"
        code += "assert not {'tensorflow', 'pandas', 'keras', 'tf_keras'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_train_evaluate_and_export_go_together(call, tmp_path):
    out = tmp_path / "run"
    arguments = (
        "train",
        "--level",
        1,
        "--width",
        8,
        "--dataset",
        "digits",
        "--size",
        16,
        "--channels",
        1,
        "--stages",
        "1x2,2x2",
    )
    arguments = (*arguments, "--epochs", 4, "--qat-epochs", 1, "--out", out, "--quiet")
    code, text, _ = call(*arguments, "--json")
    assert code == 0
    metrics = json.loads(text)
    code, text, _ = call("evaluate", out, "--dataset", "digits", "--json")
    (row,) = json.loads(text)
    assert row["accuracy"] == metrics["accuracy"]["test"]["tflite"]
    assert (row["images"], row["size_bytes"]) == (359, metrics["size_bytes"])
    for name, precision in (("float.h5", "float"), ("qat.h5", "qat")):
        (row,) = json.loads(call("evaluate", out / name, "--dataset", "digits", "--split", "validation", "--json")[1])
        assert row["accuracy"] == metrics["accuracy"]["validation"][precision]
    assert "MACs" in call(*arguments)[1]  # the finished run as tables

    written = json.loads(
        call("export", out, "--tflite", tmp_path / "a.tflite", "--saved-model", tmp_path / "sm", "--json")[1]
    )
    assert (tmp_path / "a.tflite").read_bytes() == (out / "model.tflite").read_bytes()
    assert written[0]["bytes"] == metrics["size_bytes"]
    assert call("export", out / "qat.h5", "--tflite", tmp_path / "b.tflite")[0] == 0
    same = [
        fnet.Int8Model(tmp_path / name).predict(np.zeros((1, 16, 16, 1), np.uint8)) for name in ("a.tflite", "b.tflite")
    ]
    np.testing.assert_array_equal(*same)

    code, _, errors = call("export", out, "--tflite", tmp_path / "a.tflite")
    assert code == 2
    assert "is there already" in errors[0]
    code, _, errors = call("export", out / "float.h5", "--tflite", tmp_path / "c.tflite")
    assert code == 2
    assert "is a float model" in errors[0]
    code, _, errors = call(*arguments, "--seed", 1)
    assert code == 2
    assert "recipe.seed is 0 there, 1 now" in errors[0]


@pytest.mark.parametrize(("ending", "method"), [(".keras", "ptq"), (".h5", "ptq-per-tensor"), (".h5", "qat")])
def test_a_users_own_model_is_quantized(call, own, tmp_path, ending, method):
    arguments = ("quantize", own / f"mine{ending}", "--dataset", "digits", "--method", method, "--qat-epochs", 1)
    code, text, _ = call(*arguments, "--out", tmp_path / "out", "--quiet", "--json")
    assert code == 0
    metrics = json.loads(text)
    assert metrics["macs"] == 9 * 8 * 49 + 80
    assert set(metrics["accuracy"]["test"]) == {"float", "tflite"}
    assert fnet.Int8Model(tmp_path / "out" / "model.tflite").labels == tuple("0123456789")
    if method == "qat":
        assert metrics["accuracy"]["test"]["tflite"] > metrics["accuracy"]["test"]["float"] + 0.05
    code, _, errors = call(
        "quantize",
        own / f"mine{ending}",
        "--dataset",
        "digits",
        "--method",
        "ptq",
        "--qat-epochs",
        2,
        "--out",
        tmp_path / "out",
    )
    assert code == 2
    assert "holds another run" in errors[0]


def test_models_that_cannot_be_quantized_are_refused(call, tmp_path):
    layers = keras.layers
    start = [keras.Input((16, 16, 1)), layers.Flatten()]
    keras.Sequential([*start, layers.Dense(10, activation="softmax")]).save(tmp_path / "softmax.h5")
    keras.Sequential([*start, layers.Lambda(lambda x: x), layers.Dense(10)]).save(tmp_path / "lambda.keras")
    keras.Sequential([*start, layers.Dense(3)]).save(tmp_path / "three.h5")
    (tmp_path / "bad.keras").write_bytes(b"nonsense")
    for name, message in (
        ("softmax.h5", "ends in a softmax"),
        ("lambda.keras", "is no model that tf_keras can load"),
        ("three.h5", "digits has 10 classes, the model 3"),
        ("bad.keras", "is no model that tf_keras can load"),
        ("none.h5", "no model at"),
    ):
        code, _, errors = call("quantize", tmp_path / name, "--dataset", "digits", "--out", tmp_path / "out", "--quiet")
        assert code == 2
        assert message in errors[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["levels", "--width", 12], "width is 12; it must be a positive multiple of 8"),
        (["describe", "--level", 99], "level is 99"),
        (["describe", "--level=-1"], "level is -1"),
        (["describe", "--level", "1.2"], "2 entries; there are 3 stages"),
        (["describe", "--level", "x"], "level is 'x'"),
        (["describe", "--stages", "3"], "stages"),
        (["describe", "--size", 2], "smaller than the strides' product"),
        (["train", "--dataset", "digits", "--out", "x", "--level", 99], "level is 99"),
        (["train", "--dataset", "nonsense", "--out", "x"], "no data set 'nonsense'"),
        (["train", "--dataset", "./no/where", "--out", "x"], "no folder no/where"),
        (["train", "--dataset", "digits", "--out", "x", "--epochs", 0], "epochs is 0"),
        (["train", "--dataset", "digits"], "Missing option '--out'"),
        (["evaluate", "none.tflite", "--dataset", "digits"], "no .tflite file none.tflite"),
        (["evaluate", "none.h5", "--dataset", "digits"], "no model at none.h5"),
        (["evaluate", "none.h5", "--dataset", "digits", "--split", "all"], "split is 'all'"),
        (["export", "none"], "nothing to export"),
        (["nonsense"], "No such command"),
    ],
)
def test_a_callers_error_is_one_plain_line_and_exit_2(call, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, errors = call(*arguments)
    assert code == 2
    assert out == ""
    assert len(errors) == 1
    assert message in errors[0]
    assert os.listdir(tmp_path) == []


def test_a_damaged_file_is_named(call, tmp_path):
    (tmp_path / "bad.tflite").write_bytes(b"nonsense")
    code, _, errors = call("evaluate", tmp_path / "bad.tflite", "--dataset", "digits")
    assert code == 2
    assert "bad.tflite is damaged or no .tflite" in errors[0]


def test_a_run_that_failed_is_exit_1(call, tmp_path, monkeypatch):
    import factorizenet_tf.training

    def fail(*args, **kwargs):
        raise fnet.NanLossError("the loss is nan")

    monkeypatch.setattr(factorizenet_tf.training, "train", fail)
    code, _, errors = call("train", "--dataset", "digits", "--out", tmp_path / "x")
    assert (code, errors) == (1, ["error: the loss is nan"])


def test_ctrl_c_is_exit_130_and_the_same_command_continues(tmp_path):
    command = [
        sys.executable,
        "-m",
        "factorizenet_tf.cli",
        "train",
        "--level",
        "1",
        "--width",
        "8",
        "--dataset",
        "digits",
    ]
    command += ["--size", "16", "--channels", "1", "--epochs", "4", "--qat-epochs", "1", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "run" / "history.csv").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    errors = process.communicate()[1]
    assert process.returncode == 130
    assert "error: interrupted; the same command continues" in errors
    assert "Traceback" not in errors
    assert (
        subprocess.run(
            [*command, "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        ).returncode
        == 0
    )
    assert [row["epoch"] for row in fnet.load_run(tmp_path / "run").history()] == [1, 2, 3, 4, 1]


def test_benchmark_says_what_holds(call, monkeypatch, run):
    from factorizenet_tf import benchmark

    measured = {"images_per_second": 1.0, "waiting": 0.5, "peak_bytes": 1e9}
    monkeypatch.setattr(benchmark, "_worker", lambda job: measured)
    monkeypatch.setattr(
        benchmark, "_levels_in_turn", lambda *a: {("float", 0): 100.0, ("float", 2): 70.0, ("qat", 0): 65.0}
    )
    code, out, _ = call("benchmark", "--run", run.folder, "--json", "--quiet")
    assert code == 0
    rows = {row["what"]: row for row in json.loads(out)}
    held = {what: row["holds"] for what, row in rows.items()}
    assert held["level 0: training images/s against level 0 (100/s)"]
    assert not held["level 2: training images/s against level 0 (100/s)"]
    assert held["level 0: QAT images/s against float"]
    assert rows["level 2: training images/s against unchanged tf_keras (1/s)"]["value"] == 70
    assert not held["share of a training step spent waiting for data"]
    assert any("top-1 agreement" in what for what in held)
