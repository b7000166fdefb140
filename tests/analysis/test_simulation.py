"""The simulated quantizer against TensorFlow Lite's own files and debugger, and against a pencil."""

import collections
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ai_edge_litert.interpreter import Interpreter, OpResolverType

import factorizenet_tf as fnet
from factorizenet_tf._keras import to_float
from factorizenet_tf.analysis.analyze import SAME_SCALE
from factorizenet_tf.analysis.graph import by_channel, fuse
from factorizenet_tf.analysis.measure import activations, error_tables, output_ranges
from factorizenet_tf.analysis.simulation import (
    QAT,
    Scheme,
    activation_scale,
    converter_ranges,
    forward,
    quantize_graph,
    quantized_kernel,
)
from factorizenet_tf.models.convert import with_full_range_pixels

layers = keras.layers


def last(outputs):
    return collections.deque(outputs, maxlen=1)[0][2].numpy()


def ranges_of(graph, images):
    return output_ranges(activations(graph, images), 100)


def trained(model, digits, epochs, *, from_logits):
    keras.utils.set_random_seed(1)
    model.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits))
    model.fit(to_float(digits.train.images), digits.train.labels, epochs=epochs, batch_size=64, verbose=0)
    return model


def mixed():
    """A depthwise block; a sum of two convolutions that nobody else reads, a ReLU behind it; biases; pooling."""
    inputs = keras.Input((16, 16, 1))
    x = layers.ZeroPadding2D(1)(inputs)
    x = layers.Conv2D(8, 3, activation="relu", name="first")(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False, name="depthwise")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization(momentum=0.9, name="depthwise_bn")(x))
    y = layers.BatchNormalization(momentum=0.9, name="bn")(layers.Conv2D(8, 3, padding="same", name="left")(x))
    x = layers.Conv2D(8, 1, name="right")(x)
    x = layers.ReLU(name="relu")(layers.Add(name="sum")([x, y]))
    x = layers.MaxPooling2D(2, name="max")(x)
    x = layers.Dense(16, activation="relu", name="hidden")(layers.Flatten(name="flat")(x))
    return keras.Model(inputs, layers.Dense(10, name="logits")(x), name="mixed")


def pooling():
    """Average pooling with and without padding, of numbers on both sides of zero, and a softmax."""
    inputs = keras.Input((16, 16, 1))
    x = layers.Conv2D(8, 3, name="conv")(inputs)
    x = layers.AveragePooling2D(3, strides=2, padding="same", name="padded")(x)
    x = layers.AveragePooling2D(2, strides=1, name="mean")(x)
    outputs = layers.Dense(10, activation="softmax", name="dense")(layers.Flatten(name="flat")(x))
    return keras.Model(inputs, outputs, name="pooling")


@pytest.fixture(scope="module")
def nets(models, digits):
    """Trained float nets: the session's grouped one, one of all other kinds of layers, one of average pooling."""
    own = {"mixed": trained(mixed(), digits, 10, from_logits=True)}
    own["pooling"] = trained(pooling(), digits, 3, from_logits=False)
    return {"grouped": models.float} | own


GROUPED, POOLING = ([(name, scheme) for scheme in ("per_channel", "qat")] for name in ("grouped", "pooling"))
MIXED = [("mixed", "per_channel"), ("mixed", "per_tensor")]


@pytest.fixture(scope="module", params=GROUPED + MIXED + POOLING, ids="-".join)
def simulation(request, nets, models, digits):
    """A net, its graph, its simulation and its .tflite."""
    (name, scheme), calibration = request.param, digits.calibration(128)
    if scheme == "qat":
        model = models.qat if name == "grouped" else fnet.quantize_aware(nets[name], calibration=calibration)
        graph, file = fuse(model), models.int8 if name == "grouped" else fnet.Int8Model(fnet.to_tflite(model))
        quantization = quantize_graph(graph, QAT, {})
    else:
        model, graph = nets[name], fuse(nets[name])
        quantization = quantize_graph(graph, Scheme(scheme), ranges_of(graph, with_full_range_pixels(calibration)))
        content = fnet.to_tflite(model, calibration=calibration, per_channel=scheme == "per_channel")
        file = fnet.Int8Model(content)
    return SimpleNamespace(model=model, graph=graph, quantization=quantization, file=file)


def operations(file):
    """(output scale, zero point, kernel's scales, kernel's integers (channels, numbers)) of each operation, in order."""
    plain = file._plain()
    tensors = {t["index"]: t for t in plain.get_tensor_details()}
    for op in plain._get_ops_details():
        if op["op_name"] in SAME_SCALE:
            continue
        parameters = tensors[op["outputs"][0]]["quantization_parameters"]
        row = [op["op_name"], float(parameters["scales"][0]), int(parameters["zero_points"][0]), None, None]
        if op["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
            kernel = tensors[op["inputs"][1]]
            row[3] = kernel["quantization_parameters"]["scales"]
            integers = plain.get_tensor(kernel["index"])
            is_depthwise = op["op_name"] == "DEPTHWISE_CONV_2D"
            row[4] = integers.reshape(-1, integers.shape[-1]).T if is_depthwise else integers.reshape(len(integers), -1)
        yield row


def as_channels(values, kind):
    if kind in ("depthwise", "dense"):
        return by_channel(values, kind).T
    return np.moveaxis(values, -1, 0).reshape(values.shape[-1], -1)


def test_scales_and_integers_are_the_files(simulation):
    graph, quantization = simulation.graph, simulation.quantization
    is_learned, kernels = quantization.scheme.is_learned, 0
    ours = [op for op in graph.quantized if op.kind != "input"]
    for (kind, scale, zero_point, scales, integers), op in zip(operations(simulation.file), ours, strict=True):
        expected, zero = activation_scale(*quantization.ranges[op.name])
        assert scale == pytest.approx(expected, rel=1e-5 if is_learned else 1e-4), (kind, op.name)
        assert abs(zero_point - zero) <= (op.kind == "dense" and not is_learned), (kind, op.name)
        if scales is None:
            continue
        kernels += 1
        options = {"per_channel": quantization.scheme.per_channel, "limits": op.learned_limits}
        values, own = quantized_kernel(op.folded, op.kind, **options)
        np.testing.assert_allclose(scales, own, rtol=1e-5)
        found = np.rint(as_channels(values, op.kind) / own[:, None])
        assert np.abs(integers - found).max() <= 1
        assert np.mean(integers != found) < 1e-3
    assert kernels == len(graph.kernels)


@pytest.mark.parametrize("simulation", GROUPED + MIXED, indirect=True, ids="-".join)
def test_outputs_and_accuracy_are_the_files(simulation, digits):
    graph, quantization, images = simulation.graph, simulation.quantization, to_float(digits.test.images)
    ours, theirs = last(forward(graph, images, quantization)), simulation.file.predict(digits.test.images)
    accuracies = [np.mean(logits.argmax(1) == digits.test.labels) for logits in (ours, theirs)]
    assert accuracies[1] > 0.8
    assert abs(accuracies[0] - accuracies[1]) <= 0.003
    of_keras = simulation.model.predict(images, verbose=0)
    if quantization.scheme.is_learned:
        lsb = simulation.file.output_quantization[0]
        assert np.abs(ours - theirs).max() <= 4 * lsb
        assert np.mean(np.abs(ours - of_keras) <= 1.01 * lsb) > 0.99
        return
    exact = last(forward(graph, images))
    np.testing.assert_allclose(exact, of_keras, atol=2e-4)
    error, distance = np.mean((theirs - exact) ** 2), np.mean((ours - theirs) ** 2)
    assert distance < 0.2 * error  # ties of rounding
    assert np.mean((ours - exact) ** 2) == pytest.approx(error, rel=0.05)


@pytest.mark.slow  # a file with a float twin of each operation, run image by image
@pytest.mark.parametrize("simulation", GROUPED[:1], indirect=True, ids="-".join)
def test_layer_errors_are_those_of_tensorflows_debugger(simulation, digits):
    graph, images = simulation.graph, digits.calibration(128)
    ours = {}
    for op, inputs, output in forward(graph, to_float(images), simulation.quantization):
        if op.kind != "input" and op.is_quantized:  # it alone in float, on inputs of the quantized net
            ours[op.name] = np.mean(np.square(op.compute(inputs, op.folded, op.bias) - output))
    theirs = debugged(simulation.model, images)
    names = [op.name for op in graph.quantized if op.kind != "input"]
    for name, mse in zip(names, theirs, strict=True):
        assert ours[name] == pytest.approx(mse, rel=0.05), name


def debugged(model, images):
    """MSE of each operation's output, in order, by tf.lite.experimental.QuantizationDebugger."""
    shape = tf.TensorSpec((1, *model.input_shape[1:]), tf.float32)
    function = tf.function(lambda image: model(image, training=False)).get_concrete_function(shape)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([to_float(i[None])] for i in with_full_range_pixels(images))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the debugger uses the interpreter that TensorFlow deprecates
        data = {"debug_dataset": lambda: ([to_float(image[None])] for image in images)}
        debugger = tf.lite.experimental.QuantizationDebugger(converter=converter, **data)
        debugger.run()
    return [found["mean_squared_error"] for found in debugger.layer_statistics.values()]


def computed(file, images):
    """(operator, scale, zero point, int8 output) of the input and of each operation, by LiteRT's reference kernels."""
    options = {"experimental_op_resolver_type": OpResolverType.BUILTIN_REF, "experimental_preserve_all_tensors": True}
    interpreter = Interpreter(model_content=file.content, **options)
    place = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(place, (len(images), *file.input_shape))
    interpreter.allocate_tensors()
    interpreter.set_tensor(place, file._inputs(images))
    interpreter.invoke()
    tensors = {tensor["index"]: tensor["quantization"] for tensor in interpreter.get_tensor_details()}
    rows = [("INPUT", *tensors[place], file._inputs(images))]
    for op in interpreter._get_ops_details():
        output = op["outputs"][0]
        if op["op_name"] == "QUANTIZE":  # what a quantization-aware pooling's own range makes of its mean
            rows.pop()
        rows.append((op["op_name"], *tensors[output], interpreter.get_tensor(output)))
    return rows


def differences(graph, quantization, rows):
    """Steps by which each operation, simulated on the file's own int8 inputs, differs from the file's int8 output."""
    values = {}
    for (kind, scale, zero_point, integers), op in zip(rows, graph.operations, strict=True):
        if op.kind != "input":
            output = op.compute(values, quantization.kernels.get(op.name), quantization.biases.get(op.name))
            if op.rounds_like_average_pool:
                output = quantization.pooled(op.input_scale_from, output)
            if op.is_quantized:
                output = quantization.tensor(op.name, output)
            found = np.rint(output.numpy() / scale + zero_point)
            yield kind, op.name, np.abs(found - integers.reshape(found.shape))
        values[op.output] = tf.constant(np.float32(scale) * (integers.astype(np.float32) - zero_point))


@pytest.mark.parametrize("simulation", GROUPED + POOLING, indirect=True, ids="-".join)
def test_each_operation_on_the_files_integers_gives_them_but_for_ties(simulation, digits):
    graph, quantization, file = simulation.graph, simulation.quantization, simulation.file
    found = list(differences(graph, quantization, computed(file, digits.test.images)))
    for kind, name, steps in found:
        is_exact = kind in ("AVERAGE_POOL_2D", "QUANTIZE", "SOFTMAX", *SAME_SCALE)
        assert steps.max() <= (not is_exact), (kind, name)
        assert np.mean(steps) < (0.1 if kind == "MEAN" else 5e-3), (kind, name)  # of 16 pixels' sums one in 16 is a tie
    if found[-1][0] != "SOFTMAX":
        return
    ours = np.rint(last(forward(graph, to_float(digits.test.images), quantization)) * 256) - 128
    assert np.mean(ours != file.predict_reference(digits.test.images)) < 0.01
    # XNNPACK rounds a convolution's ties otherwise; a softmax makes some steps of one in its input
    fast = file.predict_quantized(digits.test.images)
    assert np.mean(np.abs(ours - fast)) < 0.2
    assert np.mean(ours.argmax(1) == fast.argmax(1)) > 0.99


def test_a_mean_on_the_grid_by_hand():
    model = keras.Sequential([keras.Input((2, 1, 1)), layers.AveragePooling2D((2, 1), name="mean")], name="pair")
    graph = fuse(model)
    quantization = quantize_graph(graph, Scheme("per_channel"), {})  # the image: steps of 1/255 from -128
    steps = np.array([[0, 1], [2, 3], [254, 255], [3, 6], [127, 128], [128, 129], [4, 4]], np.float32)
    ours = last(forward(graph, (steps / 255).reshape(-1, 2, 1, 1), quantization)).ravel() * 255
    # int8 means -127.5, -125.5, 126.5, -123.5, -0.5, 0.5, -124: halves go away from 0
    np.testing.assert_allclose(ours, [0, 2, 255, 4, 127, 129, 4], atol=1e-3)


# Pencil


def test_scales_and_widths_by_hand():
    kernel = np.array([[1.27, 0.0127], [-0.635, 0.00635]], np.float32)  # (in, out): limits 1.27 and 0.0127
    values, scales = quantized_kernel(kernel, "dense", per_channel=True)
    np.testing.assert_allclose(scales, [0.01, 0.0001], rtol=1e-6)
    np.testing.assert_allclose(values, kernel, atol=0.0051)
    values, scales = quantized_kernel(kernel, "dense", per_channel=False)
    assert scales == pytest.approx([0.01], rel=1e-6)
    np.testing.assert_allclose(values[:, 1], [0.01, 0.01], rtol=1e-5)  # 0.0127 and 0.00635 are both one step of 0.01
    kernel = np.array([[0.7, -0.35, 0.1]], np.float32).T
    values, scales = quantized_kernel(kernel, "dense", per_channel=True, bits=4)
    assert [*values[:, 0], *scales] == pytest.approx([0.7, -0.4, 0.1, 0.1])  # -3.5 steps to even
    values, _ = quantized_kernel(kernel, "dense", per_channel=True, bits=2)
    assert set(np.unique(np.abs(values))) <= {0, np.float32(0.7)}


@pytest.mark.parametrize(
    ("low", "high", "bits", "scale", "zero_point"),
    [
        (0.0, 6.0, 8, 6 / 255, -128),
        (-1.0, 1.0, 8, 2 / 255, 0),  # -0.5 to even
        (0.5, 3.0, 4, 0.2, -8),  # the range contains zero
        (0.0, 0.0, 8, 0.0, 0),
    ],
)
def test_scale_and_zero_point_of_a_range_by_hand(low, high, bits, scale, zero_point):
    assert activation_scale(low, high, bits) == (pytest.approx(scale), zero_point)


def test_a_dense_layer_by_hand():
    model = keras.Sequential([keras.Input((1, 1, 2)), layers.Flatten(), layers.Dense(1, name="dense")])
    model.get_layer("dense").set_weights([np.array([[1.27], [-1.0]], np.float32), np.array([0.0123], np.float32)])
    graph = fuse(model)  # kernel scale 0.01, input scale 1/255, bias step 0.01/255
    simulated = quantize_graph(graph, Scheme("per_channel"), {"dense": (-1.0, 1.55)})  # output scale 0.01
    image = np.array([[[[1.0, 51 / 255]]]], np.float32)
    assert float(simulated.biases["dense"][0]) == pytest.approx(round(0.0123 * 25500) / 25500)
    exact = 1.27 - 0.2 + 314 / 25500  # 0.0123 * 25500 = 313.65
    assert last(forward(graph, image)) == pytest.approx(1.27 - 0.2 + 0.0123)
    assert last(forward(graph, image, simulated)) == pytest.approx(round(exact / 0.01) * 0.01, abs=1e-6)
    only_weights = last(forward(graph, image, simulated, None, frozenset()))
    assert only_weights == pytest.approx(1.07 + 0.0123, abs=1e-6)  # no activation grid, no bias grid


def test_errors_alone_and_accumulated_by_hand():
    dense = [layers.Dense(1, name=name) for name in "ab"]
    model = keras.Sequential([keras.Input((1, 1, 1)), layers.Flatten(), *dense])
    one = [np.ones((1, 1), np.float32), np.zeros(1, np.float32)]
    model.get_layer("a").set_weights(one)
    model.get_layer("b").set_weights(one)
    graph = fuse(model)
    # the image is 51/255 = 0.2; a's grid of steps of 0.16 makes it 0.16; b's of steps of 0.12 makes 0.24 of 0.2, 0.12 of 0.16
    simulated = quantize_graph(graph, Scheme("per_channel"), {"a": (0.0, 40.8), "b": (0.0, 30.6)})
    image = np.full((1, 1, 1, 1), 51, np.uint8)
    (errors,) = error_tables(graph, image, [simulated], {"b": "its tensor"})
    found = errors.set_index("layer")
    assert found.loc["a", ["mse", "accumulated_mse"]].tolist() == pytest.approx([0.04**2] * 2, rel=1e-4)
    assert found.loc["b", ["mse", "accumulated_mse"]].tolist() == pytest.approx([0.04**2, 0.08**2], rel=1e-4)
    assert found.loc["b", ["sqnr_db", "accumulation_db"]].tolist() == pytest.approx(20 * np.log10([5, 2]), rel=1e-4)
    assert found.loc["b", ["weight_mse", "tensor"]].tolist() == [0, "its tensor"]


def test_the_operand_that_only_a_sum_reads_gets_the_sums_range(nets, digits):
    graph = fuse(nets["mixed"])
    ranges = ranges_of(graph, digits.calibration(32))
    merged = converter_ranges(graph, ranges)
    changed = {name for name in ranges if merged[name] != ranges[name]}
    assert changed == {"right"}
    assert merged["right"] == (min(ranges["right"][0], ranges["sum"][0]), max(ranges["right"][1], ranges["sum"][1]))
