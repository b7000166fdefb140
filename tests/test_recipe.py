import json

import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf.recipe import augmentations, learning_rate_at, recipe_from_json


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


def test_digits_letters_and_arrays_are_not_mirrored_and_changes_win():
    for name in ("digits", "arrays", "mnist", "svhn_cropped:3.0.0", "emnist/letters", "cmaterdb/bangla:1.0.0"):
        assert fnet.recipe_for(name).to_dict() == fnet.recipe_for(name, flip=False).to_dict()
    assert fnet.recipe_for("fashion_mnist").flip
    assert fnet.recipe_for("cifar10") == fnet.Recipe()
    assert fnet.recipe_for("digits", epochs=2, flip=True).flip


OUT_OF_RANGE = [("epochs", 0), ("momentum", 2), ("cutout", "x"), ("batch_size", 64.0), ("epochs", True)]
OUT_OF_RANGE += [("learning_rate", float("inf")), ("momentum", np.nan), ("flip", "no")]


@pytest.mark.parametrize(("name", "value"), OUT_OF_RANGE)
def test_a_number_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name} is .* must be (.* from .* to|True or False)"):
        fnet.Recipe(**{name: value})


def test_numbers_of_numpy_are_taken_and_written():
    numbers = {"epochs": np.int64(3), "learning_rate": np.float32(0.5), "momentum": np.int32(0), "seed": np.uint8(4)}
    recipe = fnet.Recipe(**numbers, flip=np.bool_(False))
    assert recipe == fnet.Recipe(epochs=3, learning_rate=0.5, momentum=0, flip=False, seed=4)
    assert recipe_from_json(recipe.to_json()) == recipe


def test_files_of_recipes_have_new_fields_only_where_they_are_in_use():
    assert "rotate" not in fnet.Recipe().to_json()
    turned = fnet.Recipe(rotate=15, class_weights="balanced")
    assert turned.to_dict().keys() - fnet.Recipe().to_dict().keys() == {"rotate", "class_weights"}
    assert recipe_from_json(turned.to_json()) == turned
    with pytest.raises(ValueError, match="class_weights is 'even'; it must be none or balanced"):
        fnet.Recipe(class_weights="even")


def test_what_is_on_is_said():
    assert augmentations(fnet.Recipe()) == "random crops, flips"
    assert augmentations(fnet.Recipe(crop_padding=0, flip=False)) == "no augmentation"
    text = "random crops, rotations by up to 15 degrees, balanced class weights"
    assert augmentations(fnet.Recipe(flip=False, rotate=15, class_weights="balanced")) == text


def test_a_folder_is_not_mirrored_unless_asked_or_begun_so_by_an_older_version(tmp_path):
    assert not fnet.recipe_for(str(tmp_path)).flip
    assert fnet.recipe_for(str(tmp_path), flip=True).flip
    for name, text in (("recipe.json", {"flip": True}), ("search.json", {"recipe_flip": True})):
        begun = tmp_path / name.removesuffix(".json")
        begun.mkdir()
        (begun / name).write_text(json.dumps(text, indent=2))
        assert fnet.recipe_for(str(tmp_path), begun=begun).flip
        assert fnet.recipe_for("arrays", begun=begun).flip
        assert fnet.recipe_for("mnist", begun=begun).flip
