import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import factorizenet_tf as fnet
from factorizenet_tf.augmentation import to_float
from factorizenet_tf.cards import Cards
from factorizenet_tf.evaluation import logits
from factorizenet_tf.zoo_index import index_to_json

FLOAT, INT8 = "fnet-l1-x0.5-float", "fnet-l1-x0.5-int8"


@pytest.fixture
def family(zoo, tmp_path):
    """A zoo folder whose index lists three int8 models of made-up numbers, without their files."""
    card = fnet.zoo.card(INT8, zoo=zoo)
    rows = [
        ("a-int8", 100, 0.80, 0.90, 10, 1.0),
        ("b-int8", 200, 0.85, 0.84, 20, 2.0),
        ("c-int8", 300, 0.85, 0.99, 30, 3.0),
    ]
    cards = [
        dataclasses.replace(
            card, name=name, macs=macs, validation_accuracy=validation, accuracy=test, ram_bytes=ram, latency_ms=ms
        )
        for name, macs, validation, test, ram, ms in rows
    ]
    (tmp_path / "index.json").write_text(index_to_json(Cards(cards)))
    return tmp_path


def test_names_and_list_need_no_tensorflow(zoo):
    code = f"""
import sys, factorizenet_tf as fnet
zoo = {str(zoo)!r}
print(fnet.zoo.names(zoo=zoo), fnet.zoo.list(zoo=zoo), fnet.zoo.best(zoo=zoo), fnet.zoo.card({INT8!r}, zoo=zoo).macs)
net = fnet.zoo.load({INT8!r}, "tflite", zoo=zoo)
fnet.zoo.load({FLOAT!r}, "path", zoo=zoo), fnet.zoo.load({FLOAT!r}, "saved_model", zoo=zoo)
assert not {{"tensorflow", "tf_keras", "pandas"}} & set(sys.modules), set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_limits_leave_out_what_is_over_them_or_has_no_number(family, zoo):
    assert fnet.zoo.names(zoo=family) == ("a-int8", "b-int8", "c-int8")
    names = lambda **limits: tuple(card.name for card in fnet.zoo.list(zoo=family, **limits))  # noqa: E731
    assert names(max_macs=200) == ("a-int8", "b-int8")
    assert names(max_ram_bytes=10) == ("a-int8",)
    assert names(max_latency_ms=2.5, max_macs=150) == ("a-int8",)
    assert names(max_size_bytes=0) == ()
    assert names(precision="float") == ()
    assert names(dataset="digits") == ("a-int8", "b-int8", "c-int8")
    assert names(dataset="cifar10") == ()
    assert [card.name for card in fnet.zoo.list(max_ram_bytes=10**9, zoo=zoo)] == [INT8]
    with pytest.raises(ValueError, match="precision is 'int4'"):
        fnet.zoo.list(precision="int4", zoo=family)


def test_best_ranks_by_validation_then_macs_never_by_test(family):
    assert fnet.zoo.best(zoo=family).name == "b-int8"
    assert fnet.zoo.best(max_macs=150, zoo=family).name == "a-int8"
    with pytest.raises(ValueError, match="no int8 model within max_macs=50; the smallest is a-int8: 100 MACs"):
        fnet.zoo.best(max_macs=50, zoo=family)
    with pytest.raises(ValueError, match="the zoo has no float model"):
        fnet.zoo.best(precision="float", zoo=family)


def test_best_does_not_compare_data_sets(family):
    index = json.loads((family / "index.json").read_text())
    index["models"][0]["dataset"] = "other"
    (family / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="do not compare; give dataset="):
        fnet.zoo.best(zoo=family)
    assert fnet.zoo.best(dataset="other", zoo=family).name == "a-int8"


def test_each_format_gives_the_trained_net(zoo, run, models, noise, tmp_path, monkeypatch):
    monkeypatch.setenv("FACTORIZENET_CACHE", str(tmp_path))
    images = noise(8)
    for name, model in ((FLOAT, models.float), (INT8, models.qat)):
        np.testing.assert_array_equal(logits(fnet.zoo.load(name, zoo=zoo), images), logits(model, images))
        served = tf.saved_model.load(fnet.zoo.load(name, "saved_model", zoo=zoo)).signatures["serving_default"]
        np.testing.assert_allclose(served(image=to_float(images))["logits"], logits(model, images), atol=1e-5)
    net = fnet.zoo.load(INT8, "tflite", threads=2, zoo=zoo)
    assert net.threads == 2
    np.testing.assert_array_equal(net.predict(images), models.int8.predict(images))
    assert fnet.zoo.load(INT8, "path", zoo=zoo).read_bytes() == (run.folder / "model.tflite").read_bytes()
    assert fnet.zoo.load(FLOAT, "path", zoo=zoo).read_bytes() == (run.folder / "float.h5").read_bytes()


def test_what_cannot_be_loaded_says_what_can(zoo):
    with pytest.raises(ValueError, match=f"{FLOAT} has no tflite .*; load {INT8}"):
        fnet.zoo.load(FLOAT, "tflite", zoo=zoo)
    with pytest.raises(ValueError, match="format is 'onnx'; it must be one of keras, tflite, saved_model, path"):
        fnet.zoo.load(INT8, "onnx", zoo=zoo)
    with pytest.raises(ValueError, match="did you mean"):
        fnet.zoo.load("fnet-l2-x0.5-int8", zoo=zoo)


def test_weights_that_do_not_fit_the_spec_are_refused(zoo, tmp_path):
    import shutil

    copy = shutil.copytree(zoo, tmp_path / "zoo")
    index = json.loads((copy / "index.json").read_text())
    index["models"][0]["spec"]["level"] = 2
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="holds weights of ModelSpec"):
        fnet.zoo.load(FLOAT, zoo=copy)


def test_evaluate_recomputes_the_published_number(zoo, digits):
    for name in (FLOAT, INT8):
        result = fnet.zoo.evaluate(name, zoo=zoo)
        assert result["accuracy"] == result["published"] == fnet.zoo.card(name, zoo=zoo).accuracy
        assert (result["dataset"], result["images"]) == ("digits", 359)
    validation = fnet.zoo.evaluate(INT8, split="validation", dataset=digits, zoo=zoo)
    assert validation["published"] == fnet.zoo.card(INT8, zoo=zoo).validation_accuracy
    other = fnet.zoo.evaluate(INT8, dataset=dataclasses.replace(digits, title="other digits"), zoo=zoo)
    assert other["published"] is None
    with pytest.raises(ValueError, match="split is 'tset'"):
        fnet.zoo.evaluate(INT8, split="tset", zoo=zoo)


def test_every_published_model_is_whole():
    """The zoo that comes with the package: each file's hash, without running anything."""
    from factorizenet_tf.store import open_store

    store = open_store(None)
    cards = store.cards()
    assert all(store.path(file).is_file() for card in cards for file in card.files)
    listed = {file.path for card in cards for file in card.files}
    there = {
        path.relative_to(store.folder).as_posix() for path in (store.folder / "models").rglob("*") if path.is_file()
    }
    assert there == listed
    names = {card.name for card in cards}
    assert {name.removesuffix("-int8") for name in names if name.endswith("-int8")} == {
        name.removesuffix("-float") for name in names if name.endswith("-float")
    }


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "cifar10")),
    reason="TFDS_DATA_DIR has no cifar10",
)
def test_every_published_model_is_what_its_card_says():
    command = [sys.executable, "-m", "factorizenet_tf.cli", "verify", "--all", "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    rows = json.loads(result.stdout)
    assert result.returncode == 0, [row for row in rows if row["passed"] != "ok"]
    assert all(row["passed"] == "ok" for row in rows)
    assert len({row["model"] for row in rows}) == len(fnet.zoo.names())
