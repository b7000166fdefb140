"""Load a data set by name, folder or arrays, with a fixed train / validation / test split."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .dataset import Dataset, Split, check_images
from .folder import read_folder
from .images import fit
from .tfds import read_tfds

__all__ = ["load_dataset"]

VALIDATION_SHARE = 0.1
MAX_VALIDATION_IMAGES = 5_000
TEST_SHARE = 0.2  # cut from data that comes without a test split
SPLIT_SEED = 0


def load_dataset(
    name: str | os.PathLike | tuple,
    *,
    input_shape: tuple[int, int, int] | None = None,
    data_dir: str | os.PathLike | None = None,
    download: bool = True,
) -> Dataset:
    """Load a data set into memory, its images resized to `input_shape` where they have another size.

    The validation split is 10 % of the training images, at most 5,000, drawn with a fixed seed; data without a test
    split gives 20 % of its images to one, drawn likewise. Grey images become RGB, and RGB ones grey, as asked.

    Args:
        name: "digits" (scikit-learn's 1,797 handwritten digits, which come with it); the TFDS name of an image
            classification set, e.g. "cifar10"; a folder with one subfolder of images a class, or with `train/` and
            `test/` of such; or arrays, `((images, labels), (test_images, test_labels))` or `(images, labels)`, uint8
            (n, height, width, channels) and integers (n,).
        input_shape: (height, width, channels); None keeps the data's own (digits: 32x32x3).
        data_dir: where TFDS keeps its data; None: TFDS_DATA_DIR or TFDS's default.
        download: fetch a TFDS set that is not on disk.

    Raises:
        FileNotFoundError: the folder or the prepared data is not there; the message says how to get it.
        ValueError: the name is unknown, a folder is empty, an image is broken (the file is named), arrays do not fit.
    """
    if input_shape is not None and (len(input_shape) != 3 or min(input_shape) < 1 or input_shape[2] not in (1, 3)):
        raise ValueError(f"input_shape is {input_shape}; it must be (height, width, channels) with 1 or 3 channels")
    if isinstance(name, tuple):
        title, classes, train, test = _arrays(name)
    elif name == "digits":
        input_shape = input_shape or (32, 32, 3)
        title, classes, train, test = _digits()
    elif os.sep in os.fspath(name) or Path(name).is_dir():
        title, classes, train, test = read_folder(Path(name).expanduser(), input_shape)
    else:
        title, classes, train, test = read_tfds(os.fspath(name), input_shape, data_dir, download)
    if input_shape is not None:
        train, test = (split and Split(fit(split.images, input_shape), split.labels) for split in (train, test))
    random = np.random.default_rng(SPLIT_SEED)
    order = random.permutation(len(train))
    if test is None:
        count = max(1, round(TEST_SHARE * len(order)))
        order, test = order[count:], Split(train.images[order[:count]], train.labels[order[:count]])
    count = min(max(1, round(VALIDATION_SHARE * len(order))), MAX_VALIDATION_IMAGES)
    if len(order) - count < 1:
        raise ValueError(f"{title} has {len(train)} images; three splits need at least 4")
    validation = Split(train.images[order[:count]], train.labels[order[:count]])
    train = Split(train.images[order[count:]], train.labels[order[count:]])
    return Dataset(
        "arrays" if isinstance(name, tuple) else os.fspath(name), title, tuple(classes), train, validation, test
    )


def _digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    return "digits", [str(i) for i in range(10)], Split(images, digits.target.astype(np.int32)), None


def _arrays(arrays):
    pairs = arrays if arrays and isinstance(arrays[0], tuple) else (arrays,)
    if not 1 <= len(pairs) <= 2 or any(len(pair) != 2 for pair in pairs):
        raise ValueError(
            f"arrays is a tuple of {len(arrays)}; it must be (images, labels) or ((images, labels), (test_images, test_labels))"
        )
    splits = []
    for images, labels in pairs:
        images, labels = check_images(images), np.asarray(labels)
        if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"labels are {labels.dtype} {labels.shape}; {len(images)} images need integers ({len(images)},)"
            )
        if labels.min() < 0:
            raise ValueError(f"a label is {labels.min()}; labels count from 0")
        splits.append(Split(images, labels.astype(np.int32)))
    if len({split.images.shape[1:] for split in splits}) > 1:
        raise ValueError(
            f"training images are {splits[0].images.shape[1:]}, test images {splits[1].images.shape[1:]}; make them alike"
        )
    classes = 1 + max(int(split.labels.max()) for split in splits)
    return "arrays", [str(i) for i in range(classes)], splits[0], splits[1] if len(splits) == 2 else None
