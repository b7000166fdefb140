import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.models.weights import save_weights
from factorizenet_tf.runs import IN_MEMORY
from factorizenet_tf.zoo import publishing
from factorizenet_tf.zoo.publishing import PublishError, measure_latencies, publish_errors, training_command

FLOAT, INT8 = "fnet-1x2.2x2-l1-x0.5-float", "fnet-1x2.2x2-l1-x0.5-int8"


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copy(zoo, tmp_path):
    return shutil.copytree(zoo, tmp_path / "zoo")


@pytest.fixture
def quick(monkeypatch):
    """Latency of made-up numbers; the real one is measured once, for the session's zoo."""
    fields = {"latency_ms": 1.5, "latency_ratio": 1.5, "latency_machine": "a machine"}
    monkeypatch.setattr(publishing, "_latencies", lambda found, spec: [fields for _ in found])


def test_a_published_run_has_the_runs_numbers(zoo, run):
    for name, key in ((FLOAT, "float"), (INT8, "tflite")):
        card = fnet.zoo.card(name, zoo_dir=zoo)
        assert card.spec == run.spec
        assert card.accuracy == run.metrics["accuracy"]["test"][key]
        assert card.validation_accuracy == run.metrics["accuracy"]["validation"][key]
        assert card.accuracies == run.metrics["accuracy"]
        assert (card.macs, card.params) == (fnet.count_macs(run.spec), run.metrics["params"])
    assert fnet.zoo.card(FLOAT, zoo_dir=zoo).ram_bytes is None
    card = fnet.zoo.card(INT8, zoo_dir=zoo)
    assert card.size_bytes == (run.folder / "model.tflite").stat().st_size
    assert 2_000 < card.ram_bytes < 60_000
    assert 0.1 < card.latency_ratio < 3
    assert 0.001 < card.latency_ms < 10
    assert (card.input_scale, card.input_zero_point) == (pytest.approx(1 / 255), -128)
    assert (card.licence, card.older) == (None, {})
    log = (zoo / card.file("history").path).read_text()
    assert log == (run.folder / "history.csv").read_text()


@pytest.fixture
def other(run, tmp_path):
    """The run with other weights and another .tflite, as if trained with another seed."""
    folder = shutil.copytree(run.folder, tmp_path / "other")
    model = run.float_model()
    model.set_weights([weights * 1.01 for weights in model.get_weights()])
    save_weights(model, folder / "float.h5", spec=run.spec, precision="float")
    (folder / "model.tflite").write_bytes((folder / "model.tflite").read_bytes() + bytes(16))
    return folder


def test_a_version_is_never_overwritten_and_can_be_pinned(copy, run, other, quick):
    before = contents(copy)
    with pytest.raises(FileExistsError, match=f"this run is published already, as {INT8}@1"):
        fnet.zoo.publish(run, zoo_dir=copy, verbose=False)
    assert contents(copy) == before
    (copy / "README.md").write_text("older")  # as a kill between index and pages leaves it
    with pytest.raises(FileExistsError, match="is published already"):
        fnet.zoo.publish(run, zoo_dir=copy, verbose=False)
    assert contents(copy) == before
    cards = fnet.zoo.publish(other, zoo_dir=copy, verbose=False)
    assert [card.reference for card in cards] == [f"{FLOAT}@2", f"{INT8}@2"]
    assert fnet.zoo.names(zoo_dir=copy) == (FLOAT, INT8)
    assert [c.version for c in fnet.zoo.list(zoo_dir=copy)] == [2, 2]
    assert [c.version for c in fnet.zoo.list(zoo_dir=copy, all_versions=True)] == [1, 2, 1, 2]
    now = contents(copy)
    assert {path: data for path, data in before.items() if path.startswith("models/")}.items() <= now.items()
    weights = {name: fnet.zoo.load(name, zoo_dir=copy).get_weights()[0] for name in (FLOAT, f"{FLOAT}@1", f"{FLOAT}@2")}
    np.testing.assert_array_equal(weights[FLOAT], weights[f"{FLOAT}@2"])
    np.testing.assert_allclose(weights[FLOAT], weights[f"{FLOAT}@1"] * 1.01, rtol=1e-6)
    assert fnet.zoo.verify(f"{INT8}@1", zoo_dir=copy).passed
    assert {path.name for path in (copy / "cards").iterdir()} == {
        f"{name}{version}.md" for name in (FLOAT, INT8) for version in ("", "@1")
    }
    with pytest.raises(ValueError, match=f"{INT8} has no version '3'; there are {INT8}@1, {INT8}@2"):
        fnet.zoo.load(f"{INT8}@3", zoo_dir=copy)


def test_a_name_of_its_own(copy, run, quick):
    cards = fnet.zoo.publish(run, zoo_dir=copy, name="mine", licence="CC-BY-4.0", verbose=False)
    assert [card.licence for card in cards] == 2 * ["CC-BY-4.0"]
    assert set(fnet.zoo.names(zoo_dir=copy)) == {FLOAT, INT8, "mine-float", "mine-int8"}
    with pytest.raises(ValueError, match=r"the name '\.\./mine' must be of a-z"):
        fnet.zoo.publish(run, zoo_dir=copy, name="../mine", verbose=False)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("title", "CIFAR-10", "this run: CIFAR-10, images (16, 16, 1), 10 classes"),
        ("class_names", list("abcdefghij"), "10 classes, of other names"),
    ],
)
def test_a_name_of_nets_of_other_data_is_no_version_of_theirs(copy, other, quick, field, value, said):
    dataset = json.loads((other / "dataset.json").read_text()) | {field: value}
    (other / "dataset.json").write_text(json.dumps(dataset))
    before = contents(copy)
    with pytest.raises(
        PublishError, match=r"fnet-1x2.2x2-l1-x0\.5 is taken by a net of other data .*--name, or name="
    ) as error:
        fnet.zoo.publish(other, zoo_dir=copy, verbose=False)
    assert said in str(error.value)
    assert contents(copy) == before
    cards = fnet.zoo.publish(other, zoo_dir=copy, name="mine", verbose=False)
    assert cards[0].reference == "mine-float@1"


def test_a_run_that_does_not_pass_a_gate_is_refused_with_the_reason(run, tmp_path, monkeypatch):
    def refused(change):
        metrics = json.loads(json.dumps(run.metrics))
        change(metrics)
        with pytest.raises(PublishError, match="is not published") as error:
            fnet.zoo.publish(dataclasses.replace(run, metrics=metrics), zoo_dir=tmp_path / "zoo", verbose=False)
        return str(error.value)

    assert "agree on 97.0 %" in refused(lambda m: m["agreement"].update(top1=0.97))
    assert "int8 is 3.00 points below float on validation" in refused(
        lambda m: m["accuracy"]["validation"].update(float=0.5, tflite=0.47)
    )
    far_below = refused(lambda m: m["accuracy"]["validation"].update(float=0.085, tflite=0.897))
    assert "float is 81.20 points below int8 on validation (at most 5.00 are allowed)" in far_below
    assert "BatchNorm statistics lag behind its weights; train it again" in far_below
    assert "has the operators DEQUANTIZE, FlexConv," in refused(
        lambda m: m["operators"].extend(["FlexConv", "DEQUANTIZE"])
    )
    both = refused(lambda m: (m["agreement"].update(top1=0.5), m["operators"].append("CUSTOM")))
    assert "agree on 50.0 %" in both
    assert "CUSTOM" in both
    assert not (tmp_path / "zoo").exists()
    assert not publish_errors(run)


PUBLISH = """
import sys
import factorizenet_tf as fnet
from factorizenet_tf.zoo import publishing
fields = {"latency_ms": 1.5, "latency_ratio": 1.5, "latency_machine": "a machine"}
publishing._latencies = lambda found, spec: [fields for _ in found]
if len(sys.argv) > 4:
    import os, signal
    step = getattr(publishing, sys.argv[4])
    def killed(*arguments):
        step(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(publishing, sys.argv[4], killed)
fnet.zoo.publish(sys.argv[1], zoo_dir=sys.argv[2], name=sys.argv[3], verbose=False)
"""


def publishing_process(*arguments):
    command = [sys.executable, "-W", "ignore", "-c", PUBLISH, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def ended(process):
    """Its exit code and the end of what it said."""
    return process.communicate()[1][-2000:], process.returncode


@pytest.mark.slow
def test_two_publishers_at_once_lose_nothing(copy, run, other):
    processes = [publishing_process(folder, copy, "mine") for folder in (run.folder, other)]
    for said, code in [ended(process) for process in processes]:
        assert code == 0, said
    versions = [card.reference for card in fnet.zoo.list(zoo_dir=copy, all_versions=True) if card.precision == "int8"]
    assert versions == [f"{INT8}@1", "mine-int8@1", "mine-int8@2"]
    assert all(fnet.zoo.verify(name, zoo_dir=copy).passed for name in ("mine-int8@1", "mine-int8@2"))


@pytest.mark.slow
def test_a_kill_half_way_leaves_the_old_index_whole_and_the_next_goes_on(copy, run):
    before = contents(copy)
    said, code = ended(publishing_process(run.folder, copy, "mine", "_write_files"))
    assert code == -signal.SIGKILL, said
    assert before.items() <= contents(copy).items()
    assert fnet.zoo.names(zoo_dir=copy) == (FLOAT, INT8)
    said, code = ended(publishing_process(run.folder, copy, "yours"))
    assert code == 0, said
    assert sorted(path.name.rpartition("-")[0] for path in (copy / "models").iterdir()) == [
        "fnet-1x2.2x2-l1-x0.5",
        "yours",
    ]


def test_foreign_files_and_folders_in_models_stay_and_left_overs_of_a_publication_go(copy, run, quick):
    """A zoo may be published into a folder whose models/ has TensorFlow Serving's versions, too."""
    models = copy / "models"
    foreign = (
        "notes.txt",
        "served/1/saved_model.pb",
        "run-20260101/float.h5",
        "run-20260101/metrics.json",
        "a-0123abcd/b",
    )
    for name in foreign:
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).write_text("mine")
    (models / ".aside-empty").mkdir()
    for left_over in (".aside-half", "theirs-0123abcd"):
        (models / left_over).mkdir()
        (models / left_over / "float.h5").write_text("half")
    before = contents(copy)
    fnet.zoo.publish(run, zoo_dir=copy, name="mine", verbose=False)
    assert all((models / name).read_text() == "mine" for name in foreign)
    assert not [name for name in (".aside-empty", ".aside-half", "theirs-0123abcd") if (models / name).exists()]
    kept = {path: data for path, data in before.items() if path.startswith("models/fnet")}
    assert kept
    assert kept.items() <= contents(copy).items()


def test_a_publication_that_fails_leaves_the_zoo_as_it_was(copy, run, quick, monkeypatch):
    before = contents(copy)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    for step in ("_write_files", "_write_index"):
        with monkeypatch.context() as patched:
            patched.setattr(publishing, step, fail)
            with pytest.raises(OSError, match="No space"):
                fnet.zoo.publish(run, zoo_dir=copy, name="mine", verbose=False)
        index = contents(copy)["index.json"]
        assert index == before["index.json"]
        assert before.items() <= contents(copy).items()
        assert fnet.zoo.load(INT8, "tflite", zoo_dir=copy).num_classes == 10


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_told_before_any_work(copy, run):
    copy.chmod(0o555)
    try:
        with pytest.raises(PermissionError):
            fnet.zoo.publish(run, zoo_dir=copy, name="mine", verbose=False)
    finally:
        copy.chmod(0o755)


def test_a_folder_that_cannot_be_made_is_told(tmp_path, run):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        fnet.zoo.publish(run, zoo_dir=tmp_path / "file" / "zoo", verbose=False)


def test_a_run_without_qat_or_metrics_is_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run"):
        fnet.zoo.publish(tmp_path, zoo_dir=tmp_path / "zoo")
    metrics = json.loads(json.dumps(run.metrics))
    del metrics["accuracy"]["test"]["qat"]
    with pytest.raises(ValueError, match="has no QAT phase"):
        fnet.zoo.publish(dataclasses.replace(run, metrics=metrics), zoo_dir=tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_latencies_are_measured_for_all_in_one_run(copy, quick):
    cards = measure_latencies(copy, verbose=False)
    assert [card.latency_ms for card in cards] == [None, 1.5]
    assert fnet.zoo.list(zoo_dir=copy) == cards
    assert "1.50" in (copy / "README.md").read_text()


@pytest.mark.slow
def test_a_latency_is_measured_in_turns_with_a_resnet8(run, monkeypatch):
    monkeypatch.setattr(publishing, "LATENCY_ROUNDS", 3)
    reference = publishing._reference(run.spec.input_shape, 10)
    (itself,) = publishing._latencies([reference], run.spec)
    assert itself["latency_ratio"] == pytest.approx(1, abs=0.5)


def commanded(command, run, monkeypatch, tmp_path):
    """What the command of a card trains, by the command line's own parser: spec, recipe, data, start."""
    trained = {}

    def train(spec, data, *, out, recipe, initial, **options):
        trained.update(spec=spec, recipe=recipe, data=data, initial=initial, out=out)
        return run

    monkeypatch.setattr("factorizenet_tf.training.train.train", train)
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(command, comments=True)
    assert program == "factorizenet"
    assert main([*arguments, "--quiet", "--json"]) == 0
    return trained


@pytest.mark.parametrize(
    "net",
    [
        fnet.ModelSpec(3),
        fnet.ModelSpec((0, 2, 1), width=24, input_shape=(24, 24, 1)),
        fnet.ModelSpec(1, width=8, input_shape=(16, 16, 3), stages=((1, 2), (2, 2))),
        fnet.baselines.ResNet8(input_shape=(20, 20, 3)),
    ],
)
@pytest.mark.parametrize(
    "changes", [{}, {"epochs": 6, "learning_rate": 0.05, "seed": 3, "qat_epochs": 1, "batch_size": 32}]
)
def test_the_command_of_a_card_trains_the_same_run(run, net, changes, monkeypatch, tmp_path):
    recipe = fnet.recipe_for("digits", **changes)
    command = training_command(dataclasses.replace(run, spec=net, recipe=recipe), {"name": "digits"})
    trained = commanded(command, run, monkeypatch, tmp_path)
    assert (trained["spec"], trained["recipe"], trained["initial"]) == (net, recipe, None)
    assert (trained["data"].name, trained["data"].image_shape) == ("digits", net.input_shape)
    assert trained["out"] == Path("runs") / net.name


def test_a_folder_in_a_command_is_a_placeholder_with_a_note(run, monkeypatch, tmp_path):
    spec, recipe = fnet.ModelSpec(2, input_shape=(64, 64, 3), num_classes=2), fnet.recipe_for("signs", seed=1)
    signs = dataclasses.replace(run, spec=spec, recipe=recipe, metrics={"initial": "/home/me/runs/a start"})
    command = training_command(signs, {"name": "/home/me/my signs"})
    assert "home" not in command
    assert command.endswith(
        "  # path/to/my signs: the folder of its images; path/to/a start: the float net it starts from"
    )
    assert shlex.split(command, comments=True) == [
        *("factorizenet", "train", "--from", "path/to/a start", "--dataset", "path/to/my signs"),
        *["--size", "64", "--channels", "3", "--seed", "1", "--out", "runs/fnet-l2"],
    ]
    plain = training_command(dataclasses.replace(signs, metrics={}), {"name": "data/signs"})
    for number, name in enumerate(["a", "a", "a", "b", "b", "b"]):
        (tmp_path / "path/to/signs" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 100)).save(tmp_path / "path/to/signs" / name / f"{number}.png")
    trained = commanded(plain, run, monkeypatch, tmp_path)
    assert (trained["spec"], trained["recipe"], trained["data"].name) == (spec, recipe, "path/to/signs")


def test_what_options_cannot_say_is_python_that_trains_the_same_run(run):
    built = {}
    fnet_alike = SimpleNamespace(
        ModelSpec=fnet.ModelSpec,
        recipe_for=fnet.recipe_for,
        load_dataset=lambda name, input_shape: (name, input_shape),
        train=lambda spec, data, **options: built.update(spec=spec, data=data, **options),
    )
    for initial, start in ((None, None), ("fnet-l2-float", "fnet-l2-float"), (IN_MEMORY, "a net")):
        built.clear()
        changed = dataclasses.replace(run, metrics={"initial": initial})  # its recipe has calibration_images=128
        exec(training_command(changed, {"name": "digits"}), {"fnet": fnet_alike, "model": "a net"})
        assert (built["spec"], built["recipe"], built.get("initial")) == (run.spec, run.recipe, start)
        assert built["data"] == ("digits", (16, 16, 1))
    command = training_command(run, {"name": "arrays"})
    assert "fnet.load_dataset((images, labels), input_shape=(16, 16, 1))" in command
    assert command.endswith("  # images, labels: your arrays")


def test_the_command_of_a_set_at_its_own_size_is_as_short_as_can_be(run):
    baseline = dataclasses.replace(run, spec=fnet.baselines.ResNet8(), recipe=fnet.Recipe(seed=3))
    assert training_command(baseline, {"name": "cifar10"}) == (
        "factorizenet train --baseline resnet8 --dataset cifar10 --seed 3 --out runs/baseline-resnet8"
    )


def test_a_card_names_data_below_the_home_folder_from_there(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, written in ((f"{tmp_path}/my/signs", "~/my/signs"), ("digits", "digits"), ("/mnt/signs", "/mnt/signs")):
        assert publishing._from_home(name) == written
