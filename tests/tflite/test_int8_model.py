import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf

import factorizenet_tf as fnet


def test_any_batch_size_gives_the_same_logits(models, digits):
    images = digits.test.images[:37]
    expected = models.int8.predict_quantized(images, batch_size=1)
    for batch_size in (2, 36, 37, 1000):
        np.testing.assert_array_equal(models.int8.predict_quantized(images, batch_size=batch_size), expected)


def test_subtracting_128_is_the_general_rule_at_the_pinned_scale(models):
    images = np.arange(256, dtype=np.uint8)
    quantized = models.int8._quantized(images)
    assert quantized.dtype == np.int8
    np.testing.assert_array_equal(quantized, images.astype(int) - 128)
    scale, zero_point = models.int8.input_quantization
    np.testing.assert_array_equal(quantized, np.round(images / 255 / scale) + zero_point)


def test_logits_are_the_integers_dequantized(models, digits):
    scale, zero_point = models.int8.output_quantization
    quantized = models.int8.predict_quantized(digits.test.images[:5])
    expected = scale * (quantized.astype(float) - zero_point)
    np.testing.assert_allclose(models.int8.predict(digits.test.images[:5]), expected, rtol=1e-5)


def test_the_model_tells_what_it_is(models, run, digits):
    model = models.int8
    assert (model.input_shape, model.num_classes, model.labels) == ((16, 16, 1), 10, digits.class_names)
    assert model.size_bytes == (run.folder / "model.tflite").stat().st_size
    assert set(model.operators) == {"CONV_2D", "MEAN", "FULLY_CONNECTED"}
    assert [name for name, _ in model.operator_outputs] == list(model.operators)
    assert fnet.Int8Model(fnet.to_tflite(models.qat)).labels is None


def test_latency_has_a_median_within_its_spread(run):
    latency = run.int8_model(threads=2).latency_ms(runs=20, warm_up=2)
    assert 0 < latency.p10_ms <= latency.median_ms <= latency.p90_ms
    assert (latency.runs, latency.threads) == (20, 2)


def test_it_runs_without_tensorflow(run):
    code = f"""
import sys, numpy as np, factorizenet_tf as fnet
model = fnet.Int8Model({str(run.folder / "model.tflite")!r})
assert model.predict(np.zeros((1, 16, 16, 1), np.uint8)).shape == (1, 10)
assert not {{"tensorflow", "tf_keras", "pandas"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((1, 16, 16, 1), np.float32), TypeError, "dtype float32"),
        (np.zeros((16, 16, 1), np.uint8), ValueError, r"images\[None\]"),
        (np.zeros((1, 32, 32, 3), np.uint8), ValueError, r"the model takes \(16, 16, 1\)"),
    ],
)
def test_images_that_do_not_fit_are_refused(models, images, error, message):
    with pytest.raises(error, match=message):
        models.int8.predict(images)


def test_arguments_out_of_range_are_refused(models, run):
    with pytest.raises(ValueError, match="batch_size is 0"):
        models.int8.predict(np.zeros((1, 16, 16, 1), np.uint8), batch_size=0)
    with pytest.raises(ValueError, match="threads is 0"):
        run.int8_model(threads=0)
    with pytest.raises(ValueError, match="runs is 0"):
        models.int8.latency_ms(runs=0)
    with pytest.raises(FileNotFoundError, match=r"no \.tflite file"):
        fnet.Int8Model(run.folder / "none.tflite")


@pytest.mark.parametrize("content", [b"", b"TFL3", b"not a model" * 100])
def test_a_file_that_is_no_tflite_is_refused(content, tmp_path):
    path = tmp_path / "bad.tflite"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.tflite is damaged or no \.tflite"):
        fnet.Int8Model(path)


def test_a_float_tflite_is_refused(models):
    signature = tf.TensorSpec((1, 16, 16, 1), tf.float32)
    function = tf.function(lambda x: models.float(x, training=False)).get_concrete_function(signature)
    content = tf.lite.TFLiteConverter.from_concrete_functions([function], models.float).convert()
    with pytest.raises(ValueError, match="takes float32 and gives float32; it must be int8"):
        fnet.Int8Model(content)


def test_a_file_of_others_with_another_input_scale_is_given_its_own_integers(foreign, noise):
    model, content = foreign
    int8 = fnet.Int8Model(content)
    scale, zero_point = int8.input_quantization
    assert scale == pytest.approx(4 / 255)
    images = noise(20, (4, 4, 1))
    expected = np.round(images / 255 / scale) + zero_point
    np.testing.assert_allclose(int8._quantized(images), expected, atol=1)  # ties
    np.testing.assert_allclose(int8.predict(images), model(images / np.float32(255)), atol=0.1)


def archive(names, text):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for name in names:
            opened.writestr(name, text)
    return file.getvalue()


def test_labels_of_any_script_survive_and_those_of_others_are_read(models, foreign):
    names = ["čeština", "日本", "a b", "", *"456789"]
    assert fnet.Int8Model(fnet.to_tflite(models.qat, labels=names)).labels == tuple(names)
    content = foreign[1]
    assert fnet.Int8Model(content + archive(["labels.txt"], "a\nb\nc")).labels == ("a", "b", "c")
    assert fnet.Int8Model(content + archive(["other.txt"], "a\nb\nc\n")).labels is None
    with pytest.raises(ValueError, match="labels in the given bytes are damaged"):
        _ = fnet.Int8Model(content + archive(["labels.txt"], b"\xff\xfe")).labels
    damaged = archive(["labels.txt"], "a\nb\nc").replace(b"a\nb", b"a\nB")
    with pytest.raises(ValueError, match="labels in the given bytes are damaged"):
        _ = fnet.Int8Model(content + damaged).labels


def test_changed_and_cut_bytes_are_refused_or_predicted_with_and_crash_nothing(run):
    code = f"""
import numpy as np, factorizenet_tf as fnet
content = open({str(run.folder / "model.tflite")!r}, "rb").read()
random = np.random.default_rng(0)
refused = dict(changed=0, cut=0)
def refuses(content):
    try:
        model = fnet.Int8Model(content)
        model.predict(np.zeros((2, *model.input_shape), np.uint8))
        model.labels
    except ValueError:
        return True
    return False
for i in range(80):
    damaged = bytearray(content)
    for place in random.integers(0, len(content) if i % 2 else 4000, 1 + i % 3):
        damaged[place] ^= int(random.integers(1, 256))
    refused["changed"] += refuses(bytes(damaged))
for length in range(0, int(0.9 * len(content)), len(content) // 40):
    refused["cut"] += refuses(content[:length])
print(refused["changed"], refused["cut"])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-500:]
    changed, cut = map(int, result.stdout.split()[-2:])
    assert changed >= 8
    assert cut >= 36
