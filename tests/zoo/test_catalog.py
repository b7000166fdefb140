import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import factorizenet_tf as fnet
from factorizenet_tf.models.evaluate import logits
from factorizenet_tf.training.loop import to_float
from factorizenet_tf.zoo.cards import Cards, index_to_json
from factorizenet_tf.zoo.pages import card_page, table_page
from factorizenet_tf.zoo.store import bundled_zoo

FLOAT, INT8 = "fnet-l1-x0.5-float", "fnet-l1-x0.5-int8"


@pytest.fixture
def family(zoo, tmp_path):
    """A zoo folder whose index lists three int8 models of made-up numbers, without their files."""
    card = fnet.zoo.card(INT8, zoo_dir=zoo)
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
print(fnet.zoo.names(zoo_dir=zoo), fnet.zoo.list(zoo_dir=zoo), fnet.zoo.best(zoo_dir=zoo), fnet.zoo.card({INT8!r}, zoo_dir=zoo).macs)
net = fnet.zoo.load({INT8!r}, "tflite", zoo_dir=zoo)
fnet.zoo.load({FLOAT!r}, "path", zoo_dir=zoo), fnet.zoo.load({FLOAT!r}, "saved_model", zoo_dir=zoo)
assert not {{"tensorflow", "tf_keras", "pandas"}} & set(sys.modules), set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_packages_own_pages_are_what_its_index_gives():
    folder = bundled_zoo()
    cards = fnet.zoo.list(all_versions=True, zoo_dir=folder)
    newest = cards.newest()
    table = table_page(newest, findings=(folder / "FINDINGS.md").is_file())
    assert (folder / "README.md").read_text() == table, "the table is of an older index; run write_pages"
    pages = {f"{card.name if card in newest else card.reference}.md": card_page(card) for card in cards}
    assert {path.name: path.read_text() for path in (folder / "cards").iterdir()} == pages


def test_limits_leave_out_what_is_over_them_or_has_no_number(family, zoo):
    assert fnet.zoo.names(zoo_dir=family) == ("a-int8", "b-int8", "c-int8")
    names = lambda **limits: tuple(card.name for card in fnet.zoo.list(zoo_dir=family, **limits))  # noqa: E731
    assert names(max_macs=200) == ("a-int8", "b-int8")
    assert names(max_ram_bytes=10) == ("a-int8",)
    assert names(max_latency_ms=2.5, max_macs=150) == ("a-int8",)
    assert names(max_size_bytes=0) == ()
    assert names(precision="float") == ()
    assert names(dataset="digits") == ("a-int8", "b-int8", "c-int8")
    assert names(dataset="cifar10") == ()
    assert [card.name for card in fnet.zoo.list(max_ram_bytes=10**9, zoo_dir=zoo)] == [INT8]
    with pytest.raises(ValueError, match="precision is 'int4'"):
        fnet.zoo.list(precision="int4", zoo_dir=family)


def test_best_ranks_by_validation_then_macs_never_by_test(family):
    assert fnet.zoo.best(zoo_dir=family).name == "b-int8"
    assert fnet.zoo.best(max_macs=150, zoo_dir=family).name == "a-int8"
    with pytest.raises(ValueError, match="no int8 model within max_macs=50; the smallest is a-int8: 100 MACs"):
        fnet.zoo.best(max_macs=50, zoo_dir=family)
    with pytest.raises(ValueError, match="the zoo has no float model"):
        fnet.zoo.best(precision="float", zoo_dir=family)


def test_best_does_not_compare_data_sets(family):
    index = json.loads((family / "index.json").read_text())
    index["models"][0]["dataset"] = "other"
    (family / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="do not compare; give dataset="):
        fnet.zoo.best(zoo_dir=family)
    assert fnet.zoo.best(dataset="other", zoo_dir=family).name == "a-int8"


def test_each_format_gives_the_trained_net(zoo, run, models, noise, tmp_path, monkeypatch):
    monkeypatch.setenv("FACTORIZENET_CACHE", str(tmp_path))
    images = noise(8)
    for name, model in ((FLOAT, models.float), (INT8, models.qat)):
        np.testing.assert_array_equal(logits(fnet.zoo.load(name, zoo_dir=zoo), images), logits(model, images))
        served = tf.saved_model.load(fnet.zoo.load(name, "saved_model", zoo_dir=zoo)).signatures["serving_default"]
        np.testing.assert_allclose(served(image=to_float(images))["logits"], logits(model, images), atol=1e-5)
    net = fnet.zoo.load(INT8, "tflite", threads=2, zoo_dir=zoo)
    assert net.threads == 2
    np.testing.assert_array_equal(net.predict(images), models.int8.predict(images))
    assert fnet.zoo.load(INT8, "path", zoo_dir=zoo).read_bytes() == (run.folder / "model.tflite").read_bytes()
    assert fnet.zoo.load(FLOAT, "path", zoo_dir=zoo).read_bytes() == (run.folder / "float.h5").read_bytes()


def test_a_second_zoo_is_searched_after_the_first(zoo, run, family, monkeypatch):
    from factorizenet_tf.zoo import store

    monkeypatch.setattr(store, "bundled_zoo", lambda: family)
    assert fnet.zoo.names() == ("a-int8", "b-int8", "c-int8")
    with pytest.raises(ValueError, match="no model"):
        fnet.zoo.load(INT8, "tflite")
    monkeypatch.setenv("FACTORIZENET_ZOO", str(zoo))
    assert fnet.zoo.names() == ("a-int8", "b-int8", "c-int8", FLOAT, INT8)
    assert fnet.zoo.load(INT8, "path").read_bytes() == (run.folder / "model.tflite").read_bytes()
    assert fnet.zoo.is_published(f"{INT8}@1")
    index = json.loads((family / "index.json").read_text())
    index["models"][0] |= {"name": INT8, "macs": 7}
    (family / "index.json").write_text(json.dumps(index))
    assert fnet.zoo.card(INT8).macs == 7
    assert [card.macs for card in fnet.zoo.list() if card.name == INT8] == [7]
    assert fnet.zoo.card(INT8, zoo_dir=zoo).macs > 7
    with pytest.raises(ValueError, match="did you mean"):
        fnet.zoo.card(f"{INT8}8")


def test_what_cannot_be_loaded_says_what_can(zoo):
    with pytest.raises(ValueError, match=f"{FLOAT} has no tflite .*; load {INT8}"):
        fnet.zoo.load(FLOAT, "tflite", zoo_dir=zoo)
    with pytest.raises(ValueError, match="format is 'onnx'; it must be one of keras, tflite, saved_model, path"):
        fnet.zoo.load(INT8, "onnx", zoo_dir=zoo)
    with pytest.raises(ValueError, match="did you mean"):
        fnet.zoo.load("fnet-l2-x0.5-int8", zoo_dir=zoo)


def test_weights_that_do_not_fit_the_spec_are_refused(zoo, tmp_path):
    import shutil

    copy = shutil.copytree(zoo, tmp_path / "zoo")
    index = json.loads((copy / "index.json").read_text())
    index["models"][0]["spec"]["level"] = 2
    (copy / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="holds weights of ModelSpec"):
        fnet.zoo.load(FLOAT, zoo_dir=copy)


def test_evaluate_recomputes_the_published_number(zoo, digits):
    for name in (FLOAT, INT8):
        result = fnet.zoo.evaluate(name, zoo_dir=zoo)
        assert result["accuracy"] == result["published"] == fnet.zoo.card(name, zoo_dir=zoo).accuracy
        assert (result["dataset"], result["images"]) == ("digits", 359)
    validation = fnet.zoo.evaluate(INT8, split="validation", dataset=digits, zoo_dir=zoo)
    assert validation["published"] == fnet.zoo.card(INT8, zoo_dir=zoo).validation_accuracy
    other = fnet.zoo.evaluate(INT8, dataset=dataclasses.replace(digits, title="other digits"), zoo_dir=zoo)
    assert other["published"] is None
    with pytest.raises(ValueError, match="split is 'tset'"):
        fnet.zoo.evaluate(INT8, split="tset", zoo_dir=zoo)


def test_every_published_model_is_whole():
    """The zoo that comes with the package: each file's hash, without running anything."""
    from factorizenet_tf.zoo.store import open_stores

    (store,) = open_stores(None)
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
