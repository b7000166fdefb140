import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf._keras import keras
from factorizenet_tf.models.inherit import inherit

SHAPE, STAGES = (16, 16, 1), ((1, 2), (2, 2))


def net(level, **options):
    return fnet.ModelSpec(level, width=8, input_shape=SHAPE, stages=STAGES, **options)


def trained_like(spec):
    """A model with weights of its own everywhere, BatchNorm's statistics included."""
    model = fnet.build(spec)
    random = np.random.default_rng(1)
    model.set_weights([random.uniform(0.1, 1.0, w.shape).astype(np.float32) for w in model.get_weights()])
    return model


def outputs(model):
    images = np.random.default_rng(2).uniform(0, 1, (4, *SHAPE)).astype(np.float32)
    return model(images, training=False).numpy()


def test_a_coarser_net_computes_what_the_finer_one_did():
    for finer in (2, (3, 1), 4):
        parent = trained_like(net(finer))
        child = inherit(parent, net(finer), net((1, 1)))
        np.testing.assert_allclose(outputs(child), outputs(parent), rtol=1e-4)


def test_a_finer_net_has_what_is_within_its_groups():
    parent = trained_like(net((1, 1)))
    for finer in ((2, 1), (3, 1)):  # in 4 groups, and depthwise
        layer = "stage1_block1_spatial"
        kernel, cut = (m.get_layer(layer).get_weights()[0] for m in (parent, inherit(parent, net((1, 1)), net(finer))))
        cut = cut if finer == (2, 1) else np.swapaxes(cut, 2, 3)
        inside, before = cut.shape[2], kernel.shape[2]
        for channel in range(8):
            first = channel // inside * inside % before
            np.testing.assert_array_equal(cut[:, :, :, channel], kernel[:, :, first : first + inside, channel])


def test_same_stages_are_copied_level_0_starts_anew_from_the_seed_and_other_nets_are_refused():
    parent, spec = trained_like(net((0, 2))), net((1, 2))
    child, again, other = (inherit(parent, net((0, 2)), spec, seed=seed) for seed in (0, 0, 4))
    for name in ("stem", "stem_bn", "stage2_block1_spatial", "stage2_block2_pointwise_bn", "logits"):
        for a, b in zip(child.get_layer(name).get_weights(), parent.get_layer(name).get_weights()):
            np.testing.assert_array_equal(a, b)
    for name in ("stage1_block1_spatial", "stage1_block1_pointwise"):
        assert child.get_layer(name).get_weights()[0].min() < 0  # the parent's are all above 0
    assert child.get_layer("stage1_block1_spatial_bn").get_weights()[3].max() == 1
    assert all((a == b).all() for a, b in zip(child.get_weights(), again.get_weights()))
    assert any((a != b).any() for a, b in zip(child.get_weights(), other.get_weights()))
    with pytest.raises(ValueError, match=r"cannot inherit from .*they differ in num_classes \(10, 4\)"):
        inherit(parent, net((0, 2)), net(2, num_classes=4))


@pytest.mark.parametrize(("before", "after"), [(0, 1), (0, (0, 4)), (2, (0, 2)), ((0, 2), (2, 0))])
def test_between_level_0_and_others_a_stage_is_fitted_on_images(before, after):
    coarse = np.random.default_rng(3).integers(0, 256, (64, 4, 4, 1))
    images = np.repeat(np.repeat(coarse, 4, 1), 4, 2).astype(np.uint8)
    spec = net(before)
    keras.utils.set_random_seed(0)
    parent = fnet.build(spec)

    def logits(model):
        return model(images / np.float32(255), training=False).numpy()

    wanted = logits(parent)
    fitted, anew = (inherit(parent, spec, net(after), calibration=given) for given in (images, None))
    errors = [np.sqrt(np.square(logits(model) - wanted).mean() / wanted.var()) for model in (fitted, anew)]
    assert errors[0] < 0.3 * errors[1]
    assert (logits(inherit(parent, spec, net(after), calibration=images)) == logits(fitted)).all()


def test_a_training_that_starts_from_weights_in_memory_goes_on_with_the_same_alone(digits, tmp_path, no_conversion):
    recipe = fnet.recipe_for("digits", epochs=1, qat_epochs=0, calibration_images=64, learning_rate=0.0)
    spec, parent = net(1), trained_like(net(2))
    start = inherit(parent, net(2), spec)
    run = fnet.train(spec, digits, out=tmp_path, recipe=recipe, initial=start, verbose=False)
    np.testing.assert_array_equal(run.float_model().get_layer("logits").kernel, parent.get_layer("logits").kernel)
    assert run.metrics["initial"] == "a model in memory"
    assert fnet.train(spec, digits, out=tmp_path, recipe=recipe, initial=start, verbose=False) == run
    with pytest.raises(ValueError, match=r"initial\.weights: the folder has [0-9a-f]{64}"):
        fnet.train(spec, digits, out=tmp_path, recipe=recipe, initial=trained_like(spec), verbose=False)
