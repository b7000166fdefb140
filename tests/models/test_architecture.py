"""A flat CNN as plain data."""

import json

import numpy as np
import pytest
from tf_keras import Input, Model, layers

import factorizenet_tf as fnet
from factorizenet_tf.models.architecture import architecture_of, build_architecture
from factorizenet_tf.models.weights import copy_weights
from factorizenet_tf.spec import spec_from_json


def theirs():
    """A net of branches: convolutions of each kind, merges, pooling, padding, activations."""
    inputs = Input((12, 12, 3), name="picture")
    x = layers.Conv2D(8, 3, padding="same", groups=1, activation="relu")(layers.Rescaling(2.0, -1.0)(inputs))
    x = layers.ReLU(6.0)(layers.BatchNormalization(epsilon=1e-2)(layers.Conv2D(8, 3, groups=4, use_bias=False)(x)))
    y = layers.Activation("tanh")(layers.DepthwiseConv2D(3, padding="same", dilation_rate=2)(x))
    x = layers.Concatenate()([layers.Add()([x, y]), layers.Subtract()([x, y])])
    x = layers.LeakyReLU(0.1)(layers.MaxPooling2D(2)(layers.ZeroPadding2D(((0, 1), (1, 0)))(x)))
    return Model(inputs, layers.Dense(5)(layers.Flatten()(x)), name="theirs")


def test_a_model_built_from_its_architecture_computes_the_same_and_goes_through_json():
    model = theirs()
    spec = architecture_of(model)
    assert (spec.name, spec.input_shape, spec.num_classes) == ("theirs", (12, 12, 3), 5)
    again = fnet.build(spec_from_json(spec.to_json()))
    again.set_weights(model.get_weights())
    images = np.random.default_rng(0).random((4, 12, 12, 3), np.float32)
    np.testing.assert_allclose(again.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-5)
    assert [layer.name for layer in again.layers] == [layer.name for layer in model.layers]
    assert architecture_of(again, "theirs") == spec


def test_for_other_classes_the_last_dense_layer_is_a_new_head_and_the_others_keep_their_weights():
    model = theirs()
    other = fnet.build(architecture_of(model).with_head(3))
    assert other.output_shape == (None, 3)
    assert copy_weights(model, other) == [model.layers[-1].name]
    np.testing.assert_array_equal(other.layers[2].get_weights()[0], model.layers[2].get_weights()[0])


def mine(x):
    """An activation of somebody's own."""
    return x


def test_layers_and_fields_that_are_not_known_are_named():
    inputs = Input((8, 8, 1))
    for layer, message in (
        (layers.Lambda(lambda x: x, name="code"), "the layer 'code' is a Lambda, whose code is not run"),
        (layers.Activation(mine, name="own"), "the layer 'own', a Activation, has activation"),
        (layers.Conv2D(2, 1, data_format="channels_first", name="first"), "the layer 'first' is channels_first"),
    ):
        with pytest.raises(ValueError, match=message):
            architecture_of(Model(inputs, layers.Dense(2)(layers.Flatten()(layer(inputs)))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[2].__setitem__(1, "Lambda"), "is a Lambda, whose code is not run"),
        (lambda rows: rows[2][2].__setitem__("kernel_initializer", "zeros"), "has kernel_initializer 'zeros'"),
        (lambda rows: rows[2][2].__setitem__("activation", {"class_name": "Own"}), "has activation .*Own"),
        (lambda rows: rows[2].__setitem__(3, ["nowhere"]), "cannot be built .'nowhere'"),
        (lambda rows: rows[-1][2].__setitem__("units", 6), r"theirs gives \(None, 6\); it must give \(None, 5\)"),
    ],
)
def test_data_that_was_changed_builds_nothing(change, message):
    spec = architecture_of(theirs())
    rows = json.loads(spec.layers)
    change(rows)
    changed = fnet.Architecture(name="theirs", input_shape=(12, 12, 3), num_classes=5, layers=json.dumps(rows))
    with pytest.raises(ValueError, match=message):
        build_architecture(changed)


def test_an_architecture_that_is_none_is_refused():
    with pytest.raises(ValueError, match="the net's name is 'a b'"):
        fnet.Architecture(name="a b", input_shape=(8, 8, 1), num_classes=2, layers="[]")
    with pytest.raises(ValueError, match=r"layers of net is '\[1\]'; it must be JSON"):
        fnet.Architecture(name="net", input_shape=(8, 8, 1), num_classes=2, layers="[1]")
