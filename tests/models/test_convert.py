import contextlib

import numpy as np
import pytest
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf.models.convert import write_saved_model

DARK = np.full((8, 16, 16, 1), 20, np.uint8)


def test_the_inputs_quantization_is_pinned_all_tensors_are_integers_and_the_bytes_repeat(models):
    spec = fnet.ModelSpec(3, width=8, input_shape=(16, 16, 1), stages=((1, 2),))
    float_model = fnet.build(spec)
    content = fnet.to_tflite(float_model, calibration=DARK)
    assert fnet.to_tflite(float_model, calibration=DARK) == content
    dark = fnet.Int8Model(content)
    assert (DARK == 20).all()  # the caller's images stay theirs
    for model in (models.int8, dark):
        scale, zero_point = model.input_quantization
        assert (scale, zero_point) == (pytest.approx(1 / 255, rel=1e-6), -128)
        assert model.tensor_types == {"int8", "int32"}
    assert dark.operators.count("DEPTHWISE_CONV_2D") == 1
    assert models.int8.operators.count("CONV_2D") == 7  # one each, however many groups


def test_the_cost_table_has_the_bytes_of_the_file(models, spec):
    plain = models.int8._plain()
    sizes = {t["index"]: np.dtype(t["dtype"]).itemsize * int(np.prod(t["shape"])) for t in plain.get_tensor_details()}
    operators = [op for op in plain._get_ops_details() if op["op_name"] in ("CONV_2D", "FULLY_CONNECTED")]
    table = fnet.cost_table(spec)
    assert [sizes[op["inputs"][1]] + sizes[op["inputs"][2]] for op in operators] == table.weight_bytes.tolist()
    assert [sizes[op["outputs"][0]] for op in operators] == table.activation_bytes.tolist()


def test_no_line_tells_where_temporary_files_are(models, tmp_path, caplog):
    with caplog.at_level("INFO", logger="tensorflow"):
        write_saved_model(models.float, tmp_path / "new")
        fnet.to_tflite(models.float, calibration=DARK)
    assert caplog.messages == []


def test_operators_that_stay_in_float_are_said_with_their_layer(own_net, digits):
    sliding = own_net(keras.layers.Conv2D(4, 3), keras.layers.ReLU(6, 0.1, name="slide"), keras.layers.Flatten())
    with pytest.warns(RuntimeWarning, match=r"of the layers .*slide .* stay in float in the .tflite: they are slower"):
        fnet.to_tflite(fnet.quantize_aware(sliding))


layers = keras.layers
BESIDE = ["DEPTHWISE_CONV_2D", "CONV_2D", "CONCATENATION"]


def beside(x):
    """Concatenate a tensor with a convolution of itself."""
    return layers.Concatenate()([x, layers.Conv2D(8, 3, padding="same")(x)])


KINDS = {  # layers, and what the .tflite has for them
    "dilated": ([layers.Conv2D(8, 3, dilation_rate=2, activation="relu")], ["CONV_2D"]),
    "dilated grouped": ([layers.Conv2D(8, 3, dilation_rate=2, groups=2)], ["CONV_2D"]),
    "dilated depthwise": ([layers.DepthwiseConv2D(3, padding="same", dilation_rate=2)], ["DEPTHWISE_CONV_2D"]),
    "relu 1": ([layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU(0.3)], ["CONV_2D"]),
    "slope": ([layers.Conv2D(8, 3), layers.ReLU(negative_slope=0.1)], ["CONV_2D", "LEAKY_RELU"]),
    "elu": ([layers.Conv2D(8, 3, activation="elu"), layers.Activation("elu")], ["CONV_2D", "ELU", "ELU"]),
    "gamma 0": (
        [layers.Conv2D(8, 3), layers.BatchNormalization(gamma_initializer="zeros", beta_initializer="ones")],
        ["CONV_2D"],
    ),
    "pooled": ([layers.AveragePooling2D(2), layers.Dropout(0.1), beside], ["AVERAGE_POOL_2D", *BESIDE]),
    "padded pool": (
        [layers.Conv2D(8, 3), layers.ZeroPadding2D(1), layers.AveragePooling2D(3, 2)],
        ["CONV_2D", "PAD", "AVERAGE_POOL_2D"],
    ),
    "biases of 1": ([layers.Conv2D(8, 3, bias_initializer="ones")], ["CONV_2D"]),
    "elu beside": ([layers.Conv2D(8, 3), layers.ELU(), beside], ["CONV_2D", "ELU", *BESIDE]),
    "average": ([lambda x: layers.Average()([x, layers.ReLU(0.2)(x)])], ["RELU", "ADD", "MUL"]),
}


def net_of(*middle):
    """An untrained net of 16x16 grey images with layers between a convolution and the head."""
    keras.utils.set_random_seed(0)
    image = keras.Input((16, 16, 1))
    x = layers.Conv2D(8, 3, activation="relu", name="first")(image)
    for layer in middle:
        x = layer(x)
    return keras.Model(image, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("kind", [k if k == "elu" else pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_what_the_converter_leaves_in_float_becomes_int8_by_qat(kind, digits):
    middle, operators = KINDS[kind]
    images = digits.calibration(32)
    aware = fnet.quantize_aware(net_of(*middle), calibration=images)
    int8 = fnet.Int8Model(fnet.to_tflite(aware))
    assert sorted(int8.operators) == sorted(["CONV_2D", *operators, "MEAN", "FULLY_CONNECTED"])
    assert int8.tensor_types <= {"int8", "int32"}
    assert fnet.agreement(aware, int8, images).largest_lsb <= 2


BY_PTQ = {  # layers, and those that stay in float, named by the warning
    "dilated": ([layers.Conv2D(8, 3, dilation_rate=2, activation="relu")], ""),
    "relu of any limit": ([layers.Conv2D(8, 3), layers.ReLU(0.3)], ""),
    "slope": ([layers.Conv2D(8, 3), layers.ReLU(negative_slope=0.1)], ""),
    "elu": ([layers.Conv2D(8, 3, activation="elu"), layers.Conv2D(8, 1), layers.ELU()], ""),
    "elu twice": ([layers.Conv2D(8, 3, activation="elu", name="once"), layers.ELU(name="twice")], "once.*twice"),
    "slope and limit": ([layers.Conv2D(8, 3), layers.ReLU(6, 0.1, name="slide")], "slide"),
}


@pytest.mark.parametrize("kind", BY_PTQ)
def test_a_net_is_int8_by_ptq_or_the_layers_in_float_are_named(kind, digits):
    middle, floating = BY_PTQ[kind]
    model, images = net_of(*middle), digits.calibration(32)
    with pytest.warns(RuntimeWarning, match=floating) if floating else contextlib.nullcontext():
        int8 = fnet.Int8Model(fnet.to_tflite(model, calibration=images))
    assert ("float32" in int8.tensor_types) == bool(floating)
    assert fnet.agreement(model, int8, images).top1 >= 0.9


@pytest.mark.parametrize(("weights", "kernels"), [("zeros", "XNNPACK"), ("glorot_uniform", "LiteRT's own")])
def test_a_branch_whose_relu_is_dead_is_summed_as_by_qat(weights, kernels, digits):
    dead = layers.Conv2D(8, 3, padding="same", activation="relu", kernel_initializer=weights)
    model = net_of(lambda x: layers.Add()([x, dead(x)]))
    dead.set_weights([dead.get_weights()[0], np.full(8, -10.0)])
    images = digits.calibration(64)
    aware = fnet.quantize_aware(model, calibration=images)
    int8 = fnet.Int8Model(fnet.to_tflite(aware))
    assert int8.kernels == kernels  # XNNPACK refuses an output of scale 0 that weights have a part in
    assert fnet.agreement(aware, int8, images).largest_lsb <= 1
    assert int8.predict_quantized(images).std() > 30


def test_a_net_that_scales_pixels_of_0_to_255_itself_is_refused_and_rebuilt_it_is_taken(digits):
    keras.utils.set_random_seed(0)
    net = [keras.Input((16, 16, 1)), layers.RandomFlip(), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(10)]
    model, images = keras.Sequential(net, name="theirs"), digits.calibration(8)
    converted, factorized = lambda net: fnet.to_tflite(net, calibration=images), lambda net: fnet.factorize(net, 1)
    for call in (fnet.quantize_aware, converted, factorized):
        with pytest.raises(ValueError, match=r"the layer 'rescaling.*' of 'theirs' scales pixels of 0\.\.255"):
            call(model)
    found = fnet.Int8Model(fnet.to_tflite(fnet.from_keras3(model), calibration=images)).predict(images)
    np.testing.assert_allclose(found, model(images.astype(np.float32), training=False), atol=0.1)


def test_two_outputs_and_arguments_that_do_not_go_together_are_refused(models, digits):
    images, outputs = digits.calibration(8), models.float.outputs
    two = keras.Model(models.float.inputs, [*outputs, *outputs], name="two")
    for model, options, message in (
        (two, {"calibration": images}, "'two' has 2 outputs; make a model of the classifier's output alone"),
        (models.float, {}, "a float model needs calibration"),
        (models.qat, {"calibration": images}, "leave calibration out"),
        (models.qat, {"per_channel": False}, "per_channel=False is for PTQ"),
        (models.qat, {"labels": ["a", "b", "c"]}, "3 labels for 10 classes"),
        (models.float, {"calibration": images / 255}, "dtype float64"),
        (b"", {}, "needs a tf_keras"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            fnet.to_tflite(model, **options)
