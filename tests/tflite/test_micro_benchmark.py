"""TensorFlow Lite Micro against LiteRT, over the published models where their data is here."""

import os
from pathlib import Path

import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.benchmarks import micro as micro_benchmark
from factorizenet_tf.benchmarks.micro import KERNELS, kernel_distances, measure_micro, noise

DATA = os.environ.get("TFDS_DATA_DIR")


def test_distances_are_counted_in_steps_of_the_output(models, monkeypatch):
    images = noise((16, 16, 1), 5)
    outputs = models.int8.predict_reference(images)
    moved = outputs.copy()
    place = np.argmin(np.abs(outputs[2].astype(int)))  # away from the ends of int8
    moved[2, place] += 3
    monkeypatch.setattr(micro_benchmark, "micro_outputs", lambda content, images: moved)
    reference, _ = kernel_distances(models.int8._content, images)
    assert (reference.largest, reference.images) == (3, 5)
    assert reference.equal == pytest.approx(49 / 50)
    moved[4] = outputs[4][::-1]
    changed = outputs[4].argmax() != moved[4].argmax()
    assert kernel_distances(models.int8._content, images)[0].same_class == pytest.approx(1 - 0.2 * changed)


def test_every_int8_model_of_a_zoo_is_measured_on_its_test_images_and_on_noise(zoo, run):
    rows = measure_micro(zoo_dir=zoo, verbose=False)
    assert len(rows) == 4
    for row, kernels in zip(rows, KERNELS * 2):
        assert row["what"].startswith(f"{run.spec.name}-int8: TFLite Micro against {kernels} on 200 ")
        assert row["holds"] == (row["value"] <= int(row["bound"].removeprefix("<= ")))
    assert ["test images" in row["what"] for row in rows] == [True, True, False, False]


@pytest.mark.slow
@pytest.mark.skipif(not (DATA and (Path(DATA) / "cifar10").is_dir()), reason="TFDS_DATA_DIR has no cifar10")
def test_the_published_models_are_within_1_step_of_litert_and_4_of_xnnpack():
    rows = measure_micro(verbose=False)
    assert len(rows) == 4 * len(fnet.zoo.list(precision="int8"))  # its data is here
    assert {row["bound"] for row in rows} == {"<= 1", "<= 4"}
    assert [row for row in rows if not row["holds"]] == []
