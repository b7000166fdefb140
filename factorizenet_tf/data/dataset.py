"""What a data set is: splits of uint8 images, and the check that every function gives images that it is handed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Dataset", "Split", "check_images", "content_hash"]

TO_UINT8 = {  # what makes images of a dtype such ones
    "float": "images in 0..1 times 255, those in 0..255 as they are: images.round().astype(np.uint8)",
    "int8": "an int8 model's input is the image minus 128: images.view(np.uint8) ^ 128",
    "uint16": "of 16-bit images keep the upper byte: (images >> 8).astype(np.uint8)",
    "bool": "images.astype(np.uint8) * 255",
    "other": "cast values that lie in 0..255: images.astype(np.uint8)",
}


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 (n, height, width, channels) and labels int32 (n,)."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set, split.

    Args:
        name: what `load_dataset` was asked for.
        title: the data named as it is, e.g. "cifar10 (JPEG)" where lossy files stand for the lossless originals.
        class_names: the labels' names, by number.
        train, validation, test: the splits. Validation is cut from the training images and for choosing; the test
            split is for the number that is reported, None where the data have none.
        reading: what else `load_dataset` was told of the images, and would have to be told again: `resize`, `group_by`,
            `skip_broken`, those that are not the defaults.
        known_hash: splits and their hash, where that is known already.
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split | None
    reading: dict = field(default_factory=dict)
    known_hash: tuple[tuple[Split, ...], str] | None = field(default=None, repr=False)

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are by name: train, validation and, where the data have one, test."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def held_out(self) -> tuple[str, Split]:
        """The split that is reported on, and its name: test, or validation where the data have no test split."""
        return ("validation", self.validation) if self.test is None else ("test", self.test)

    @property
    def sha256(self) -> str:
        """SHA-256 over all images and labels, in hexadecimal."""
        splits = tuple(self.splits.values())
        if self.known_hash is not None and list(map(id, self.known_hash[0])) == list(map(id, splits)):
            return self.known_hash[1]
        return content_hash(splits)

    @property
    def resize(self) -> str:
        """How images of another size are brought to this one's: "stretch", "crop" or "pad"."""
        return self.reading.get("resize", "stretch")

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of every image."""
        return self.train.images.shape[1:]

    def calibration(self, count: int) -> np.ndarray:
        """Give the first `count` training images (uint8); their order was shuffled once with the split's seed."""
        return self.train.images[:count]


def content_hash(splits: Iterable[Split]) -> str:
    """Compute the SHA-256 over images and labels of splits, in their order, in hexadecimal."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(np.ascontiguousarray(split.images))
        digest.update(split.labels)
    return digest.hexdigest()


def check_images(images: np.ndarray, shape: Sequence[int] | None = None, what: str = "images") -> np.ndarray:
    """Give images back where they are uint8 (n, height, width, channels), n >= 1, of the given (height, width, channels).

    Raises:
        TypeError: another type or dtype; the message says how to convert it.
        ValueError: another rank, size or order of axes, or none at all.
    """
    if not isinstance(images, np.ndarray):
        kind = type(images).__name__
        raise TypeError(f"{what} is a {kind}; it must be a uint8 numpy array (n, height, width, channels)")
    if images.dtype != np.uint8:
        kind = "float" if images.dtype.kind == "f" else str(images.dtype)
        remedy = TO_UINT8.get(kind, TO_UINT8["other"])
        raise TypeError(f"{what} has dtype {images.dtype}; it must be uint8 in 0..255 ({remedy})")
    if images.ndim == 3 and shape is not None and images.shape[1:] == tuple(shape[:2]) and shape[2] == 1:
        raise ValueError(f"{what} has shape {images.shape}, without channels; add the axis: images[..., None]")
    if images.ndim != 4:
        wanted = "(n, height, width, channels), for one image images[None]"
        raise ValueError(f"{what} has shape {images.shape}; it must be {wanted}")
    if not len(images):
        raise ValueError(f"{what} is empty; at least one image is needed")
    if shape is not None and images.shape[1:] != tuple(shape):
        found, remedy = images.shape[1:], _to_shape(images.shape[1:], tuple(shape))
        raise ValueError(f"{what} are {found} (height, width, channels); the model takes {tuple(shape)}: {remedy}")
    return images


def _to_shape(given, needed) -> str:
    """What makes images of one (height, width, channels) ones of another."""
    if given == (needed[2], *needed[:2]):
        return "the channels come first; transpose them: images.transpose(0, 2, 3, 1)"
    if given[:2] == needed[:2] and given[2] in (1, 3):
        how = "np.repeat(images, 3, -1)" if given[2] == 1 else "PIL's convert('L') of each, and images[..., None]"
        return f"convert them: {how}"
    return f"resize them, as load_dataset(..., input_shape={needed}) does"
