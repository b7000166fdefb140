"""Data sets as uint8 arrays in memory, with a fixed train / validation / test split."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

__all__ = ["Dataset", "Split", "check_images", "load_dataset", "read_image"]

VALIDATION_SHARE = 0.1
MAX_VALIDATION_IMAGES = 5_000
TEST_SHARE = 0.2  # cut from data that comes without a test split
SPLIT_SEED = 0
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
MAX_BYTES = 8 * 2**30
IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".pbm"}
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM")  # Pillow's names; PPM is PGM and PBM, too
TO_UINT8 = {  # what makes images of a dtype such ones
    "float": "multiply images in 0..1 by 255 and round",
    "int8": "an int8 model's input is the image minus 128: images.view(np.uint8) ^ 128",
    "uint16": "of 16-bit images keep the upper byte: (images >> 8).astype(np.uint8)",
    "bool": "images.astype(np.uint8) * 255",
    "other": "cast values that lie in 0..255: images.astype(np.uint8)",
}
MAX_PIXELS = 89_478_485  # of one file, Pillow's own threshold for a decompression bomb: 256 MiB as RGB


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
            split is for the number that is reported.
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    train: Split
    validation: Split
    test: Split

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


def check_images(images: np.ndarray, shape: Sequence[int] | None = None, what: str = "images") -> np.ndarray:
    """Give images back where they are uint8 (n, height, width, channels), n >= 1, of the given (height, width, channels).

    Raises:
        TypeError: another type or dtype; the message says how to convert it.
        ValueError: another rank, size or order of axes, or none at all.
    """
    if not isinstance(images, np.ndarray):
        raise TypeError(
            f"{what} is a {type(images).__name__}; it must be a uint8 numpy array (n, height, width, channels)"
        )
    if images.dtype != np.uint8:
        kind = "float" if images.dtype.kind == "f" else str(images.dtype)
        remedy = TO_UINT8.get(kind, TO_UINT8["other"])
        raise TypeError(f"{what} has dtype {images.dtype}; it must be uint8 in 0..255 ({remedy})")
    if images.ndim == 3 and shape is not None and images.shape[1:] == tuple(shape[:2]) and shape[2] == 1:
        raise ValueError(f"{what} has shape {images.shape}, without channels; add the axis: images[..., None]")
    if images.ndim != 4:
        raise ValueError(
            f"{what} has shape {images.shape}; it must be (n, height, width, channels), for one image images[None]"
        )
    if not len(images):
        raise ValueError(f"{what} is empty; at least one image is needed")
    if shape is not None and images.shape[1:] != tuple(shape):
        raise ValueError(
            f"{what} are {images.shape[1:]} (height, width, channels); the model takes {tuple(shape)}: "
            f"{_to_shape(images.shape[1:], tuple(shape))}"
        )
    return images


def _to_shape(given, needed) -> str:
    """What makes images of one (height, width, channels) ones of another."""
    if given == (needed[2], *needed[:2]):
        return "the channels come first; transpose them: images.transpose(0, 2, 3, 1)"
    if given[:2] == needed[:2] and given[2] in (1, 3):
        how = "np.repeat(images, 3, -1)" if given[2] == 1 else "PIL's convert('L') of each, and images[..., None]"
        return f"convert them: {how}"
    return f"resize them, as load_dataset(..., input_shape={needed}) does"


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
        title, classes, train, test = _folder(Path(name).expanduser(), input_shape)
    else:
        title, classes, train, test = _tfds(os.fspath(name), input_shape, data_dir, download)
    if input_shape is not None:
        train, test = (split and Split(_fit(split.images, input_shape), split.labels) for split in (train, test))
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


def _folder(root, shape):
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; give a folder with one subfolder of images a class")
    has_splits = (root / "train").is_dir() and (root / "test").is_dir()
    train_root = root / "train" if has_splits else root
    classes = sorted(entry.name for entry in train_root.iterdir() if entry.is_dir())
    if len(classes) < 2:
        raise ValueError(
            f"{train_root} has {len(classes)} class folders; it needs one subfolder of images a class, at least 2"
        )
    train = _read_folder(train_root, classes, shape)
    if has_splits:
        unknown = sorted({entry.name for entry in (root / "test").iterdir() if entry.is_dir()} - {*classes})
        if unknown:
            raise ValueError(f"{root / 'test'} has the classes {', '.join(unknown)}, {train_root} not; make them alike")
    test = _read_folder(root / "test", classes, shape or train.images.shape[1:]) if has_splits else None
    return root.resolve().name, classes, train, test


def read_image(path_or_bytes: str | os.PathLike | bytes, shape: Sequence[int] | None = None) -> np.ndarray:
    """Read an image file as uint8 (height, width, channels), as every part of this package reads one.

    Formats: PNG, JPEG, BMP, WebP, PPM, PGM and PBM. A file with 16 bits a channel, grey or colour, gives its upper 8 bits;
    a palette gives its colours and CMYK becomes RGB; transparency is dropped; the orientation that EXIF asks for is not
    applied; an animation gives its first frame.

    Args:
        path_or_bytes: a file, or its content.
        shape: (height, width, channels) to resize to: bilinear with antialiasing, aspect not kept; 3 channels are RGB,
            1 is its luma (0.299 R + 0.587 G + 0.114 B). None keeps the file's height and width, in RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image of these formats, is truncated or damaged, or has more than MAX_PIXELS pixels.
    """
    from PIL import Image, UnidentifiedImageError

    is_content = isinstance(path_or_bytes, bytes)
    what = f"the image of {len(path_or_bytes):,} bytes" if is_content else f"the image {os.fspath(path_or_bytes)}"
    try:
        with Image.open(io.BytesIO(path_or_bytes) if is_content else path_or_bytes, formats=IMAGE_FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels, more than {MAX_PIXELS:,}")
            return _fit_picture(_in_8_bits(picture), shape or (picture.height, picture.width, 3))
    except FileNotFoundError:
        raise FileNotFoundError(f"no image file {path_or_bytes}") from None
    except UnidentifiedImageError:
        reason = "its first bytes are of none of them"
    except Exception as error:  # each of Pillow's decoders raises its own
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    raise ValueError(f"{what} is broken or no PNG, JPEG, BMP, WebP or PPM ({reason}); replace or remove it")


def _in_8_bits(picture):
    """A Pillow image whose conversion to L or RGB loses and warns of nothing but transparency."""
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion clips at 255
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("floating-point pixels")
    return picture.convert("RGBA") if "transparency" in picture.info and picture.mode == "P" else picture


def _read_folder(root, classes, shape):
    images, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(p for p in (root / name).rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)
        if not files:
            raise ValueError(
                f"the class folder {root / name} has no images ({', '.join(sorted(IMAGE_ENDINGS))}); add some or remove it"
            )
        for file in files:
            pixels = read_image(file, shape)
            shape = shape or pixels.shape
            images.append(pixels)
            labels.append(label)
    return Split(np.stack(images), np.array(labels, np.int32))


def _tfds(name, shape, data_dir, download):
    from . import _keras  # noqa: F401 (decides, before TFDS imports TensorFlow, on what that says)

    # isort: split
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = "digits, a folder of class folders, or a TFDS name such as cifar10, fashion_mnist, oxford_iiit_pet"
        raise ValueError(f"no data set {name!r}; there are {known}") from None
    _prepare(builder, name, download)
    features = builder.info.features
    if not {"image", "label"} <= set(features or ()) or not hasattr(features["label"], "names"):
        raise ValueError(f"the TFDS set {name!r} has no image and class label; choose an image classification set")
    splits = builder.info.splits
    if "train" not in splits:
        raise ValueError(f"the TFDS set {name!r} has the splits {', '.join(splits)}; a train split is needed")
    own = features["image"].shape
    shape = shape or own
    if None in shape:
        raise ValueError(f"the images of {name!r} differ in size; give input_shape, e.g. (96, 96, 3)")
    needed = sum(s.num_examples for s in splits.values()) * int(np.prod(shape))
    if needed > MAX_BYTES:
        raise ValueError(
            f"{name!r} at {shape} would take {needed / 2**30:.0f} GiB of memory, over {MAX_BYTES / 2**30:.0f}; use a smaller input_shape"
        )
    train = _read_tfds(builder, "train", own, shape)
    last = next((s for s in ("test", "validation") if s in splits and splits[s].num_examples), None)
    test = last and _read_tfds(builder, last, own, shape)
    title = TITLES.get(builder.info.name, builder.info.name) + (" (JPEG)" if _is_lossy_copy(builder, own) else "")
    return title, features["label"].names, train, test


def _prepare(builder, name, download):
    if builder.info.splits:
        return
    reason = " and there is no network" if download and _is_offline() else ""
    if download and not reason:
        try:
            return builder.download_and_prepare()
        except Exception as error:  # requests, TFDS and the builder's own code each raise their own
            first_line = str(error).strip().partition("\n")[0]
            reason = f" and could not be fetched ({first_line[:200]})"
    raise FileNotFoundError(
        f"the data set {name!r} is not in {builder.data_dir}{reason}; run `tfds build {name}` where there is a network, or "
        "set TFDS_DATA_DIR to the folder that has it"
    )


def _is_offline() -> bool:
    """Whether not even the host of TFDS's own bucket has an address: its download would retry for minutes."""
    import socket
    import urllib.request

    if urllib.request.getproxies():
        return False
    try:
        socket.getaddrinfo("storage.googleapis.com", 443)
    except OSError:
        return True
    return False


def _read_tfds(builder, split, own, shape):
    data = builder.as_dataset(split=split, shuffle_files=False, as_supervised=False)
    count = builder.info.splits[split].num_examples
    images = np.empty((count, *shape), np.uint8)
    labels = np.empty(count, np.int32)
    data = data.map(lambda example: (example["image"], example["label"]), num_parallel_calls=2)
    at = 0
    for batch, numbers in data.batch(1 if None in own else 100).prefetch(1).as_numpy_iterator():
        images[at : at + len(batch)], labels[at : at + len(batch)] = _fit(batch, shape), numbers
        at += len(batch)
    if labels.min() < 0:
        raise ValueError(f"the split {split!r} of {builder.info.name} has no labels")
    return Split(images, labels)


def _is_lossy_copy(builder, own):
    """Whether images that TFDS keeps lossless, 32x32 and the like, are JPEG files here."""
    import tensorflow_datasets as tfds

    if None in own or min(own[:2]) > 64:
        return False
    raw = builder.as_dataset(split="train[:1]", decoders={"image": tfds.decode.SkipDecoding()})
    return next(iter(raw.as_numpy_iterator()))["image"].startswith(b"\xff\xd8")


def _fit_picture(picture, shape):
    from PIL import Image

    picture = picture.convert("L" if shape[2] == 1 else "RGB")
    if picture.size != (shape[1], shape[0]):
        picture = picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(shape)


def _fit(images, shape):
    """Images uint8 (n, height, width, channels) at another size and channel count, bilinear, aspect not kept."""
    from PIL import Image

    if images.shape[1:] == tuple(shape):
        return images
    images = images[..., 0] if images.shape[3] == 1 else images
    return np.stack([_fit_picture(Image.fromarray(image), shape) for image in images])
