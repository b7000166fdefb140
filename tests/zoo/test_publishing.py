import dataclasses
import json
import os
import re
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from PIL import Image
from tf_keras import layers

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.models.weights import load_model, save_weights
from factorizenet_tf.runs import IN_MEMORY, load_run
from factorizenet_tf.tflite.micro_export import export_micro
from factorizenet_tf.zoo import publishing
from factorizenet_tf.zoo.publishing import PublishError, measure_latencies, publish_errors, training_command

FLOAT, INT8 = "fnet-1x2.2x2-l1-x0.5-float", "fnet-1x2.2x2-l1-x0.5-int8"


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def publish(copy, monkeypatch):
    """Publishes into the copied zoo; RAM, latency and SavedModels, which the session's zoo has real, are made up."""
    fields = {"latency_ms": 1.5, "latency_ratio": 1.5, "latency_machine": "a machine"}
    monkeypatch.setattr(publishing, "_latencies", lambda found, spec: [fields for _ in found])
    monkeypatch.setattr(publishing, "arena_bytes", len)
    for method in ("float_model", "qat_model"):
        monkeypatch.setattr(fnet.Run, method, lambda self: None)
    write = "factorizenet_tf.models.convert.write_saved_model"
    monkeypatch.setattr(write, lambda model, folder: (folder.mkdir(), (folder / "a").touch()))
    return lambda run, **options: fnet.zoo.publish(run, zoo_dir=copy, verbose=False, **options)


@pytest.fixture
def other(run, tmp_path):
    """The run with other weights and another .tflite, as if trained with another seed."""
    folder = shutil.copytree(run.folder, tmp_path / "other")
    model = load_model(folder / "float.h5", spec=run.spec, precision="float")
    model.set_weights([weights * 1.01 for weights in model.get_weights()])
    save_weights(model, folder / "float.h5", spec=run.spec, precision="float")
    (folder / "model.tflite").write_bytes((folder / "model.tflite").read_bytes() + bytes(16))
    return folder


def test_a_run_on_data_without_a_test_split_is_published_with_none_of_its_numbers(publish, other, copy):
    metrics = json.loads((other / "metrics.json").read_text())
    del metrics["accuracy"]["test"], metrics["images"]["test"]
    (other / "metrics.json").write_text(json.dumps(metrics))
    publish(other, name="untested")
    card = fnet.zoo.card("untested-int8", zoo_dir=copy)
    assert (card.accuracy, list(card.accuracies)) == (None, ["validation"])
    assert f"{card.validation_accuracy:.2%} on digits (validation)" in repr(card)
    assert "validation and no test images" in (copy / "README.md").read_text()


def test_a_published_run_has_the_runs_numbers(cards, zoo, run):
    for card, key in zip(cards, ("float", "tflite")):
        assert card.spec == run.spec
        assert card.accuracy == run.metrics["accuracy"]["test"][key]
        assert card.validation_accuracy == run.metrics["accuracy"]["validation"][key]
        assert card.accuracies == run.metrics["accuracy"]
        assert (card.macs, card.params) == (fnet.count_macs(run.spec), run.metrics["params"])
    assert cards[0].ram_bytes is None
    card = cards[1]
    assert card.size_bytes == (run.folder / "model.tflite").stat().st_size
    assert 2_000 < card.ram_bytes < 60_000
    assert 0.1 < card.latency_ratio < 3
    assert 0.001 < card.latency_ms < 10
    assert (card.input_scale, card.input_zero_point) == (pytest.approx(1 / 255), -128)
    assert (card.licence, card.older) == (None, {})
    assert (zoo / card.file("history").path).read_text() == (run.folder / "history.csv").read_text()


def test_a_card_of_many_classes_has_the_top_5_beside_the_accuracy(publish, other, copy):
    metrics = json.loads((other / "metrics.json").read_text())
    metrics["top5_accuracy"] = {split: dict.fromkeys(values, 0.875) for split, values in metrics["accuracy"].items()}
    (other / "metrics.json").write_text(json.dumps(metrics))
    publish(other, name="many")
    assert fnet.zoo.card("many-int8", zoo_dir=copy).top5 == metrics["top5_accuracy"]
    assert f"| test, top-5 | 359 |{' 87.50 % |' * 5}\n" in (copy / "cards" / "many-int8.md").read_text()


def test_a_version_is_never_overwritten_and_can_be_pinned(copy, run, other, publish):
    before = contents(copy)
    for page in (before["README.md"], b"older"):  # as a kill between index and pages leaves it
        (copy / "README.md").write_bytes(page)
        with pytest.raises(FileExistsError, match=f"this run is published already, as {INT8}@1"):
            publish(run)
        assert contents(copy) == before
    assert [card.reference for card in publish(other)] == [f"{FLOAT}@2", f"{INT8}@2"]
    assert fnet.zoo.names(zoo_dir=copy) == (FLOAT, INT8)
    assert [c.version for c in fnet.zoo.list(zoo_dir=copy)] == [2, 2]
    assert [c.version for c in fnet.zoo.list(zoo_dir=copy, all_versions=True)] == [1, 2, 1, 2]
    assert {path: data for path, data in before.items() if "models/" in path}.items() <= contents(copy).items()
    weights = {name: fnet.zoo.load(name, zoo_dir=copy).get_weights()[0] for name in (FLOAT, f"{FLOAT}@1", f"{FLOAT}@2")}
    np.testing.assert_array_equal(weights[FLOAT], weights[f"{FLOAT}@2"])
    np.testing.assert_allclose(weights[FLOAT], weights[f"{FLOAT}@1"] * 1.01, rtol=1e-6)
    pages = {f"{name}{version}.md" for name in (FLOAT, INT8) for version in ("", "@1")}
    assert {path.name for path in (copy / "cards").glob("*.md")} == pages


def test_a_name_of_its_own(copy, run, publish):
    assert [card.licence for card in publish(run, name="mine", licence="CC-BY-4.0")] == 2 * ["CC-BY-4.0"]
    assert set(fnet.zoo.names(zoo_dir=copy)) == {FLOAT, INT8, "mine-float", "mine-int8"}
    with pytest.raises(ValueError, match=r"the name '\.\./mine' must be of a-z"):
        publish(run, name="../mine")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("title", "CIFAR-10", "this run: CIFAR-10, images (16, 16, 1), 10 classes"),
        ("class_names", list("abcdefghij"), "10 classes, of other names"),
    ],
)
def test_a_name_of_nets_of_other_data_is_no_version_of_theirs(copy, other, publish, field, value, said):
    dataset = json.loads((other / "dataset.json").read_text()) | {field: value}
    (other / "dataset.json").write_text(json.dumps(dataset))
    before = contents(copy)
    with pytest.raises(
        PublishError, match=rf"is taken by a net of other data .*{re.escape(said)}.*another name: give name="
    ):
        publish(other)
    assert contents(copy) == before
    publishing._check_new(fnet.zoo.list(zoo_dir=copy), "mine", b"", load_run(other), dataset)


def test_a_run_that_does_not_pass_a_gate_is_refused_with_the_reason(run, tmp_path):
    for change, message in (
        (lambda of: of["accuracy"]["validation"].update(float=0.5, tflite=0.47), "int8 is 3.00 points below float on"),
        (
            lambda of: of["accuracy"]["validation"].update(float=0.085, tflite=0.897),
            r"float is 81.20 points below int8 on validation \(at most 5.00 are allowed\): .*BatchNorm statistics lag",
        ),
        (lambda of: of["agreement"].update(top1=0.97, within_1_lsb=0.9), "agree on 97.0 %"),
        (lambda of: of["accuracy"]["validation"].pop("qat"), "has no QAT phase"),
    ):
        metrics = json.loads(json.dumps(run.metrics))
        change(metrics)
        with pytest.raises(PublishError, match=f"is not published: .*{message}"):
            fnet.zoo.publish(dataclasses.replace(run, metrics=metrics), zoo_dir=tmp_path / "zoo", verbose=False)
    assert not (tmp_path / "zoo").exists()
    assert not publish_errors(run)
    undecided = run.metrics | {"agreement": run.metrics["agreement"] | {"top1": 0.97, "within_1_lsb": 0.99}}
    assert not publish_errors(dataclasses.replace(run, metrics=undecided))  # between many classes one step decides


SMALL = {  # layers behind a convolution, and why small devices do not run them in int8; None: they do
    "as MobileNetV3 and EfficientNet": (
        [lambda x: layers.Multiply()([x, layers.Conv2D(8, 1, activation="sigmoid")(x)]), layers.Activation("swish")],
        None,
    ),
    "leaky and elu": ([layers.ReLU(negative_slope=0.1), layers.Conv2D(8, 1, activation="elu")], None),
    "merged": ([lambda x: layers.Maximum()([x, layers.Subtract()([x, layers.Activation("tanh")(x)])])], None),
    "enlarged": ([layers.UpSampling2D(2)], None),
    "in float": ([layers.ReLU(6, 0.1)], r"computes in float32, too \(inspect shows where\); use other layers there"),
    "no kernel": ([layers.Activation("gelu")], "Didn't find op for builtin opcode 'GELU' .*; use other layers there"),
    "no int8 kernel": ([layers.Activation("exponential")], r"exp.cc.*INT8 != FLOAT32"),
    "none, found by running it": ([lambda x: tf.sqrt(layers.ReLU()(x))], "Interpreter invocation failed"),
}


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.filterwarnings("ignore:operators of the layers:RuntimeWarning")
def test_what_both_runtimes_run_in_int8_is_published_and_what_they_do_not_is_said(kind, digits, run, tmp_path):
    middle, said = SMALL[kind]
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 1))
    x = layers.Conv2D(8, 3)(image)
    for layer in middle:
        x = layer(x)
    model = keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
    content = fnet.to_tflite(model, calibration=digits.calibration(8))
    (tmp_path / "model.tflite").write_bytes(content)
    errors = publish_errors(dataclasses.replace(run, folder=tmp_path))
    if said is None:
        assert errors == []
        fields = export_micro(content, tmp_path / "micro", name="small")
        assert fields["lsb_to_litert"] <= 3
    else:
        (error,) = errors
        assert re.search(said, error)


def test_three_images_of_a_small_split_may_be_lost_whatever_the_fractions_round_to(run):
    metrics = json.loads(json.dumps(run.metrics))
    metrics["images"]["validation"] = 144
    for lost, refused in ((3, False), (4, True)):
        for float_right in range(4, 145):
            metrics["accuracy"]["validation"].update(float=float_right / 144, tflite=(float_right - lost) / 144)
            assert bool(publish_errors(dataclasses.replace(run, metrics=metrics))) == refused


def test_two_publishers_at_once_lose_nothing(copy, run, other, publish):
    with ThreadPoolExecutor(2) as pool:
        for cards in pool.map(lambda each: publish(each, name="mine"), (run, other)):
            assert [card.name for card in cards] == ["mine-float", "mine-int8"]
    versions = [card.reference for card in fnet.zoo.list(zoo_dir=copy, all_versions=True) if card.precision == "int8"]
    assert versions == [f"{INT8}@1", "mine-int8@1", "mine-int8@2"]
    assert all(fnet.zoo.load(name, "path", zoo_dir=copy) for name in ("mine-int8@1", "mine-int8@2"))


@pytest.mark.parametrize("step", ["_write_files", "_write_index"])
def test_a_publication_that_fails_leaves_the_zoo_as_it_was(copy, run, publish, monkeypatch, step):
    before = contents(copy)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    works = getattr(publishing, step)
    monkeypatch.setattr(publishing, step, fail)
    with pytest.raises(OSError, match="No space"):
        publish(run, name="mine")
    monkeypatch.setattr(publishing, step, works)
    assert before.items() <= contents(copy).items()
    publish(run, name="mine")  # its files may be there
    assert "mine-int8" in fnet.zoo.names(zoo_dir=copy)


@pytest.mark.parametrize("name", ["README.md", "cards", "frontier.svg"])
def test_a_folder_that_is_no_zoo_keeps_its_files(run, tmp_path, name):
    (tmp_path / name).mkdir() if name == "cards" else (tmp_path / name).write_text("mine")
    with pytest.raises(PublishError, match=rf"is no zoo and has {name}, which .* replace; publish into another folder"):
        fnet.zoo.publish(run, zoo_dir=tmp_path, verbose=False)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_told_before_any_work(copy, run):
    copy.chmod(0o555)
    try:
        with pytest.raises(PermissionError):
            fnet.zoo.publish(run, zoo_dir=copy, name="mine", verbose=False)
    finally:
        copy.chmod(0o755)


def test_latencies_are_measured_for_all_in_one_run(copy, publish):
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


# The command on a card


@pytest.fixture
def trained(run, monkeypatch, tmp_path):
    """Runs `factorizenet train` up to the training, and gives what would be trained, the card's command among it."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        asked = {}
        monkeypatch.setattr(
            "factorizenet_tf.training.train.train",
            lambda spec, data, **options: [asked.update(options, spec=spec, data=data), run][1],
        )
        assert main([*map(str, arguments), "--quiet", "--json"]) == 0
        return SimpleNamespace(**asked)

    return call


def test_the_command_of_a_card_is_the_one_that_was_given_and_trains_the_same_run(trained):
    given = "train --dataset digits --level 0.2.1 --width 24 --size 24 --epochs 6 --learning-rate 0.05 --seed 3 --out x"
    first = trained(*given.split())
    assert first.command == f"factorizenet {given.removesuffix('x')}runs/fnet-l0.2.1-x1.5"
    program, *arguments = shlex.split(first.command)
    again = trained(*arguments)
    assert program == "factorizenet"
    assert (again.spec, again.recipe, again.initial) == (first.spec, first.recipe, None)
    assert again.out == Path("runs/fnet-l0.2.1-x1.5")
    baseline = trained("train", "--dataset", "digits", "--baseline", "resnet8", "--out", "x")
    assert baseline.command == "factorizenet train --dataset digits --baseline resnet8 --out runs/baseline-resnet8"


def test_a_folder_in_a_command_is_a_placeholder_with_a_note(run, trained, tmp_path):
    for number, name in enumerate(["a", "a", "a", "b", "b", "b"]):
        (tmp_path / "my signs" / name).mkdir(parents=True, exist_ok=True)
        Image.new("L", (100, 100), number).save(tmp_path / "my signs" / name / f"{number}.png")
    given = ("train", "--from", run.folder, "--dataset", tmp_path / "my signs", "--resize", "crop", "--skip-broken")
    found = trained(*given, "--out", tmp_path / "x")
    command = found.command
    assert found.data.reading == {"resize": "crop", "skip_broken": True}
    assert str(tmp_path) not in command
    assert command.endswith("  # path/to/my signs: the folder of its images; path/to/run: the float net it starts from")
    assert shlex.split(command, comments=True) == [
        *("factorizenet", "train", "--dataset", "path/to/my signs", "--from", "path/to/run"),
        *("--resize", "crop", "--skip-broken", "--out", "runs/fnet-1x2.2x2-l1-x0.5"),
    ]


def test_a_net_of_another_zoo_stands_in_the_command_with_that_zoo(zoo, trained, monkeypatch):
    given = ("train", "--from", FLOAT, "--dataset", "digits", "--out", "x")
    text = f"factorizenet train --dataset digits --from {FLOAT}@1 --zoo path/to/zoo --out runs/fnet-1x2.2x2-l1-x0.5"
    assert trained(*given, "--zoo", zoo).command == f"{text}  # path/to/zoo: the zoo that has it"
    monkeypatch.setenv("FACTORIZENET_ZOO", str(zoo))
    assert trained(*given).command == f"{text}  # path/to/zoo: the zoo that has it"
    frozen = trained(*given, "--freeze", 1)
    assert frozen.freeze == 1
    assert " --freeze 1 " in frozen.command
    assert trained(*given, "--size", 48).spec.input_shape == (48, 48, 1)  # of its channels


@pytest.mark.parametrize("net", [fnet.ModelSpec((0, 2, 1), input_shape=(24, 24, 1)), fnet.baselines.ResNet8()])
@pytest.mark.parametrize(("initial", "start"), [(None, None), (FLOAT, FLOAT), (IN_MEMORY, "a net")])
def test_without_a_command_line_a_card_has_python_that_trains_the_same_run(run, net, initial, start):
    built = {}
    fnet_alike = SimpleNamespace(
        **{name: getattr(fnet, name) for name in ("ModelSpec", "Stage", "Recipe", "baselines")},
        load_dataset=lambda name, input_shape: (name, input_shape),
        train=lambda spec, data, **options: built.update(spec=spec, data=data, **options),
    )
    from_python = dataclasses.replace(run, spec=net, metrics={"initial": initial, "freeze": 1})
    exec(training_command(from_python, {"name": "digits"}), {"fnet": fnet_alike, "model": "a net"})
    assert (built["spec"], built["recipe"], built.get("initial"), built["freeze"]) == (net, run.recipe, start, 1)
    assert built["data"] == ("digits", net.input_shape)


def test_a_card_names_no_folder_of_this_machine(run, monkeypatch):
    metrics = {"initial": FLOAT, "initial_zoo": "/home/me/zoo"}
    command = training_command(dataclasses.replace(run, metrics=metrics), {"name": "/home/me/signs"})
    assert f"initial=fnet.zoo.load({FLOAT!r}, zoo_dir='path/to/zoo')" in command
    assert "/home/me" not in command
    command = training_command(run, {"name": "arrays"})
    assert "fnet.load_dataset((images, labels), input_shape=(16, 16, 1))" in command
    assert command.endswith("  # images, labels: your arrays")
    monkeypatch.setenv("HOME", "/home/me")
    names = {"/home/me/my/signs": "~/my/signs", "digits": "digits", "/mnt/signs": "/mnt/signs"}
    assert {name: publishing._from_home(name) for name in names} == names
