"""How a net is trained, as data."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path

from .data import is_folder

__all__ = [
    "Recipe",
    "augmentations",
    "check_has_qat",
    "learning_rate_at",
    "recipe_for",
    "recipe_from_json",
    "tuning_recipe_for",
]


LATER = ("rotate", "brightness", "contrast", "class_weights")  # not written at their defaults: older files lack them
CLASS_WEIGHTS = ("none", "balanced")
SIGNS = {"gtsrb", "mnist", "mnist_corrupted", "emnist", "kmnist", "svhn_cropped"}  # mirrored, one is another or none
SIGNS |= {"cmaterdb", "omniglot", "binary_alpha_digits"}


def _within(default, low, high):
    return dataclasses.field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Float training, then quantization-aware fine-tuning (QAT). SGD with Nesterov momentum throughout.

    Args:
        epochs: passes over the training images in float.
        qat_epochs: passes with fake quantization after them; 0 leaves QAT out.
        batch_size: images a step, over all replicas.
        learning_rate: peak of the float phase: reached linearly over `warmup_epochs`, then a cosine to zero.
        warmup_epochs: epochs of the linear rise.
        qat_learning_rate: start of the QAT phase's cosine to zero.
        momentum: Nesterov momentum.
        label_smoothing: share of the target spread evenly over the classes.
        weight_decay: L2 coefficient added to the gradients of kernels (never of BatchNorm or biases).
        crop_padding: pad images by this share of their shorter side and crop them back at random.
        flip: mirror half of the images.
        cutout: side of a zeroed square as a share of the shorter side; 0 leaves it out.
        rotate: rotate images by up to this many degrees either way.
        brightness: add up to this much to an image's pixels in 0..1, or take it off.
        contrast: scale an image's distances from its mean by up to this share, either way.
        class_weights: "balanced" weighs each image's loss inversely to the frequency of its class; "none" does not.
        calibration_images: training images that initialise QAT's activation ranges and calibrate PTQ.
        seed: of initialisation, order and augmentation.

    Raises:
        ValueError: a number is out of its range.

    Source: our choice, by short runs on CIFAR-10 (JPEG).
    """

    epochs: int = _within(45, 1, 100_000)
    qat_epochs: int = _within(5, 0, 100_000)
    batch_size: int = _within(128, 1, 65_536)
    learning_rate: float = _within(0.2, 0, 100)
    warmup_epochs: float = _within(2.0, 0, 100_000)
    qat_learning_rate: float = _within(0.01, 0, 100)
    momentum: float = _within(0.9, 0, 1)
    label_smoothing: float = _within(0.1, 0, 1)
    weight_decay: float = _within(5e-4, 0, 1)
    crop_padding: float = _within(0.125, 0, 1)
    flip: bool = True
    cutout: float = _within(0.0, 0, 1)
    rotate: float = _within(0.0, 0, 180)
    brightness: float = _within(0.0, 0, 1)
    contrast: float = _within(0.0, 0, 1)
    class_weights: str = "none"
    calibration_images: int = _within(512, 1, 1_000_000)
    seed: int = _within(0, 0, 2**31 - 1)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "bool":
                if type(value).__name__ not in ("bool", "bool_"):  # NumPy's own, too
                    raise ValueError(f"{field.name} is {value!r}; it must be True or False")
                plain = bool(value)
            elif field.type == "str":
                if value not in CLASS_WEIGHTS:
                    raise ValueError(f"{field.name} is {value!r}; it must be {' or '.join(CLASS_WEIGHTS)}")
                plain = value
            else:
                kind, what = (Integral, "an int") if field.type == "int" else (Real, "a number")
                low, high = field.metadata["range"]
                if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:  # no NaN either
                    raise ValueError(f"{field.name} is {value!r}; it must be {what} from {low} to {high}")
                plain = int(value) if isinstance(value, Integral) else float(value)
            object.__setattr__(self, field.name, plain)  # JSON takes no number of NumPy's

    def to_dict(self) -> dict:
        """Give the fields for a file: newer fields only if they differ from their defaults, since older files lack them."""
        unused = {field.name for field in dataclasses.fields(self) if getattr(self, field.name) == field.default}
        return {name: value for name, value in vars(self).items() if name not in LATER or name not in unused}

    def to_json(self) -> str:
        """Write the recipe as a JSON object that `recipe_from_json` reads back."""
        return json.dumps(self.to_dict(), indent=2) + "\n"


def augmentations(recipe: Recipe) -> str:
    """Say what a recipe does to images at random, and whether classes are weighed."""
    parts = {
        "random crops": recipe.crop_padding,
        "flips": recipe.flip,
        "cutout": recipe.cutout,
        f"rotations by up to {recipe.rotate:g} degrees": recipe.rotate,
        f"brightness by up to {recipe.brightness:g}": recipe.brightness,
        f"contrast by up to {recipe.contrast:g}": recipe.contrast,
    }
    text = ", ".join(part for part, is_on in parts.items() if is_on) or "no augmentation"
    return text if recipe.class_weights == "none" else f"{text}, {recipe.class_weights} class weights"


def recipe_for(dataset_name: str, *, begun: str | os.PathLike | None = None, **changes) -> Recipe:
    """Give the default recipe of a data set; `changes` replaces fields.

    Digits, letters, traffic signs, arrays and images of a folder are not mirrored; "digits", 1,300 images, gets shorter epochs
    at a lower rate.

    Args:
        dataset_name: as `load_dataset` takes it.
        begun: folder of a run, a search or a study; if an older version began it there and mirrored, mirroring goes on.
        changes: fields of `Recipe`.
    """
    name = os.fspath(dataset_name)
    is_own = name == "arrays" or is_folder(name)
    if (is_own or re.split("[/:]", name)[0] in SIGNS) and not _is_mirrored(begun):
        changes = {"flip": False} | changes
    if dataset_name == "digits":
        digits = {"epochs": 20, "qat_epochs": 3, "batch_size": 64, "learning_rate": 0.1, "flip": False}
        changes = digits | changes
    return Recipe(**changes)


def _is_mirrored(folder) -> bool:
    """Whether the run, search or study of a folder flips its images."""
    files = [] if folder is None else [Path(folder) / name for name in ("recipe.json", "search.json", "study.json")]
    return any(re.search(r'"(recipe_)?flip": true', file.read_text()) for file in files if file.is_file())


def tuning_recipe_for(dataset_name: str, **changes) -> Recipe:
    """Give the default recipe for tuning a factorized net, whose weights are fitted already: a few epochs at a low rate."""
    tuning = {"epochs": 5, "qat_epochs": 1, "learning_rate": 0.02, "warmup_epochs": 0, "label_smoothing": 0}
    return recipe_for(dataset_name, **tuning | changes)


def check_has_qat(recipe: Recipe) -> None:
    """Raise ValueError if a recipe is not one of a search, which compares int8 nets."""
    if not recipe.qat_epochs:
        raise ValueError("the recipe has no QAT; use qat_epochs of at least 1, a search compares int8 nets")


def recipe_from_json(text: str) -> Recipe:
    """Read the recipe that `Recipe.to_json` wrote. Raises ValueError for another text."""
    try:
        return Recipe(**json.loads(text))
    except TypeError as error:
        raise ValueError(f"not a recipe ({error}); restore it from a copy") from None


def learning_rate_at(step: int, *, steps: int, warmup_steps: int, peak: float) -> float:
    """Give the learning rate of a step: linear from near 0 to `peak` over the warm-up, then a cosine to 0 at `steps`."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * 0.5 * (1 + math.cos(math.pi * done))
