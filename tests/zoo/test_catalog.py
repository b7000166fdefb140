import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

import factorizenet_tf as fnet
from factorizenet_tf._keras import to_float
from factorizenet_tf.models.evaluate import logits
from factorizenet_tf.zoo import catalog
from factorizenet_tf.zoo.cards import Cards, index_to_json
from factorizenet_tf.zoo.store import bundled_zoo, open_store

FLOAT, INT8 = "fnet-1x2.2x2-l1-x0.5-float", "fnet-1x2.2x2-l1-x0.5-int8"
FAMILY = ("a-int8", "b-int8", "c-int8")


@pytest.fixture
def family(cards, tmp_path):
    """A zoo folder whose index lists three int8 models of made-up numbers, without their files."""
    fields = "name", "macs", "validation_accuracy", "accuracy", "ram_bytes", "latency_ms"
    rows = [("a-int8", 100, 0.80, 0.90, 10, 1.0), ("b-int8", 200, 0.85, 0.84, 20, 2.0)]
    rows.append(("c-int8", 300, 0.85, 0.99, 30, 3.0))
    made_up = Cards(dataclasses.replace(cards[1], **dict(zip(fields, row))) for row in rows)
    (tmp_path / "index.json").write_text(index_to_json(made_up))
    return tmp_path


def test_limits_leave_out_what_is_over_them_or_has_no_number(family, zoo):
    for limits, names in (
        ({}, FAMILY),
        ({"max_macs": np.int64(200), "max_latency_ms": None}, FAMILY[:2]),
        ({"max_ram_bytes": 10}, FAMILY[:1]),
        ({"max_latency_ms": 2.5, "max_macs": 150}, FAMILY[:1]),
        ({"max_macs": 300, "min_accuracy": 0.85}, FAMILY[1:]),
        ({"precision": "float"}, ()),
        ({"dataset": "digits"}, FAMILY),
        ({"max_ram_bytes": 10**9, "zoo_dir": zoo}, (INT8,)),  # its float net has none
    ):
        assert tuple(card.name for card in fnet.zoo.list(**{"zoo_dir": family} | limits)) == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"dataset": "digitz"}, "no model of the data set 'digitz'; did you mean 'digits'"),
        ({"dataset": "cifar10"}, "no model of the data set 'cifar10'; there are digits"),
        ({"max_macs": -1}, "max_macs is -1; it must be above 0"),
        ({"max_ram_bytes": "10"}, "max_ram_bytes is '10'; it must be a number"),
        ({"max_mac": 10}, "max_mac"),
    ],
)
def test_what_is_no_limit_precision_or_data_set_is_refused(family, options, message):
    for call in (fnet.zoo.list, fnet.zoo.best):
        with pytest.raises((TypeError, ValueError), match=message):
            call(zoo_dir=family, **options)


def test_of_float_models_what_is_on_no_card_is_no_limit_of_theirs():
    for limits in ({"max_ram_bytes": 40_000}, {"max_latency_ms": 1, "max_macs": 10**7}):
        with pytest.raises(
            ValueError, match=r"no model has (ram_bytes|latency_ms) on its card, as float models do not"
        ):
            fnet.zoo.best(precision="float", dataset="cifar10", **limits)


def test_best_ranks_by_validation_then_macs_never_by_test_and_compares_no_data_sets(family):
    def best(**options):
        return fnet.zoo.best(zoo_dir=family, **options).name

    assert (best(), best(max_macs=150), best(min_accuracy=0.8)) == ("b-int8", "a-int8", "a-int8")
    with pytest.raises(ValueError, match="no model within 50 MACs; the smallest is a-int8: 100 MACs"):
        best(max_macs=50)
    with pytest.raises(ValueError, match=r"within 300 MACs, 0\.5 ms; the fastest is a-int8: .* 1.0 ms"):
        best(max_macs=300, max_latency_ms=0.5)
    with pytest.raises(ValueError, match=r"on; the most accurate is b-int8: .* 85.00% validation accuracy"):
        best(max_macs=300, min_accuracy=0.9)
    with pytest.raises(ValueError, match="the zoo has no float model"):
        best(precision="float")
    index = json.loads((family / "index.json").read_text())
    index["models"][0]["latency_machine"] = "~ a faster one"
    (family / "index.json").write_text(json.dumps(index))
    for call in (best, lambda **options: fnet.zoo.list(zoo_dir=family, **options)):
        assert call()
        with pytest.raises(
            ValueError, match=r"latencies on .* and on ~ a faster one do not compare; limit max_macs=, give"
        ):
            call(max_latency_ms=2.5)
    index["models"][0]["dataset"] = "other"
    (family / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="do not compare; choose one by dataset="):
        best()
    assert best(dataset="other") == "a-int8"


def test_each_format_gives_the_trained_net(zoo, run, models, noise, tmp_path, monkeypatch):
    monkeypatch.setenv("FACTORIZENET_CACHE", str(tmp_path))
    images = noise(8)
    for name, model, file in ((FLOAT, models.float, "float.h5"), (INT8, models.qat, "model.tflite")):
        np.testing.assert_array_equal(logits(fnet.zoo.load(name, zoo_dir=zoo), images), logits(model, images))
        served = tf.saved_model.load(fnet.zoo.load(name, "saved_model", zoo_dir=zoo)).signatures["serving_default"]
        np.testing.assert_allclose(served(image=to_float(images))["logits"], logits(model, images), atol=1e-5)
        assert fnet.zoo.load(name, "path", zoo_dir=zoo).read_bytes() == (run.folder / file).read_bytes()
    net = fnet.zoo.load(INT8, "tflite", threads=2, zoo_dir=zoo)
    assert net.threads == 2
    np.testing.assert_array_equal(net.predict(images), models.int8.predict(images))


@pytest.fixture
def two(family, monkeypatch):
    """The package's own zoo is `family`; gives a function that names another one."""
    monkeypatch.setattr(catalog, "bundled_zoo", lambda: family)
    monkeypatch.delenv("FACTORIZENET_ZOO", raising=False)
    return lambda folder: monkeypatch.setenv("FACTORIZENET_ZOO", str(folder))


def test_a_second_zoo_is_looked_into_too(zoo, run, two):
    assert fnet.zoo.names() == FAMILY
    two(zoo)
    assert fnet.zoo.names() == (*FAMILY, FLOAT, INT8)
    assert fnet.zoo.load(INT8, "path").read_bytes() == (run.folder / "model.tflite").read_bytes()
    assert {card.zoo for card in fnet.zoo.list()} == {str(catalog.bundled_zoo()), str(zoo)}
    with pytest.raises(ValueError, match=r"did you mean .* which names "):
        fnet.zoo.card(f"{INT8}8")


def test_a_name_in_two_zoos_is_never_silently_one_of_them(cards, changed, two, family):
    others = [dataclasses.asdict(file) | {"sha256": 64 * "0"} for file in cards[1].files]
    mine = changed(1, name="a-int8", macs=7, files=others)
    two(mine)
    for name in ("a-int8", "a-int8@1"):
        for call in (fnet.zoo.load, fnet.zoo.card, fnet.zoo.verify):
            with pytest.raises(ValueError, match=r"two zoos have a model 'a-int8', and not.*zoo_dir=") as error:
                call(name)
            assert str(family) in str(error.value)
            assert str(mine) in str(error.value)
    listed = [card for card in fnet.zoo.list() if card.name == "a-int8"]
    assert {card.zoo: card.macs for card in listed} == {str(family): 100, str(mine): 7}
    assert [fnet.zoo.card("a-int8", zoo_dir=folder).macs for folder in (family, mine)] == [100, 7]
    assert fnet.zoo.card("b-int8").macs == 200
    two(shutil.copytree(family, mine.parent / "copy", ignore=shutil.ignore_patterns("zoo")))
    assert [card.zoo for card in fnet.zoo.list()] == 3 * [str(family)]  # the same models in two zoos are one
    assert fnet.zoo.card("a-int8").macs == 100


def test_what_cannot_be_loaded_says_what_can(zoo, changed):
    with pytest.raises(ValueError, match=f"{FLOAT} has no tflite .*; load {INT8}"):
        fnet.zoo.load(FLOAT, "tflite", zoo_dir=zoo)
    with pytest.raises(ValueError, match="format is 'onnx'; it must be one of keras, tflite, saved_model, path"):
        fnet.zoo.load(INT8, "onnx", zoo_dir=zoo)
    spec = json.loads(fnet.ModelSpec(2, width=8, input_shape=(16, 16, 1), stages=((1, 2), (2, 2))).to_json())
    with pytest.raises(ValueError, match="holds weights of ModelSpec"):
        fnet.zoo.load(FLOAT, zoo_dir=changed(0, spec=spec))


def test_every_published_model_is_whole():
    """The zoo that comes with the package: each file's hash, without running anything."""
    store = open_store(bundled_zoo())
    cards = store.cards()
    assert all(store.path(file).is_file() for card in cards for file in card.files)
    there = {path for path in (store.folder / "models").rglob("*") if path.is_file()}
    assert there == {store.folder / file.path for card in cards for file in card.files}
    names = sorted(card.name for card in cards.newest())
    assert names == sorted(f"{base}-{p}" for base in {n.rpartition("-")[0] for n in names} for p in ("float", "int8"))


@pytest.mark.slow
@pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("TFDS_DATA_DIR", ""), "cifar10")),
    reason="TFDS_DATA_DIR has no cifar10",
)
def test_every_published_model_is_what_its_card_says(prints_json):
    rows = prints_json("verify", "--all")
    absent = [data for data in ("gtsrb", "tiny_imagenet") if f"FACTORIZENET_{data.upper()}" not in os.environ]
    unchecked = {card.name for data in absent for card in fnet.zoo.list(dataset=data)}
    wrong = [row for row in rows if row["passed"] not in {"ok"} | ({"skipped"} if row["model"] in unchecked else set())]
    assert not wrong
    assert len({row["model"] for row in rows}) == len(fnet.zoo.names())
