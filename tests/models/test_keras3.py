import importlib.util
import json
import zipfile
from pathlib import Path

import keras as keras3
import numpy as np
import pytest
import tf_keras as keras
from keras import layers

import factorizenet_tf as fnet
from factorizenet_tf.models.keras3 import quantizable

# Keras's own saving copies arrays in a way that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")
SCRIPT = Path(__file__).parents[2] / "tuner" / "keras_applications.py"
DESCRIBED = importlib.util.spec_from_file_location("keras_applications", SCRIPT)
script = importlib.util.module_from_spec(DESCRIBED)
DESCRIBED.loader.exec_module(script)
FAST = ("MobileNet", "MobileNetV3Small")


@pytest.mark.parametrize("name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in script.SIZES])
def test_the_nets_of_keras_applications_are_the_same_rebuilt(name):
    model, images, pixels = script.application(name)
    before = script.outputs(model, images[:16], pixels)
    after = fnet.from_keras3(model, pixel_range=pixels)(images[:16] / 255, training=False).numpy()
    assert before.std(0).mean() >= 1
    assert np.abs(after - before).max() <= 1e-4 * before.std(0).mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV3Small", "ResNet50V2"])
def test_int8_by_ptq_and_by_qat_computes_the_same(name):
    row = script.row(name)
    assert (row["ptq_types"], row["qat_types"], row["note"]) == ("int32 int8", "int32 int8", "")
    assert max(row["ptq_error"], row["qat_error"]) < 0.3


# A net of one's own


def small(*middle, classes=4, activation=None, shape=(8, 8, 3)):
    """A Keras 3 net of one's own, its layers in a model inside the model."""
    keras3.utils.set_random_seed(1)
    body = keras3.Sequential([keras3.Input(shape), *middle, layers.Conv2D(5, 3, strides=2, name="conv")], name="body")
    image = keras3.Input(shape)
    features = layers.GlobalAveragePooling2D()(body(image))
    return keras3.Model(image, layers.Dense(classes, activation=activation, name="head")(features), name="mine")


def assert_same(model, pixels, **options):
    """The rebuilt net gives for images in 0..1 what the original gives for `pixels` of them; give the rebuilt one."""
    rebuilt = fnet.from_keras3(model, **options)
    images = np.random.default_rng(2).random((5, *rebuilt.input_shape[1:])).astype(np.float32)
    expected = model(pixels(images), training=False).numpy()
    np.testing.assert_allclose(rebuilt(images).numpy(), expected, atol=1e-4 * expected.std())
    return rebuilt


def kinds(model):
    return [type(layer).__name__ for layer in model.layers[1:]]


def test_what_rescales_pixels_is_folded_where_that_is_exact_and_else_kept_in_front():
    plain = ["Conv2D", "GlobalAveragePooling2D", "Dense"]
    kept = ["DepthwiseConv2D", *plain]
    assert kinds(assert_same(small(layers.Rescaling(1 / 255)), lambda x: x * 255)) == plain  # so small: made for 0..255
    assert kinds(assert_same(small(layers.Rescaling(1 / 127.5, -1)), lambda x: x * 255)) == plain
    assert kinds(assert_same(small(), lambda x: x * 2 - 1, pixel_range="-1..1")) == plain
    options = {"mean": (0.4, 0.5, 0.6), "deviation": (0.2, 0.25, 0.3), "pixel_range": "0..1"}
    assert kinds(assert_same(small(), lambda x: (x - [0.4, 0.5, 0.6]) / [0.2, 0.25, 0.3], **options)) == plain
    normalization = layers.Normalization(mean=[100.0, 110, 120], variance=[3600.0, 4000, 4900])
    assert kinds(assert_same(small(layers.RandomFlip(), normalization), lambda x: x * 255)) == plain
    padded = layers.Conv2D(3, 3, padding="same")  # zeros around it are of the pixels that the net was trained on
    assert kinds(assert_same(small(padded), lambda x: x * 255, pixel_range="0..255")) == ["Conv2D", *plain]
    net = assert_same(small(padded), lambda x: x * 2 - 1, pixel_range="-1..1")
    assert kinds(net) == ["DepthwiseConv2D", *plain[:1], *plain]
    assert net.layers[1].name == "pixels"
    assert kinds(assert_same(small(layers.ZeroPadding2D()), lambda x: x * 2 - 1, pixel_range="-1..1"))[0] == kept[0]


def test_activations_that_tf_keras_lacks_or_means_otherwise_are_built_of_stock_layers():
    for activation in ("hard_sigmoid", "hard_silu", "relu6", "leaky_relu", "silu", "gelu", "elu"):
        assert_same(small(layers.Conv2D(6, 1, activation=activation), layers.Activation(activation)), lambda x: x)


def test_a_model_of_tf_keras_is_rebuilt_alike_and_what_tfmot_cannot_quantize_replaced():
    k2 = keras.layers
    image, rescaled = keras.Input((8, 8, 3)), k2.Rescaling(1 / 127.5, -1)
    depthwise = k2.DepthwiseConv2D(3, activation="swish", name="dw")
    body = [image, rescaled, depthwise, k2.ReLU(), k2.BatchNormalization(name="bn"), k2.SeparableConv2D(4, 2)]
    body = keras.Sequential(body)
    body.get_layer("bn").set_weights([np.array(v) for v in ([1.0, 2, 3], [0.1, 0, 0], [0.3, 0, 1], [1.0, 2, 3])])
    model = keras.Sequential([keras.Input((8, 8, 3)), body, k2.GlobalAveragePooling2D(), k2.Dense(3)])
    net = assert_same(model, lambda x: x * 255)
    front = ["DepthwiseConv2D", "DepthwiseConv2D"]  # the pixels' and the net's own
    assert kinds(net) == [*front, "ReLU", "BatchNormalization", "SeparableConv2D", "GlobalAveragePooling2D", "Dense"]
    ready = quantizable(net)
    parts = ["DepthwiseConv2D", "Conv2D"]
    assert kinds(ready) == [*front, "Activation", "ReLU", "DepthwiseConv2D", *parts, *kinds(net)[-2:]]
    assert ready.get_layer("bn").get_weights()[0].shape == (1, 1, 3, 1)
    assert quantizable(ready) is ready
    keras.backend.reset_uids()  # as in a process that built none of the layers
    first, second = k2.Conv2D(2, 3, name="conv2d"), k2.SeparableConv2D(4, 2, name="separable")
    # TFMOT by itself calls a part of the second conv2d, too, and never ends.
    aware = fnet.quantize_aware(keras.Sequential([keras.Input((8, 8, 3)), first, second, k2.Flatten()]))
    names = [layer.name for layer in aware.layers[2:5]]
    assert names == ["quant_conv2d", "quant_separable_depthwise", "quant_separable"]
    leaky = [keras.Input((8, 8, 3)), k2.Conv2D(2, 3, activation=k2.LeakyReLU()), k2.BatchNormalization()]
    with pytest.raises(ValueError, match="has activation 'LeakyReLU', which cannot be rebuilt"):
        quantizable(keras.Sequential(leaky))
    first = k2.Conv2D(2, 3, data_format="channels_first", name="first")
    with pytest.raises(ValueError, match="the layer 'first' is channels_first"):
        fnet.from_keras3(keras.Sequential([keras.Input((8, 8, 3)), first, k2.Flatten()]))


def test_operators_and_open_sizes_are_rebuilt_and_a_softmax_stays():
    image = keras3.Input((None, None, 3))
    x = layers.Conv2D(4, 3, padding="same")(image)
    x = layers.GlobalAveragePooling2D()((2 - (x + x * 0.5) / 4) - 1.0)
    model = keras3.Model(image, layers.Dense(3, activation="softmax")(x))
    with pytest.raises(ValueError, match="leaves the size of its images open; give size="):
        fnet.from_keras3(model)
    assert assert_same(model, lambda x: x, size=np.int64(12)).input_shape == (None, 12, 12, 3)


def test_a_file_is_the_model_that_was_saved_and_mixed_precision_becomes_float32(tmp_path):
    keras3.config.set_dtype_policy("mixed_float16")
    try:
        mixed = small(layers.Rescaling(1 / 255), layers.BatchNormalization())
    finally:
        keras3.config.set_dtype_policy("float32")
    for model, name in ((small(layers.Rescaling(1 / 255)), "a.keras"), (small(), "a.h5"), (mixed, "mixed.keras")):
        model.save(tmp_path / name)
        rebuilt, loaded = fnet.from_keras3(model), fnet.from_keras3(tmp_path / name)
        for a, b in zip(rebuilt.get_weights(), loaded.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        assert {layer.dtype for layer in loaded.layers} == {"float32"}


@keras3.saving.register_keras_serializable("mine")
class Doubled(layers.ReLU):
    """A layer of one's own."""


def test_what_is_not_known_is_refused_by_its_layers_name():
    shared, image = layers.Conv2D(3, 3, padding="same", name="twice"), keras3.Input((8, 8, 3))
    flat = layers.Flatten()(shared(image))
    not_finite, huge = small(), small()
    for model, value in ((not_finite, np.nan), (huge, 1e38)):
        head = model.get_layer("head")
        head.set_weights([np.full(w.shape, value) for w in head.get_weights()])

    class Subclassed(keras3.Model):
        pass

    for model, message in (
        (small(layers.Lambda(lambda x: x, name="code")), "the layer 'code' is a Lambda, whose code is not run"),
        (small(Doubled(name="mine")), "the layer 'mine' is a Doubled of test_keras3, which cannot be rebuilt"),
        (small(layers.Activation(keras3.ops.sin, name="own")), "the layer 'own' has activation 'sin'"),
        (small(layers.LayerNormalization(name="norm")), "'norm' is a LayerNormalization, which cannot be rebuilt"),
        (small(layers.Conv2D(3, 1, activation="celu", name="conv1")), "the layer 'conv1' has the activation 'celu'"),
        (keras3.Model(image, layers.Flatten()(shared(shared(image)))), "the layer 'twice' is used more than once"),
        (keras3.Model(image, [flat, flat]), "has 1 inputs and 2 outputs; it needs one of each"),
        (keras3.Model(image, shared(image)), r"gives \(None, 8, 8, 3\); a classifier gives"),
        (keras3.Sequential([layers.Dense(2)], name="new"), "the unbuilt model 'new'; give its first layer an input"),
        (Subclassed(name="sub"), "the subclassed model 'sub'; it needs a functional"),
        (small(shape=(8, 8, 4)), "with 1 or 3 channels"),
        (not_finite, "the layer 'head' has weights that are not finite"),
        (huge, r"the layer 'head' has weights as large as 1e\+38"),
    ):
        with pytest.raises(ValueError, match=message):
            fnet.from_keras3(model)
    with pytest.raises(TypeError, match="from_keras3 got int"):
        fnet.from_keras3(3)
    for options, message in (
        ({"pixel_range": "0..2"}, r"pixel_range is '0..2'; it must be 0..1, 0..255, -1..1"),
        ({"mean": (1,)}, "mean and deviation need pixel_range"),
        ({"pixel_range": "0..1", "mean": (1, 2)}, "the model's images have 3 channels"),
        ({"pixel_range": "0..1", "deviation": (0,)}, "a deviation above 0"),
        ({"size": 9}, "takes images of 8x8: leave size out"),
    ):
        with pytest.raises(ValueError, match=message):
            fnet.from_keras3(small(), **options)


def test_a_damaged_file_and_one_that_hides_code_are_refused_and_nothing_of_it_runs(tmp_path):
    path, ran = tmp_path / "net.keras", tmp_path / "ran"

    def changed(find, replacement):
        small(layers.Activation("relu", name="act")).save(path)
        with zipfile.ZipFile(path) as file:
            entries = {name: file.read(name) for name in file.namelist()}
        config = entries["config.json"].decode()
        assert find in config
        with zipfile.ZipFile(path, "w") as file:
            for name, content in (entries | {"config.json": config.replace(find, replacement).encode()}).items():
                file.writestr(name, content)

    code = {"module": "os", "class_name": "function", "config": "system", "registered_name": "function"}
    hidden = json.dumps({"module": "builtins", "class_name": "exec", "config": {"source": f"open({str(ran)!r}, 'w')"}})
    for find, replacement, message in (
        ('"activation": "relu"', f'"activation": {json.dumps(code)}', "the layer 'act' has activation 'system'"),
        ('"padding": "valid"', f'"padding": {hidden}', "the layer 'conv' has padding 'exec'"),
        ('"class_name": "Activation"', '"class_name": "Lambda"', "the layer 'act' is a Lambda"),
        ('"module": "keras.layers", "class_name": "Activation"', '"module": "os", "class_name": "Activation"', "of os"),
        ('"class_name": "Functional"', '"class_name": "Mine"', "is a Mine, a custom class"),
        ('"layers"', '"strata"', "is damaged: its architecture lacks 'layers'"),
        ('"units": 4', '"units": 5', r"cannot be read by Keras 3\S* \("),
    ):
        changed(find, replacement)
        with pytest.raises(ValueError, match=message):
            fnet.from_keras3(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="is damaged or no whole model of Keras 3's"):
        fnet.from_keras3(path)
    with pytest.raises(FileNotFoundError, match="no model at"):
        fnet.from_keras3(tmp_path / "none.keras")
    assert not ran.exists()
