"""`factorizenet factorize`."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pandas
import pytest
from PIL import Image

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.cli.options import fitting
from factorizenet_tf.loading import resolve
from factorizenet_tf.models import factorize as factorizing
from factorizenet_tf.tflite import latency
from factorizenet_tf.training import train
from factorizenet_tf.training.factorized import labelled_by

LATENCY = {"latency_ms": 1.5, "latency_ratio": 1.5, "latency_machine": "a machine"}
DATA = ["--dataset", "digits", "--quiet"]


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A net of somebody's own, untrained, with two regular convolutions behind the first."""
    from tf_keras import Input, Sequential, layers

    convolutions = [layers.Conv2D(n, 3, padding="same", activation="relu", name=f"conv{n}") for n in (8, 16, 24)]
    path = tmp_path_factory.mktemp("mine") / "mine.keras"
    head = [layers.GlobalAveragePooling2D(), layers.Dense(10)]
    Sequential([Input((16, 16, 1)), *convolutions, *head], name="mine").save(path)
    return path


def test_a_net_is_factorized_within_a_share_of_its_macs_and_is_a_net_like_others(mine, tmp_path, prints_json):
    out, table, figure = (tmp_path / name for name in ("half.keras", "table.csv", "map.svg"))
    paths = ["--out", out, "--table", table, "--figure", figure]
    found = prints_json("factorize", mine, *DATA, "--max-macs", "50%", "--images", 64, *paths)
    assert all(text in figure.read_text() for text in ("conv24", "4, 3", "error of the logits"))
    original, factorized = found["nets"]
    assert factorized["macs"] <= 0.5 * original["macs"]
    assert abs(factorized["validation_accuracy"] - original["validation_accuracy"]) < 0.3
    assert fnet.count_macs(resolve(out).float_model()) == factorized["macs"]
    assert set(pandas.read_csv(table).layer) == {"conv16", "conv24"} == {row["layer"] for row in found["layers"]}


@pytest.fixture
def bytes_for_milliseconds(monkeypatch):
    """A file of 1,000 bytes takes 1 ms."""
    for module in (factorizing, latency):
        monkeypatch.setattr(module, "inference", lambda content, threads=1: len(content) / 1000)
        monkeypatch.setattr(module, "time_in_turns", lambda times: np.array([times]))


@pytest.mark.usefixtures("bytes_for_milliseconds")
def test_levels_are_chosen_for_milliseconds_too(mine, tmp_path, prints_json, fails):
    table = tmp_path / "table.csv"
    command = ["factorize", mine, *DATA, "--images", 64, "--max-latency-ms"]
    original, factorized = prints_json(*command, "80%", "--max-macs", "70%", "--table", table)["nets"]
    assert factorized["ms"] <= 0.8 * original["ms"]
    assert factorized["macs"] <= 0.7 * original["macs"]
    assert (pandas.read_csv(table).ms > 0).all()
    by_time = prints_json(*command, f"{0.8 * original['ms']:.4f}")["nets"][1]
    assert by_time["ms"] <= 0.8 * original["ms"]
    missed = fails(*command, "0.01")
    assert re.search(r"is '0.01'; within 1,198,320 MACs no levels .* The net takes \S+ ms .* about \d", missed), missed
    assert "keeps to --max-macs 100% and --max-latency-ms 100% as it is" in fails(
        *command, "100%", "--max-macs", "100%"
    )


@pytest.mark.usefixtures("bytes_for_milliseconds")
def test_a_net_that_is_slower_than_its_layers_alone_is_chosen_again_tighter(mine, monkeypatch, tmp_path):
    module, times = sys.modules["factorizenet_tf.cli.factorize"], iter([9.8, 9.5, 9.6])
    monkeypatch.setattr(module, "_milliseconds", lambda files: [10.0] if len(files) == 1 else [10.0, next(times)])
    command = ["factorize", str(mine), *DATA, "--images", "64", "--json", "--max-latency-ms"]
    with pytest.warns(UserWarning, match=r"takes 9.5000 ms, more than the 9.0000 of --max-latency-ms 90%"):
        assert main([*command, "90%", "--out", str(tmp_path / "net.keras")]) == 0  # the fastest of three
    assert (tmp_path / "net.keras").exists()
    times = iter([9.1])
    assert main([*command, "90%"]) == 0  # within the timer's noise of 2 %
    with pytest.raises(StopIteration):
        next(times)


@pytest.mark.usefixtures("bytes_for_milliseconds")
def test_a_card_has_the_levels_that_latencies_led_to(mine, tmp_path, monkeypatch, fails):
    commands, folder = [], tmp_path / "fast"

    def stopped(*arguments, command, **others):
        commands.append(command)
        raise ValueError("stopped")

    monkeypatch.setattr(train, "train", stopped)
    given = ["factorize", mine, *DATA, "--images", 64, "--max-latency-ms", "80%", "--run", folder]
    for _ in range(2):  # the second continues: nothing is chosen again
        assert "stopped" in fails(*given)
    assert commands[0] == commands[1]
    assert re.match(r"factorizenet factorize \S+mine.keras .*--level conv\d+=\d.* --run runs/fast", commands[0])
    assert "latency" not in commands[0]


@pytest.mark.slow
def test_a_factorized_net_is_tuned_by_its_original_published_and_loaded(
    run, tmp_path, prints_json, succeeds, fails, monkeypatch
):
    monkeypatch.setattr(fnet.zoo.publishing, "_latencies", lambda contents, spec: [LATENCY for _ in contents])
    folder, zoo = tmp_path / "half", tmp_path / "zoo"
    # 2 groups become 4, or as many as there are channels.
    command = ["factorize", run.folder, "--level", 3, "--images", 64, "--run", folder, "--epochs", 3, "--quiet"]
    metrics = prints_json(*command)["run"]
    assert metrics["accuracy"]["validation"]["tflite"] > 0.5
    assert metrics["command"].startswith("factorizenet factorize path/to/run --level 3 --epochs 3 ")
    lines = (folder / "history.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines[1:]] == [["float", "1"], ["float", "2"], ["float", "3"], ["qat", "1"]]
    late = [tmp_path / "start.keras", tmp_path / "table.csv"]
    assert prints_json(*command, "--out", late[0], "--table", late[1])["run"] == metrics
    assert all(path.exists() for path in late)
    assert "was begun by `factorizenet factorize path/to/run --level 3" in fails(*command, "--learning-rate", 0.5)
    succeeds("publish", folder, "--zoo", zoo, "--name", "half")
    model = fnet.zoo.load("half-float", zoo_dir=zoo)
    assert type(model.get_layer("stage1_block1_spatial")).__name__ == "DepthwiseConv2D"
    card = fnet.zoo.card("half-int8", zoo_dir=zoo)
    assert isinstance(card.spec, fnet.Architecture)
    assert fnet.count_macs(model) == card.macs == metrics["macs"]
    page = (zoo / "cards" / "half-int8.md").read_text()
    assert "architecture is plain data" in page
    assert metrics["command"].partition("  #")[0] in page
    fnet.zoo.verify("half-int8", zoo_dir=zoo)


def test_images_without_labels_get_those_that_the_net_gives(mine, digits, tmp_path, prints_json, fails):
    folder = tmp_path / "photos"
    (folder / "june").mkdir(parents=True)
    for number, image in enumerate(digits.train.images[:40]):
        Image.fromarray(image[..., 0]).save(folder / "june" / f"{number}.png")
    command = ["factorize", mine, "--level", 1, "--quiet", "--images", 16, "--unlabelled"]
    original, factorized = prints_json(*command, folder)["nets"]
    assert original["validation_accuracy"] == 1  # agreement with itself
    assert 0 <= factorized["validation_accuracy"] <= 1
    data = labelled_by(resolve(mine).float_model(), folder)
    assert (len(data.train), len(data.validation), len(data.test)) == (29, 3, 8)
    assert data.title == "photos, labelled by mine"
    assert "--dataset would have no effect" in fails(*command, folder, "--dataset", "digits")
    (folder / "broken.png").write_bytes(b"no image")
    assert "broken.png is broken" in fails(*command, folder)
    (tmp_path / "none").mkdir()
    assert "none has 0 images" in fails(*command, tmp_path / "none")


def test_levels_are_given_by_layer(mine, succeeds, tmp_path):
    out = tmp_path / "net.keras"
    printed = succeeds("factorize", mine, "--level", "conv16=1,conv24=9", "--images", 0, "--out", out, "--quiet")
    model = resolve(out).float_model()
    assert model.get_layer("conv16_spatial").groups == 2
    assert type(model.get_layer("conv24_spatial")).__name__ == "DepthwiseConv2D"
    assert "depthwise, pointwise" in printed


def test_a_softmax_stays_in_the_file_and_what_cannot_be_tuned_is_named_before_the_work(tmp_path, succeeds, fails):
    from tf_keras import Input, Sequential, layers

    convolutions = [layers.Conv2D(8, 3, activation="selu", name=f"conv{n}") for n in (1, 2)]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(10, activation="softmax")]
    path, out = tmp_path / "theirs.keras", tmp_path / "out.keras"
    Sequential([Input((16, 16, 1)), *convolutions, *head], name="theirs").save(path)
    succeeds("factorize", path, "--level", 1, "--images", 0, "--out", out, "--quiet")
    assert resolve(out).float_model()(np.ones((1, 16, 16, 1))).numpy().sum() == pytest.approx(1)
    assert "TFMOT cannot quantize" in fails("factorize", path, *DATA, "--level", 1, "--run", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_few_images_fill_a_smaller_batch():
    assert fitting(fnet.Recipe(), SimpleNamespace(train=range(10))).batch_size == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --level, or --max-macs"),
        (["--level", 1, "--max-macs", "50%"], "give --level, or --max-macs"),
        (["--level", "most"], "--level is 'most'; give one number, or layer=number"),
        (["--level", "conv61=1"], "did you mean 'conv16'"),
        (["--max-macs", "150%"], "--max-macs is '150%'; a share must be above 0 % and at most 100 %"),
        (["--max-macs", "0%"], "--max-macs is '0%'"),
        (["--max-macs", "100%"], "the net keeps to --max-macs 100% as it is"),
        (["--max-latency-ms", "0%"], "--max-latency-ms is '0%'; a share must be above 0 %"),
        (["--max-latency-ms", "nan"], "--max-latency-ms is 'nan'; give milliseconds above 0: 2.5"),
        (["--max-latency-ms", "2ms"], "--max-latency-ms is '2ms'; give milliseconds above 0: 2.5"),
        (["--max-macs", "1k"], "choice in each layer the net has"),
        (["--max-macs", "50%", "--middle", 2], "--middle would have no effect"),
        (["--max-macs", "50%", "--images", 0], "--images is 0; it must be at least 1"),
        (["--level", 1, "--images", 0], "--images 0 reads none, so --dataset would have no effect"),
        (["--level", 1, "--out", "net.h5"], "must end in .keras"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(mine, fails, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    out = [] if "--out" in arguments else ["--out", "net.keras"]
    assert message in fails("factorize", mine, *DATA, *arguments, *out)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_said_before_the_work(mine, fails, tmp_path, monkeypatch):
    monkeypatch.setattr("factorizenet_tf.loading.resolve", None)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    command = ["factorize", mine, *DATA, "--level", 1, "--run"]
    assert "holds other files and no run" in fails(*command, tmp_path / "taken")
    assert "the name 'my half' cannot be served" in fails(*command, tmp_path / "my half")
