"""A data set, splits of uint8 images; and the check of images that every function makes."""

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
        name: as it was given to `load_dataset`.
        title: for reports, e.g. "CIFAR-10 (JPEG)" if lossy copies stand for the lossless originals.
        class_names: the labels' names, by number.
        train, validation, test: the splits. Choices are made on validation; test is for the reported number, None if the data
            have no test images.
        reading: the options of `load_dataset` that read the same images again: `resize`, `group_by`, `skip_broken`, those
            not at their defaults.
        known_hash: splits and their hash, if it is known already.
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
        """The splits by name: train, validation and, if the data have one, test."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    @property
    def held_out(self) -> tuple[str, Split]:
        """Name and split to report on: test, or validation if the data have no test split."""
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
        """How the images were brought to another aspect ratio: "stretch", "crop" or "pad"."""
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
    """Return the images if they are uint8 (n, height, width, channels), n >= 1, of this shape (height, width, channels).

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
        wanted = "(n, height, width, channels), for one image images[None], for n grey ones images[..., None]"
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
