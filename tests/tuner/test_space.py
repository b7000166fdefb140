import pytest

from factorizenet_tf.tflite.micro import arena_bytes
from factorizenet_tf.tuner.space import measure


def test_an_untrained_net_takes_the_bytes_and_the_ram_of_the_trained_one(run, digits):
    costs = measure(run.spec, ("size_bytes", "ram_bytes"), digits.class_names)
    content = (run.folder / "model.tflite").read_bytes()
    assert costs["size_bytes"] == pytest.approx(len(content), abs=64)  # a kB and more where biases are stored once
    assert costs["ram_bytes"] == arena_bytes(content)
