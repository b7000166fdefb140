import subprocess
import sys

import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.tflite.flatbuffer import with_associated_files
from factorizenet_tf.tflite.int8_model import quantize_pixels
from factorizenet_tf.tflite.io_types import with_serving_signature

pytestmark = pytest.mark.filterwarnings("ignore:the input of .* stands for:RuntimeWarning")  # that of `foreign`


def test_any_batch_size_gives_the_same_logits_the_integers_dequantized(models, digits):
    images = digits.test.images[:37]
    expected = models.int8.predict_quantized(images, batch_size=1)
    for batch_size in (2, 36, 37, 1000):
        np.testing.assert_array_equal(models.int8.predict_quantized(images, batch_size=batch_size), expected)
    scale, zero_point = models.int8.output_quantization
    np.testing.assert_allclose(models.int8.predict(images), scale * (expected.astype(float) - zero_point), rtol=1e-5)


def test_pixels_become_integers_by_the_files_own_scale(models, foreign, noise):
    pixels = np.arange(256, dtype=np.uint8)
    quantized = quantize_pixels(pixels, models.int8.input_quantization)
    assert quantized.dtype == np.int8
    np.testing.assert_array_equal(quantized, pixels.astype(int) - 128)  # the general rule at the pinned scale, 1/255
    model, content = foreign
    int8, images = fnet.Int8Model(content), noise(20, (4, 4, 1))
    scale, zero_point = int8.input_quantization
    assert scale == pytest.approx(4 / 255)
    expected = np.round(pixels / 255 / scale) + zero_point
    np.testing.assert_array_equal(quantize_pixels(pixels, (scale, zero_point)), expected)
    np.testing.assert_allclose(int8.predict(images), model(images / np.float32(255)), atol=0.1)


def test_the_model_tells_what_it_is_and_how_fast(models, content, digits):
    model = models.int8
    assert (model.input_shape, model.num_classes, model.labels) == ((16, 16, 1), 10, digits.class_names)
    assert model.size_bytes == len(content)
    assert set(model.operators) == {"CONV_2D", "MEAN", "FULLY_CONNECTED"}
    assert [name for name, _ in model.operator_outputs] == list(model.operators)
    latency = fnet.Int8Model(content, threads=np.int64(2)).latency_ms(runs=20, warm_up=2)
    assert 0 < latency.p10_ms <= latency.median_ms <= latency.p90_ms
    assert (latency.runs, latency.threads) == (20, 2)


def test_images_arguments_and_files_that_do_not_fit_are_refused(models, content, tmp_path):
    black = np.zeros((1, 16, 16, 1), np.uint8)
    for call, message in (
        (lambda: models.int8.predict(black.astype(np.float32)), "dtype float32"),
        (lambda: models.int8.predict(black[:, 1:]), r"the model takes \(16, 16, 1\)"),
        (lambda: models.int8.predict(black, batch_size=0), "batch_size is 0"),
        (lambda: models.int8.latency_ms(runs=0), "runs is 0"),
        (lambda: fnet.Int8Model(content, threads=0), "threads is 0"),
        (lambda: fnet.Int8Model(tmp_path / "none.tflite"), r"no \.tflite file"),
    ):
        with pytest.raises((TypeError, ValueError, FileNotFoundError), match=message):
            call()
    for bad in (b"", b"TFL3", b"not a model" * 100):
        (tmp_path / "bad.tflite").write_bytes(bad)
        with pytest.raises(ValueError, match=r"bad\.tflite is damaged or no \.tflite"):
            fnet.Int8Model(tmp_path / "bad.tflite")
    with pytest.raises(ValueError, match=r"is no image classifier: it needs one input .* and one output"):
        fnet.Int8Model(with_serving_signature(content))


def test_labels_of_any_script_are_read_and_damaged_ones_refused(foreign):
    bare = foreign[1]
    names = ("čeština", "", "日本")
    for text in ("\n".join(names), "\r\n".join((*names, ""))):
        labelled = with_associated_files(bare, {"labels.txt": text.encode()})
        assert fnet.Int8Model(labelled).labels == names
    assert fnet.Int8Model(bare).labels is None
    assert fnet.Int8Model(with_associated_files(bare, {"other.txt": b"a\nb\nc\n"})).labels is None
    whole = with_associated_files(bare, {"labels.txt": b"a\nb\nc"})
    for damaged in (with_associated_files(bare, {"labels.txt": b"\xff\xfe"}), whole.replace(b"a\nb", b"a\nB")):
        with pytest.raises(ValueError, match="labels in the given bytes are damaged"):
            _ = fnet.Int8Model(damaged).labels


def test_changed_and_cut_bytes_are_refused_or_predicted_with_and_crash_nothing(run):
    code = f"""
import numpy as np, factorizenet_tf as fnet
content = open({str(run.folder / "model.tflite")!r}, "rb").read()
random = np.random.default_rng(0)
def refuses(content):
    try:
        model = fnet.Int8Model(content)
        model.predict(np.zeros((2, *model.input_shape), np.uint8))
        model.labels
    except ValueError:
        return True
    return False
def changed(number):
    damaged = bytearray(content)
    for place in random.integers(0, len(content) if number % 2 else 4000, 1 + number % 3):
        damaged[place] ^= int(random.integers(1, 256))
    return bytes(damaged)
cuts = range(0, int(0.9 * len(content)), len(content) // 40)
print(sum(refuses(changed(n)) for n in range(80)), sum(refuses(content[:n]) for n in cuts))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-500:]
    changed, cut = map(int, result.stdout.split()[-2:])
    assert changed >= 8
    assert cut >= 36
