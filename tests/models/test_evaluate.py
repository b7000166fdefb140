from types import SimpleNamespace

import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.models import evaluate as evaluation
from factorizenet_tf.models.evaluate import logits, top5_accuracy


def test_accuracy_is_the_share_of_right_labels(models, digits):
    images = digits.test.images[:50]
    guesses = logits(models.int8, images).argmax(1).astype(np.int32)
    assert fnet.accuracy(models.int8, fnet.Split(images, guesses)) == 1.0
    wrong = guesses.copy()
    wrong[:10] = (wrong[:10] + 1) % 10
    assert fnet.accuracy(models.int8, fnet.Split(images, wrong)) == pytest.approx(0.8)


def test_a_label_is_among_the_five_largest_logits_and_of_equal_ones_the_first_classes_are():
    scores = np.array([[6, 5, 4, 3, 2, 1, 0], [6, 5, 4, 3, 2, 1, 0], [0] * 7, [0] * 7])
    assert top5_accuracy(scores, np.array([4, 5, 4, 5])) == 0.5


def test_agreement_is_counted_in_steps_of_the_output_scale(monkeypatch):
    # Scale 0.5, zero point 10: logits 1.0 and 2.0 are 12 and 14; 100 is clipped to 127.
    expected = np.array([[1.0, 2.0], [1.0, 2.0], [0.0, 100.0], [3.0, 0.0]], np.float32)
    quantized = np.array([[12, 15], [14, 14], [10, 127], [10, 13]], np.int8)  # off by 0, 1, 2, 0, 0, 0, 6, 3
    monkeypatch.setattr(evaluation, "logits", lambda model, images: expected)
    int8_model = SimpleNamespace(output_quantization=(0.5, 10), predict_quantized=lambda images: quantized)
    result = fnet.agreement(None, int8_model, np.zeros((4, 1, 1, 1), np.uint8))
    assert result == fnet.Agreement(top1=0.5, within_1_lsb=5 / 8, largest_lsb=6, images=4)


def test_images_that_fill_several_chunks_give_the_same_logits(models, digits, monkeypatch):
    expected = logits(models.float, digits.test.images[:50])
    monkeypatch.setattr(evaluation, "CHUNK", 7)
    np.testing.assert_allclose(logits(models.float, digits.test.images[:50]), expected, atol=1e-5)


def test_images_of_another_size_and_labels_beyond_the_models_classes_are_refused(models, noise, monkeypatch):
    for model in (models.float, models.int8):
        with pytest.raises(ValueError, match=r"the model takes \(16, 16, 1\)"):
            fnet.accuracy(model, fnet.Split(noise(2, (8, 8, 1)), np.zeros(2, np.int32)))
    with pytest.raises(ValueError, match="labels up to 12; the model has 10 classes"):
        fnet.accuracy(models.int8, fnet.Split(noise(1), np.array([12])))
    monkeypatch.setattr(evaluation, "logits", lambda model, images: np.ones((1, 1), np.float32))
    with pytest.raises(ValueError, match=r"a net of one output, as for a sigmoid, .*: give it one output a class"):
        fnet.accuracy(models.int8, fnet.Split(noise(1), np.array([1])))
