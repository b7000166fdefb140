import os
import warnings

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf.console import Progress
from factorizenet_tf.models import native as grouped
from factorizenet_tf.training.loop import TrainingLoop

SPEC = fnet.ModelSpec(1, width=8, input_shape=(16, 16, 1), stages=((1, 2), (2, 2)))


def gradients(model, x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model(x)))
    names = [layer.name for layer in SPEC.plan() if layer.groups > 1]
    return tape.gradient(loss, [model.get_layer(name).kernel for name in names])


def native(layer):
    return "_jit_compiled_convolution_op" in vars(layer)  # whichever kernel stands in for XLA's


def test_a_native_gradient_is_there_unless_onednn_is_off():
    assert grouped.has_native_gradient() == (os.environ["TF_ENABLE_ONEDNN_OPTS"] != "0")


def test_our_grouped_layers_and_their_quantized_clones_are_native_and_others_are_not():
    model = fnet.build(SPEC)
    names = [layer.name for layer in SPEC.plan() if layer.groups > 1]
    assert names
    assert all(native(model.get_layer(name)) for name in names)
    assert not native(model.get_layer("stem"))
    quantized = fnet.quantize_aware(model)
    assert all(native(quantized.get_layer(f"quant_{name}").layer) for name in names)
    assert not any(native(layer) for layer in keras.models.clone_model(model).layers)
    assert keras.layers.Conv2D._jit_compiled_convolution_op.__module__.startswith("tf_keras.")


@pytest.mark.parametrize("has_gradient", [True, False], ids=["grouped", "block-dense"])
def test_our_kernels_give_the_numbers_of_the_stock_path_without_xla(noise, monkeypatch, has_gradient):
    if not has_gradient:
        monkeypatch.setattr(grouped, "has_native_gradient", lambda: False)
    model = fnet.build(SPEC)
    stock = keras.models.clone_model(model)
    stock.set_weights(model.get_weights())
    x = noise(4) / np.float32(255)
    np.testing.assert_allclose(model(x), stock(x), atol=1e-4)
    if has_gradient and not grouped.has_native_gradient():
        return
    for ours, theirs in zip(gradients(model, x), gradients(stock, x)):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, atol=1e-3 * np.abs(theirs).max())
    assert must_compile(stock)
    assert not must_compile(model)


def must_compile(model):
    signature = tf.TensorSpec((None, 16, 16, 1))
    graph = tf.function(lambda x: model(x, training=False)).get_concrete_function(signature).graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return any(node.attr["_XlaMustCompile"].b for node in nodes if "_XlaMustCompile" in node.attr)


def test_wider_groups_for_inference_give_the_same_numbers_and_leave_the_model_alone(noise):
    inputs = keras.Input((16, 16, 1))
    x = keras.layers.Conv2D(64, 3, name="stem")(inputs)
    x = keras.layers.Conv2D(64, 3, groups=16, name="narrow")(x)
    x = keras.layers.Conv2D(64, 3, groups=2, use_bias=False, name="wide")(x)
    model = grouped.use_native_kernels(keras.Model(inputs, keras.layers.Conv2D(24, 1, groups=8, name="last")(x)))
    images = noise(3) / np.float32(255)
    expected, before = model(images), vars(model.get_layer("narrow"))["_jit_compiled_convolution_op"]
    with grouped.inference_kernels(model, channels=16):
        widened = {layer.name: layer._jit_compiled_convolution_op.args[1] for layer in model.layers[2:]}
        np.testing.assert_allclose(model(images), expected, atol=1e-5)
    assert widened == {"narrow": 4, "wide": 2, "last": 4}
    assert vars(model.get_layer("narrow"))["_jit_compiled_convolution_op"] is before


def test_a_file_has_the_groups_of_the_net_where_training_had_none(noise, monkeypatch):
    model = fnet.build(SPEC)
    plain = fnet.to_tflite(model, calibration=noise(8))
    monkeypatch.setattr(grouped, "has_native_gradient", lambda: False)
    dense = fnet.build(SPEC)
    dense.set_weights(model.get_weights())
    assert len(fnet.to_tflite(dense, calibration=noise(8))) == len(plain)


def test_training_alone_says_that_there_is_no_native_gradient_and_once(digits, monkeypatch, tmp_path):
    monkeypatch.setattr(grouped, "has_native_gradient", lambda: False)
    few = fnet.Split(digits.train.images[:64], digits.train.labels[:64])
    few = fnet.Dataset("digits", "digits", digits.class_names, few, few, few)
    recipe = fnet.recipe_for("digits", epochs=1, qat_epochs=1, warmup_epochs=0)
    loop = TrainingLoop(tmp_path, "a net", few, recipe, (), Progress(False))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        model = fnet.build(SPEC)
        aware = fnet.quantize_aware(model)
        assert not [w for w in warned if "no native gradient" in str(w.message)]
        loop.fit("float", model)
        loop.fit("qat", aware)
        assert len([w for w in warned if "no native gradient" in str(w.message)]) == 1
