"""A zoo's net whose architecture is plain data, as `factorize` makes them, is used by its name like the package's own."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

import factorizenet_tf as fnet
from factorizenet_tf.models.weights import save_weights
from factorizenet_tf.runs import FLOAT_FILE, QAT_FILE, SPEC_FILE
from factorizenet_tf.serving import saved_model
from factorizenet_tf.serving.classifier import load_classifiers
from factorizenet_tf.zoo import publishing


@pytest.fixture(scope="module")
def zoo(run, models, tmp_path_factory):
    """A zoo of one net: the run's, its spec turned into plain data."""
    folder = shutil.copytree(run.folder, tmp_path_factory.mktemp("plain") / "run")
    spec = fnet.architecture_of(models.float, "plain")
    (folder / SPEC_FILE).write_text(spec.to_json())
    save_weights(models.float, folder / FLOAT_FILE, spec=spec, precision="float")
    save_weights(models.qat, folder / QAT_FILE, spec=spec, precision="int8")
    latency = {"latency_ms": 1.5, "latency_ratio": 1.5, "latency_machine": "a machine"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publishing, "_latencies", lambda contents, spec: [latency for _ in contents])
        patch.setattr(
            "factorizenet_tf.models.convert.write_saved_model", lambda model, to: (to.mkdir(), (to / "a").touch())
        )
        fnet.zoo.publish(folder, zoo_dir=folder.parent / "zoo", verbose=False)
    return folder.parent / "zoo"


def test_its_weights_and_its_tflite_are_the_runs(zoo, models, noise):
    card = fnet.zoo.card("plain-int8", zoo_dir=zoo)
    assert isinstance(card.spec, fnet.Architecture)
    images = noise(4) / np.float32(255)
    for name, model in (("plain-float", models.float), ("plain-int8", models.qat)):
        np.testing.assert_allclose(fnet.zoo.load(name, zoo_dir=zoo)(images), model(images), atol=1e-5)


def test_it_is_served_by_both_servers(zoo, models, noise, tmp_path):
    images = noise(4)
    (classifier,) = load_classifiers(["plain-int8"], zoo_dir=zoo).values()
    assert classifier.name == "plain-int8"
    np.testing.assert_array_equal(classifier.model.predict(images), models.int8.predict(images))
    made = saved_model.export("plain-int8", tmp_path, zoo_dir=zoo)
    call = tf.saved_model.load(str(made.folder), tags=["serve"]).signatures["serving_default"]
    found = call(tf.constant(images))["logits"].numpy()
    assert np.abs(found - models.int8.predict(images)).max() <= 2.5 * models.int8.output_quantization[0]


def test_it_is_analyzed_and_exported_by_name(zoo, models, prints_json, noise, tmp_path):
    images = ["--calibration-images", 32, "--evaluation-images", 40]
    rows = prints_json("analyze", "plain-int8", "--zoo", zoo, *images)
    assert (rows[0]["precision"], rows[-1]["precision"]) == ("float", "qat W8A8")
    assert {row["images"] for row in rows} == {40}
    rows = prints_json(
        "export", "plain-int8", "--zoo", zoo, "--tflite", tmp_path / "n.tflite", "--micro", tmp_path / "m"
    )
    assert len(rows) == 2
    again = fnet.Int8Model(tmp_path / "n.tflite")
    np.testing.assert_array_equal(again.predict(noise(4)), models.int8.predict(noise(4)))
    fields = json.loads((tmp_path / "m" / "model.json").read_text())
    assert (fields["name"], fields["identifier"]) == ("plain-int8", "plain_int8")
