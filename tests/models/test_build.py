import h5py
import numpy as np
import pytest
import tf_keras as keras

import factorizenet_tf as fnet
from factorizenet_tf.models.weights import copy_weights, load_model, save_weights

STAGES = ((2, 2), (1, 2))


SIZES = [*((level, (32, 32, 3)) for level in range(5)), (2, (33, 20, 1)), (4, (96, 96, 3))]


@pytest.mark.parametrize(("level", "shape"), SIZES)
def test_every_level_maps_images_to_logits_by_stock_layers_named_by_the_plan(level, shape):
    spec = fnet.ModelSpec(level, width=8, input_shape=shape, num_classes=7, stages=STAGES)
    model = fnet.build(spec)
    assert model.input_shape == (None, *shape)
    assert model(np.zeros((2, *shape), np.float32)).shape == (2, 7)
    assert all(type(layer).__module__.startswith("tf_keras.") for layer in model.layers)
    layers = {layer.name: layer for layer in model.layers}
    for planned in spec.plan():
        is_depthwise = type(layers[planned.name]).__name__ == "DepthwiseConv2D"
        assert is_depthwise or getattr(layers[planned.name], "groups", 1) == planned.groups
        assert (f"{planned.name}_relu6" in layers) == (planned.name != "logits")
    assert type(layers["stage1_block2_spatial"]).__name__ == ("DepthwiseConv2D" if level == 4 else "Conv2D")


def test_a_residual_sum_is_added_before_the_activation():
    spec = fnet.ModelSpec(1, width=8, input_shape=(8, 8, 1), stages=((1, 1, None, True),))
    model = fnet.build(spec)
    names = ["stem_relu6", "stage1_block1_pointwise_bn", "stage1_block1_pointwise_relu6"]
    parts = keras.Model(model.input, [model.get_layer(name).output for name in names])
    before, branch, after = parts(np.random.default_rng(0).uniform(size=(2, 8, 8, 1)).astype(np.float32))
    assert np.array_equal(after, np.clip(np.asarray(before) + np.asarray(branch), 0, 6))
    assert np.any(np.asarray(before) > 0)


@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_a_grouped_convolution_is_a_dense_one_with_a_block_diagonal_kernel(level):
    grouped = fnet.build(fnet.ModelSpec(level, width=8, stages=STAGES)).get_layer("stage1_block2_spatial")
    side = 16 // 2**level  # channels a group, in and out; one at level 4, which is depthwise
    kernel = grouped.get_weights()[0].reshape(3, 3, side, 16)
    block_diagonal = np.zeros((3, 3, 16, 16), np.float32)
    for start in range(0, 16, side):
        block = slice(start, start + side)
        block_diagonal[:, :, block, block] = kernel[..., block]
    x = np.random.default_rng(0).normal(size=(2, 5, 5, 16)).astype(np.float32)
    dense = keras.layers.Conv2D(16, 3, padding="same", use_bias=False)
    dense.build(x.shape)
    dense.set_weights([block_diagonal])
    np.testing.assert_allclose(grouped(x), dense(x), atol=1e-5)


SPEC = fnet.ModelSpec(1, width=8)


@pytest.fixture(scope="module")
def trained():
    return fnet.build(SPEC)


@pytest.fixture
def path(trained, tmp_path):
    save_weights(trained, tmp_path / "float.h5", spec=SPEC, precision="float")
    return tmp_path / "float.h5"


def test_a_weights_file_becomes_the_model_again(trained, path):
    for loaded in (fnet.FactorizeNet(1, width=8, weights=path), load_model(path)):
        for a, b in zip(trained.get_weights(), loaded.get_weights()):
            np.testing.assert_array_equal(a, b)


def test_weights_are_copied_by_name_but_for_a_head_of_other_classes(trained):
    fewer = fnet.build(fnet.ModelSpec(1, width=8, num_classes=4))
    before = fewer.get_layer("logits").get_weights()[0]
    assert copy_weights(trained, fewer) == ["logits"]
    np.testing.assert_array_equal(fewer.get_layer("logits").get_weights()[0], before)
    np.testing.assert_array_equal(fewer.get_layer("stem").kernel, trained.get_layer("stem").kernel)
    with pytest.raises(ValueError, match=r"the layer 'stage1_block1_spatial' needs .*; use a spec of the same level"):
        copy_weights(trained, fnet.build(fnet.ModelSpec(2, width=8)))


@pytest.mark.parametrize(
    ("mutate", "message"),
    [
        (lambda file: file.attrs.pop("factorizenet_spec"), "has no spec inside"),
        (lambda file: file.attrs.pop("factorizenet_precision"), "has the precision None; it must be float or int8"),
        (lambda file: file.attrs.update(factorizenet_precision=8), "has the precision .*8.*; it must be float or int8"),
        (lambda file: file.attrs.update(factorizenet_precision="int8"), "holds int8 weights; float ones are needed"),
        (lambda file: file.attrs.update(factorizenet_spec=3), "has the spec .*3.*, which is not text"),
        (lambda file: file.attrs.update(factorizenet_spec="{}"), "not a spec"),
        (lambda file: file.attrs.update(layer_names=[1, 2]), "does not fit the model"),
        (lambda file: file.attrs.update(layer_names=3), "does not fit the model"),
        (lambda file: file["logits"].attrs.update(weight_names=[1, 2]), "does not fit the model"),
        (lambda file: file["logits/logits/kernel:0"].__setitem__((0, 0), np.nan), "layer 'logits' that are not finite"),
    ],
)
def test_weights_with_anything_odd_inside_are_refused_with_what_is_wrong(path, mutate, message):
    with h5py.File(path, "r+") as file:
        mutate(file)
    with pytest.raises(ValueError, match=message):
        load_model(path, precision="float")


def test_a_damaged_or_missing_file_and_one_of_another_spec_are_refused(path, tmp_path):
    with pytest.raises(ValueError, match="holds weights of ModelSpec"):
        fnet.FactorizeNet(2, width=8, weights=path)
    with pytest.raises(FileNotFoundError, match="no weights file"):
        fnet.FactorizeNet(2, weights=tmp_path / "none.h5")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged"):
        load_model(path)


def test_resnet8_trains_by_the_same_door():
    model = fnet.build(fnet.baselines.ResNet8(num_classes=4))
    assert model.output_shape == (None, 4)
    assert fnet.quantize_aware(model).output_shape == (None, 4)
