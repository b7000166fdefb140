import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.recipe import learning_rate_at, recipe_from_json


def test_the_rate_rises_linearly_and_falls_as_a_cosine():
    rates = [learning_rate_at(step, steps=110, warmup_steps=10, peak=1.0) for step in range(110)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert (rates[10], rates[60]) == (1.0, pytest.approx(0.5))
    assert 0 < rates[-1] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate_at(0, steps=10, warmup_steps=0, peak=0.3) == 0.3


def test_a_recipe_survives_json_and_is_frozen():
    recipe = fnet.Recipe(epochs=3, cutout=0.0, seed=7)
    assert recipe_from_json(recipe.to_json()) == recipe
    with pytest.raises(AttributeError):
        recipe.epochs = 4
    with pytest.raises(ValueError, match="not a recipe"):
        recipe_from_json('{"epoch": 3}')


def test_digits_are_not_mirrored_and_changes_win():
    assert not fnet.recipe_for("digits").flip
    assert fnet.recipe_for("cifar10") == fnet.Recipe()
    assert fnet.recipe_for("digits", epochs=2, flip=True).flip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("momentum", 2),
        ("cutout", "x"),
        ("batch_size", 64.0),
        ("epochs", True),
        ("learning_rate", float("inf")),
        ("momentum", np.nan),
        ("flip", "no"),
    ],
)
def test_a_number_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is .* must be (.* from .* to|True or False)"):
        fnet.Recipe(**{name: value})


def test_numbers_of_numpy_are_taken_and_written():
    recipe = fnet.Recipe(
        epochs=np.int64(3), learning_rate=np.float32(0.5), momentum=np.int32(0), flip=np.bool_(False), seed=np.uint8(4)
    )
    assert recipe == fnet.Recipe(epochs=3, learning_rate=0.5, momentum=0, flip=False, seed=4)
    assert recipe_from_json(recipe.to_json()) == recipe
