import dataclasses
import errno
import json
import os
import re
import shlex
import warnings

import numpy as np
import pytest
import typer

import factorizenet_tf as fnet
from factorizenet_tf.classes import lowest_recall, matrix_from_text
from factorizenet_tf.cli import app, main
from factorizenet_tf.cli.train import _errors_page
from factorizenet_tf.loading import resolve
from factorizenet_tf.training.loop import DivergedError

COMMANDS = typer.main.get_command(app).commands
SMALL = ["--dataset", "digits", "--size", 16, "--channels", 1, "--width", 8, "--stages", "1x2", "--quiet"]


# Costs


def test_levels_lists_every_level_with_the_costs_of_the_spec(prints_json, succeeds):
    rows = prints_json("levels", "--width", 8, "--size", 16, "--channels", 1, "--classes", 5, "--stages", "1x2,2x2")
    options = {"width": 8, "input_shape": (16, 16, 1), "num_classes": 5, "stages": ((1, 2), (2, 2))}
    specs = [fnet.ModelSpec(level, **options) for level in range(fnet.max_level(fnet.ModelSpec(0, **options)) + 1)]
    assert [row["name"] for row in rows] == [spec.name for spec in specs]
    assert [row["macs"] for row in rows] == [fnet.count_macs(spec) for spec in specs]
    assert [row["params"] for row in rows] == [fnet.count_params(spec) for spec in specs]
    assert rows[0]["share_of_level_0"] == 1
    assert rows[1]["groups"] == "2"
    table = succeeds("levels")
    assert [name for name in table.split() if name.startswith("fnet-")] == [f"fnet-l{k}" for k in range(7)]
    assert "14,598,784" in table  # level 0's MACs


def test_describe_lists_the_layers_their_sum_and_a_spec_that_reads_back(prints_json, succeeds):
    printed = prints_json("describe", "--level", "1.2.4", "--width", 24)
    spec = fnet.ModelSpec((1, 2, 4), width=24)
    assert printed["name"] == spec.name
    assert printed["spec"] == json.loads(spec.to_json())
    assert [layer["layer"] for layer in printed["layers"]] == [layer.name for layer in spec.plan()]
    assert sum(layer["macs"] for layer in printed["layers"]) == fnet.count_macs(spec)
    total = next(line for line in succeeds("describe", "--level", 2).splitlines() if "total" in line)
    assert f"{fnet.count_macs(fnet.ModelSpec(2)):,}" in total


# Train


def test_train_prints_the_metrics_it_wrote_and_a_second_time_gives_the_same_run(prints_json, capfd, tmp_path):
    out = tmp_path / "run"
    command = ["train", *SMALL[:-1], "--epochs", 1, "--qat-epochs", 1, "--seed", 3, "--out", out]
    assert main([str(a) for a in command]) == 0
    table, err = capfd.readouterr()
    assert err.startswith("fnet-1x2-l2-x0.5 on digits: random crops\n")
    assert [line.split(":")[0] for line in err.splitlines()] == [
        "fnet-1x2-l2-x0.5 on digits",
        "fnet-1x2-l2-x0.5 float 1/1",
        "inserting fake quantization",
        "fnet-1x2-l2-x0.5 qat 1/1",
        "quantizing after training, per tensor",
        "quantizing after training, per channel",
        "evaluating on validation",
        "evaluating on test",
    ]
    run = fnet.load_run(out)
    assert all(text in table for text in ("ptq per channel", f"{run.metrics['macs']:,} MACs", "on 359 test images"))
    assert (
        f"int8, test: {lowest_recall(matrix_from_text(run.metrics['confusion']['test']['int8']), range(10))}" in table
    )
    assert run.spec == fnet.ModelSpec(2, width=8, input_shape=(16, 16, 1), stages=((1, 2),))
    assert (run.recipe.epochs, run.recipe.qat_epochs, run.recipe.seed, run.recipe.flip) == (1, 1, 3, False)
    written = (out / "checkpoint.npz").stat().st_mtime_ns
    assert prints_json(*command, "--quiet") == json.loads((out / "metrics.json").read_text())
    assert (out / "checkpoint.npz").stat().st_mtime_ns == written
    assert capfd.readouterr().err == ""  # --quiet, and TensorFlow's C++ side as well


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "error: interrupted; the same command continues"),
        (DivergedError("diverged; use a lower learning rate"), 1, "error: diverged; use a lower learning rate\n"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 1, "on a disk with room"),
    ],
)
def test_a_training_that_stops_says_why_and_whose_fault_it_was(fails, monkeypatch, tmp_path, error, code, message):
    def stop(*arguments, **options):
        raise error

    monkeypatch.setattr("factorizenet_tf.training.loop.train_epoch", stop)
    assert message in fails("train", *SMALL, "--out", tmp_path / "run", code=code)


@pytest.fixture
def trained(run, monkeypatch):
    """The (spec, initial weights' source) of each training that a command asks for; it gets the session's run at once."""
    found = []

    def train(spec, data, *, initial, **options):
        found.append((spec, initial))
        return run

    monkeypatch.setattr("factorizenet_tf.training.train.train", train)
    return found


def test_fine_tuning_starts_from_the_given_weights_and_takes_their_spec(succeeds, fails, run, trained, tmp_path):
    command = ["train", "--from", run.folder, "--dataset", "digits", "--out", tmp_path / "tuned", "--quiet"]
    succeeds(*command)
    ((spec, initial),) = trained
    assert (spec, initial.reference, initial.precision) == (run.spec, str(run.folder), "float")
    for options in (["--level", 1], ["--width", 16], ["--macro", "2x2,2x2"]):
        assert f"is a {run.spec.name}, so {options[0]} would have no effect; leave it out" in fails(*command, *options)


def test_curves_and_layers_are_written_for_tensorboard_where_asked(succeeds, run, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("factorizenet_tf.training.train.train", lambda *data, **options: asked.append(options) or run)
    command = ["train", "--dataset", "digits", "--out", tmp_path / "run"]
    succeeds(*command)
    succeeds(*command, "--tensorboard")
    assert not asked[0]["callbacks"]
    (tracker,) = asked[1]["callbacks"]
    assert (tracker.folder, len(tracker.images), tracker.tensorboard) == (tmp_path / "run" / "layers", 64, True)
    assert "--tensorboard" not in asked[1]["command"]


def test_a_baseline_is_trained_by_name(succeeds, fails, run, trained, tmp_path):
    command = ["train", "--dataset", "digits", "--size", 8, "--channels", 1, "--out", tmp_path / "run"]
    succeeds(*command, "--baseline", "resnet8")
    assert trained == [(fnet.baselines.ResNet8(input_shape=(8, 8, 1)), None)]
    assert "there is resnet8" in fails(*command, "--baseline", "vgg")
    assert "exclude each other" in fails(*command, "--baseline", "resnet8", "--from", run.folder)


# Quantize


def test_quantize_writes_a_file_of_ones_own_model(own_net, prints_json, succeeds, tmp_path, monkeypatch):
    own_net().save(tmp_path / "mine.h5")
    out = tmp_path / "out"
    command = ["quantize", tmp_path / "mine.h5", "--dataset", "digits", "--method", "ptq", "--out", out, "--quiet"]
    metrics = prints_json(*command)
    assert metrics == json.loads((out / "metrics.json").read_text())
    assert metrics["images"] == {"train": 1294, "validation": 144, "test": 359}
    assert fnet.Int8Model(out / "model.tflite").size_bytes == metrics["size_bytes"]
    monkeypatch.setattr("factorizenet_tf.training.quantize.quantize_own", lambda *arguments, **options: metrics)
    printed = succeeds(*command)
    assert "mine on digits" in printed
    assert "int8, test: balanced accuracy " in printed
    assert str(out / "model.tflite") in printed.replace("\n", "")


# Evaluate


def test_evaluate_repeats_the_accuracy_that_train_measured(prints_json, run):
    for name, precision in (("float.h5", "float"), ("", "tflite")):
        for split in ("test", "validation"):
            (row,) = prints_json("evaluate", run.folder / name, "--dataset", "digits", "--split", split)
            assert row["accuracy"] == run.metrics["accuracy"][split][precision]
            assert (row["dataset"], row["split"], row["images"]) == ("digits", split, run.metrics["images"][split])
    (row,) = prints_json("evaluate", run.folder, "--dataset", "digits", "--threads", 2)
    assert row["file"] == str(run.folder / "model.tflite")
    assert row["size_bytes"] == (run.folder / "model.tflite").stat().st_size
    assert (row["latency_ms"] > 0, row["threads"]) == (True, 2)


def test_what_cannot_be_evaluated_is_refused(fails, run, own_net, tmp_path):
    own_net(classes=5).save(tmp_path / "five.keras")
    (tmp_path / "cut.tflite").write_bytes((run.folder / "model.tflite").read_bytes()[:500])
    for source, option, message in (
        (run.folder, ["--split", "dev"], "split is 'dev'"),
        (run.folder, ["--threads", 0], "threads is 0"),
        (run.folder / "float.h5", ["--threads", 2], "so --threads would have no effect"),
        (tmp_path / "cut.tflite", [], str(tmp_path / "cut.tflite")),
        (tmp_path / "five.keras", [], "the model has 5 classes"),
    ):
        assert message in fails("evaluate", source, "--dataset", "digits", *option)


def test_the_page_of_mistakes_names_classes_that_the_data_has_none_of(run, digits, monkeypatch):
    scores = iter(np.eye(10)[[[9, 9], [1, 1]]])  # the float net takes all for a 9, the int8 one for a 1
    monkeypatch.setattr("factorizenet_tf.models.evaluate.logits", lambda model, images: next(scores))
    zeros = fnet.Split(digits.test.images[:2], np.zeros(2, np.int32))
    two = dataclasses.replace(digits, class_names=("none", "one"))
    page = _errors_page(resolve(run), {"int8": None}, zeros, two)
    assert "float: 9 (" in page
    assert "int8: one (" in page


# Export


def test_export_writes_both_and_says_bytes_and_latency(prints_json, fails, run, tmp_path):
    tflite, folder = tmp_path / "a" / "net.tflite", tmp_path / "b" / "net"
    rows = prints_json("export", run.folder, "--tflite", tflite, "--saved-model", folder)
    images = np.random.default_rng(0).integers(0, 256, (20, *run.spec.input_shape), np.uint8)
    expected = run.int8_model().predict_quantized(images)
    np.testing.assert_array_equal(fnet.Int8Model(tflite).predict_quantized(images), expected)
    sizes = [tflite.stat().st_size, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())]
    assert 0 < rows[0].pop("latency_ms") < 100
    assert rows == [{"file": str(tflite), "bytes": sizes[0]}, {"file": str(folder), "bytes": sizes[1]}]
    assert "nothing to export" in fails("export", run.folder)


def test_export_says_whose_milliseconds_and_leaves_out_what_there_is_none_of(succeeds, run, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda module: module)  # tflite_micro is not needed
    row = {"arena": "", "arenas": {}, "operators": ["AddMean"], "lsb_to_litert": 0}
    monkeypatch.setattr("factorizenet_tf.tflite.micro_export.export_micro", lambda *source, **options: row)
    printed = succeeds("export", run.folder, "--tflite", tmp_path / "a.tflite", "--micro", tmp_path / "sources")
    assert "Written; milliseconds: on this machine, one thread\n" in printed
    assert "steps from litert" in printed
    assert "arenas" not in printed


# Errors of the arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("describe --level 7", "level is 7; at these widths levels go from 0 (regular) to 6 (depthwise)"),
        ("levels --width wide", "'--width'"),
        ("levels --colour red", "--colour"),
        ("sort", "No such command 'sort'"),
        ("train --dataset digits", "'--out'"),
        ("train --dataset digits --out {new} --learning-rate nan", "--learning-rate is nan"),
        (
            "train --dataset no_such_set --out {new}",
            "no folder or data set 'no_such_set'; there are digits, tiny_imagenet, gtsrb, a folder",
        ),
        ("latencies --out {new} --zoo {new}", "no net is looked up, so --zoo would have no effect"),
        ("train --dataset digits --out {new} --zoo {new}", "no net is looked up, so --zoo would have no effect"),
        ("train --dataset digits --out {new} --data-dir {new}", "digits is none of its sets"),
        ("train --dataset digits --out {new} --baseline resnet8 --level 2", "so --level would have no effect"),
        ("quantize m --dataset digits --out {new} --method ptq --qat-epochs 3", "--qat-epochs would have no effect"),
        ("gallery --out {new} --port 9000", "without --serve nothing is served, so --port would have no effect"),
        ("analyze fnet-l2-int8 --dataset digits --data-dir {new}", "digits is none of its sets; leave it out"),
        ("study --dataset digits --out {new} --train-all --zoo {new}", "a zoo, so --zoo would have no effect"),
        ("study --dataset digits --out {new} --levels most", "--levels is 'most'; it must be all, or numbers"),
        ("levels --classes 1", "--classes is 1; a classifier needs"),
        ("levels --channels 2", "--channels is 2; images have 1 or 3"),
        ("levels --macro s3,2x2", "s in --macro is 3; it must be 1 or 2"),
    ],
)
def test_an_argument_out_of_range_is_one_line_with_its_value_and_writes_nothing(fails, tmp_path, arguments, message):
    new = tmp_path / "new"
    assert message in fails(*arguments.format(new=new).split())
    assert not new.exists()


@pytest.mark.parametrize(
    ("command", "text", "said"),
    [
        ("factorize", "for these give stem=True", "for these give --stem"),
        ("evaluate", "give stem=True", "give stem=True"),  # it has no such option
        ("quantize", "a lower qat_learning_rate, or ptq", "a lower --qat-learning-rate, or ptq"),
        (
            "evaluate",
            "mean needs pixel_range; a/pixel_range is a file",
            "mean needs --pixel-range; a/pixel_range is a file",
        ),
        ("evaluate", "give --dataset, in Python dataset= or", "give --dataset, in Python dataset= or"),
    ],
)
def test_pythons_names_become_options_in_errors_and_warnings(command, text, said, monkeypatch, fails):
    def stop(*arguments, **options):
        raise ValueError(text)

    monkeypatch.setattr("factorizenet_tf.loading.resolve", stop)
    needed = {"factorize": ["--level", 1, "--out", "n.keras"], "quantize": ["--dataset", "digits", "--out", "n"]}
    assert fails(command, "net", *needed.get(command, [])) == f"error: {said}\n"
    assert warnings.formatwarning(RuntimeWarning(text), RuntimeWarning, "", 1) == f"warning: {said}\n"


def test_a_limit_of_ram_says_which_arena_it_is(succeeds):
    for command in ("list", "study", "search"):
        text = " ".join(succeeds(command, "--help").split())
        assert "the arena of TensorFlow Lite Micro's reference kernels" in text


def test_without_arguments_a_guide_names_each_command_and_fits_a_screen(succeeds):
    lines = succeeds().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert all(re.search(rf"\b{name}\b", "\n".join(lines)) for name in COMMANDS)
    assert succeeds("--version") == f"factorizenet_tf {fnet.__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_ends_with_an_example_that_it_takes(succeeds, name):
    *_, heading, example = succeeds(name, "--help").splitlines()
    assert (heading, len(example) <= 80) == ("  Example:", True)
    program, command, *arguments = shlex.split(example)
    assert (program, command) == ("factorizenet", name)
    assert COMMANDS[name].make_context(name, arguments).params


def test_no_line_of_the_list_of_commands_is_cut_off(succeeds):
    assert "..." not in succeeds("--help").replace("COMMAND [ARGS]...", "")


def test_verbose_is_for_a_command(fails, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")  # it is put back
    assert "--verbose is for a command" in fails("--verbose")
    assert "(give it before the command: factorizenet --verbose COMMAND)" in fails("doctor", "--verbose")
    assert "--width is 12" in fails("--verbose", "levels", "--width", 12)


def test_the_stack_is_shown_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("FACTORIZENET_TRACEBACK", "1")
    with pytest.raises(ValueError, match="width is 12"):
        main(["levels", "--width", "12"])


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
