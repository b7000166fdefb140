"""On real data: whole splits, minutes of training."""

import os
from pathlib import Path

import numpy as np
import pytest

import factorizenet_tf as fnet

DATA = os.environ.get("TFDS_DATA_DIR")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA and (Path(DATA) / "cifar10").is_dir()), reason="TFDS_DATA_DIR has no cifar10"),
]


def test_a_short_training_on_cifar10_agrees_in_all_precisions(tmp_path):
    data = fnet.load_dataset("cifar10")
    spec = fnet.ModelSpec(2, stages=((2, 2), (2, 2)))
    recipe = fnet.Recipe(epochs=3, qat_epochs=1)
    run = fnet.train(spec, data, out=tmp_path / "run", recipe=recipe, verbose=False)
    accuracies = run.metrics["accuracy"]["test"]
    assert run.metrics["images"]["test"] == 10_000
    assert accuracies["float"] > 0.55
    assert accuracies["qat"] > accuracies["float"] - 0.02
    assert abs(accuracies["qat"] - accuracies["tflite"]) <= 0.004
    agreement = run.metrics["agreement"]
    assert agreement["images"] == 1_000
    # Rounding ties that fall otherwise in one layer grow through the next ones (docs/train.md, "A real run").
    assert agreement["within_1_lsb"] >= 0.9
    assert agreement["largest_lsb"] <= 6
    assert agreement["top1"] >= 0.98
    assert run.metrics["tensor_types"] == ["int32", "int8"]


def test_resnet8_keeps_most_of_its_accuracy_without_training():
    cifar10 = fnet.load_dataset("cifar10")
    # 83.6 % of 2,000 images; by kernels alone 34 % were seen at 58 % of its MACs.
    model = fnet.zoo.load("baseline-resnet8-float")
    random = np.random.default_rng(0)
    chosen = random.choice(len(cifar10.train), 512, replace=False)
    half = fnet.factorize(model, 6, middle=3, calibration=cifar10.train.images[chosen])
    split = fnet.Split(cifar10.validation.images[:1000], cifar10.validation.labels[:1000])
    assert fnet.count_macs(half) < 0.5 * fnet.count_macs(model)
    assert fnet.accuracy(half, split) > fnet.accuracy(model, split) - 0.03
