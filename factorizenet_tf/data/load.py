"""Load a data set by name, folder or arrays, with a fixed train / validation / test split."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .dataset import Dataset, Split, check_images
from .folder import read_folder
from .images import check_resize, fit
from .named import NAMED, folder_variable, read_named
from .split import SPLITS, cut_at_random
from .tfds import read_tfds

__all__ = ["is_folder", "load_dataset"]

TFDS_NAME = re.compile(r"[a-z][a-z0-9_]*(/[\w.-]+)?(:\d+\.\d+\.\d+)?")  # name/config:version


def is_folder(name: str) -> bool:
    """Tell whether `load_dataset` takes a name as a folder's: it is one, or has slashes as no TFDS name has.

    A folder called like a set that comes as archives counts as a folder unless the set's environment variable is set.
    """
    if name in ("digits", "arrays") or (name in NAMED and os.environ.get(folder_variable(name))):
        return False
    return Path(name).expanduser().is_dir() or (os.sep in name and not TFDS_NAME.fullmatch(name))


def load_dataset(
    name: str | os.PathLike | tuple | list | dict,
    *,
    input_shape: tuple[int, int, int] | None = None,
    data_dir: str | os.PathLike | None = None,
    download: bool = True,
    class_names: Sequence[str] | None = None,
    resize: str = "stretch",
    group_by: str | None = None,
    skip_broken: bool = False,
) -> Dataset:
    r"""Load a data set, its images brought to `input_shape`.

    Splits that the data lack are cut from the training images with a fixed seed: 10 %, at most 5,000, for validation, and 20 %
    for test if there is neither. Data with validation but no test split have no test split. Of a folder, each class gives the
    same share. The validation split of a TFDS set that has no test split is its test split.

    The images of a folder and of a TFDS set are decoded once, on all cores, into a file below FACTORIZENET_CACHE that is
    mapped into memory, so that they need not fit there. Another size, or files that changed, are decoded again.

    Args:
        name: one of

            * "digits": scikit-learn's 1,797 handwritten digits, which come with it;
            * "tiny_imagenet" or "gtsrb": laid out by `factorizenet prepare` in the folder that FACTORIZENET_TINY_IMAGENET or
              FACTORIZENET_GTSRB names;
            * the TFDS name of an image classification set, e.g. "cifar10", or one config and version of it, "name/config:1.0.0";
            * a folder with one subfolder of images a class, or with such folders called train, val and test (or training,
              valid, validation, dev, eval, testing, in any case);
            * arrays: `(images, labels)`, `((images, labels), (test_images, test_labels))`, or a dict of such pairs or of
              `tf.data.Dataset`s, batched or not, by "train", "validation" and "test"; images are uint8 (n, height, width,
              channels), or such numbers as floats in a `tf.data.Dataset`; labels integers (n,) or (n, 1).
        input_shape: (height, width, channels), 3 channels for RGB or 1 for grey; None keeps the data's own (digits: 32x32x3).
        data_dir: where TFDS keeps its data; None: TFDS_DATA_DIR or TFDS's default.
        download: fetch a TFDS set that is not on disk.
        class_names: of arrays, by label; None: a `tf.data.Dataset`'s own, else the labels, whose values in order are then
            the classes.
        resize: to another aspect: "stretch", "crop" or "pad", as `read_image`.
        group_by: of a folder, a regular expression on the files' paths below it, e.g. r"cam\d+": images with the same match, or
            the same groups of it, stay in one split.
        skip_broken: leave out a folder's images that cannot be read; a warning says how many.

    Raises:
        FileNotFoundError: the folder or the prepared data is not there; the message says how to get it.
        ValueError: the name is unknown, a folder is empty, an image is broken (the file is named), images differ in size
            and no `input_shape` is given, arrays do not fit.
        OSError: the cache cannot be written, and the images take more than 1 GiB.
    """
    if input_shape is not None and (len(input_shape) != 3 or min(input_shape) < 1 or input_shape[2] not in (1, 3)):
        raise ValueError(f"input_shape is {input_shape}; it must be (height, width, channels) with 1 or 3 channels")
    check_resize(resize)
    shape = input_shape and tuple(map(int, input_shape))  # JSON takes no number of NumPy's
    reading, known = {"resize": resize} if resize != "stretch" else {}, None
    if isinstance(name, tuple | list | dict) or hasattr(name, "element_spec"):
        name, (title, classes, splits) = "arrays", _arrays(name, class_names, shape, resize)
        class_names = None
    elif name == "digits":
        shape = shape or (32, 32, 3)
        title, classes, splits = _digits()
    else:
        if is_folder(name := os.fspath(name)):
            options = {"group_by": group_by, "skip_broken": skip_broken}
            reading |= {option: value for option, value in options.items() if value}
            read, group_by, skip_broken = read_folder(Path(name).expanduser(), shape, resize, **options), None, False
        else:
            read = (
                read_named(name, shape, resize) if name in NAMED else read_tfds(name, shape, data_dir, download, resize)
            )
        title, classes, images = read
        splits, known = images.splits, (tuple(images.splits.values()), images.sha256)
    if class_names is not None:
        raise ValueError(f"{name} is not arrays, so class_names= would have no effect; leave it out")
    if group_by is not None or skip_broken:
        given = "group_by=" if group_by is not None else "skip_broken="
        raise ValueError(f"{name} is no folder, so {given} would have no effect; leave it out")
    if known is None:
        splits = _cut(splits, title, shape, resize)
    return Dataset(name, title, tuple(classes), *map(splits.get, SPLITS), reading, known)


def _cut(splits, title, shape, resize) -> dict[str, Split]:
    """Resize arrays, and cut off the splits that there are not."""
    if shape is not None:
        splits = {name: Split(fit(split.images, shape, resize), split.labels) for name, split in splits.items()}
    train = splits["train"]
    cuts = cut_at_random(len(train), title, has_validation="validation" in splits, has_test="test" in splits)
    found = splits | {name: Split(train.images[order], train.labels[order]) for name, order in cuts.items()}
    return {name: found[name] for name in SPLITS if name in found}


def _digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.round(digits.images[..., None] * (255 / 16)).astype(np.uint8)
    return "digits", [str(i) for i in range(10)], {"train": Split(images, digits.target.astype(np.int32))}


def _arrays(given, class_names, shape, resize):
    if hasattr(given, "element_spec"):
        given = {"train": given}
    elif not isinstance(given, dict):
        if any(hasattr(part, "element_spec") for part in given):
            remedy = 'name their splits: {"train": ..., "validation": ...}'
            raise ValueError(f"arrays is a {type(given).__name__} of tf.data.Datasets; {remedy}")
        pairs = given if given and isinstance(given[0], tuple) else (given,)
        if not 1 <= len(pairs) <= 2:
            wanted = "(images, labels) or ((images, labels), (test_images, test_labels))"
            raise ValueError(f"arrays is a tuple of {len(given)}; it must be {wanted}")
        given = dict(zip(("train", "test"), pairs))
    given = {name: value for name, value in given.items() if value is not None}
    if "train" not in given or not set(given) <= set(SPLITS):
        names = ", ".join(map(str, given))
        raise ValueError(f"arrays has the splits {names}; give train, and validation and test where there are")
    if class_names is None:
        class_names = getattr(given["train"], "class_names", None)  # as image_dataset_from_directory leaves them
    pairs = {name: _pair(name, value, shape, resize) for name, value in given.items()}
    shapes = {name: images.shape[1:] for name, (images, _) in pairs.items()}
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} images are {shape}" for name, shape in shapes.items())
        raise ValueError(f"{found}; make them alike")
    values = np.unique(np.concatenate([labels for _, labels in pairs.values()]))
    if class_names is None:
        class_names = [str(value) for value in values]
        if missing := sorted({*values.tolist()} - {*pairs["train"][1].tolist()}):
            remedy = "give some, or class_names of all labels"
            raise ValueError(f"no training image has the label {missing[0]}, others have; {remedy}")
        pairs = {name: (images, np.searchsorted(values, labels)) for name, (images, labels) in pairs.items()}
    elif values.min() < 0 or values.max() >= len(class_names):
        wrong = values[0] if values[0] < 0 else values[-1]
        raise ValueError(f"a label is {wrong}, class_names has {len(class_names)} names; labels count from 0")
    if len(class_names) < 2:
        raise ValueError(f"arrays has 1 class, {class_names[0]}; a classifier needs at least 2: add images of others")
    splits = {name: Split(images, labels.astype(np.int32)) for name, (images, labels) in pairs.items()}
    return "arrays", [*map(str, class_names)], splits


def _pair(name, value, shape, resize):
    """Check the images and labels of a split, from arrays or a `tf.data.Dataset`; labels become int64 (n,)."""
    if hasattr(value, "element_spec"):
        value = _collected(value, shape, resize)
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"the {name} arrays are no pair; give (images, labels) or a tf.data.Dataset of such")
    images, labels = _with_channels(value[0]), np.asarray(value[1])
    needed, kind = (len(images),), labels.dtype.kind
    labels = labels[:, 0] if labels.shape == (*needed, 1) else labels
    if labels.shape != needed or kind not in "iu" or labels.max() >= 2**63:
        numbered = "names, labels = np.unique(labels, return_inverse=True), and class_names=names"
        remedy = "labels.astype(int)" if kind in "fb" else numbered
        remedy = remedy if labels.shape == needed else "one an image, of one-hot labels labels.argmax(1)"
        wanted = f"{len(images)} images need integers {needed} below 2**63: {remedy}"
        raise ValueError(f"labels are {labels.dtype} {labels.shape}; {wanted}")
    return images, labels.astype(np.int64)


def _with_channels(images):
    """Return images that `check_images` takes and that are grey or RGB."""
    shape = check_images(images).shape[1:]
    if shape[2] not in (1, 3):
        remedy = f"leave out what is not colour: images[..., :{1 if shape[2] == 2 else 3}]"
        remedy = "channels come last: images.transpose(0, 2, 3, 1)" if shape[0] in (1, 3) else remedy
        raise ValueError(f"images are {shape} (height, width, channels); 1 or 3 channels are needed: {remedy}")
    return images


def _collected(data, shape, resize):
    """The arrays of a `tf.data.Dataset` of (image, label), batched or not, its images brought to a shape if one is given."""
    spec = data.element_spec
    is_pair = isinstance(spec, tuple) and [type(part).__name__ for part in spec] == ["TensorSpec"] * 2
    if not is_pair or spec[0].shape.rank not in (3, 4):
        raise ValueError(f"the tf.data.Dataset has elements {spec}; they must be (image, label), or batches of such")
    if data.cardinality() == -1:  # tf.data.INFINITE_CARDINALITY
        raise ValueError("the tf.data.Dataset has no end; leave out .repeat(), or .take() as many as it has")
    if spec[0].shape.rank == 3:  # images of several sizes fit into no batch
        data = data.batch(100 if spec[0].shape.is_fully_defined() else 1)
    batches = []
    for images, labels in data.as_numpy_iterator():
        images = _as_uint8(images)
        batches.append((images if shape is None else fit(_with_channels(images), shape, resize), labels))
    if not batches:
        raise ValueError("the tf.data.Dataset is empty; at least one image is needed")
    if spec[0].dtype.is_floating and max(images.max() for images, _ in batches) <= 1:
        raise _not_uint8(spec[0].dtype.name, "255 * x")
    if len(found := sorted({images.shape[1:] for images, _ in batches})) > 1:
        sizes = f"{len(found)} sizes, such as {found[0]} and {found[1]}"
        raise ValueError(f"the tf.data.Dataset's images have {sizes}; give input_shape=(height, width, channels)")
    return tuple(np.concatenate(parts) for parts in zip(*batches))


def _as_uint8(images):
    """Give float images of whole numbers in 0..255, as Keras's readers of folders yield, as uint8; others as they are."""
    if images.dtype.kind != "f":
        return images
    if not ((images >= 0) & (images <= 255) & (images == np.round(images))).all():
        small = "255 * x" if images.min() >= 0 else "127.5 * x + 127.5"
        raise _not_uint8(images.dtype.name, "x" if images.max() > 1 else small)
    return images.astype(np.uint8)


def _not_uint8(dtype, pixels) -> TypeError:
    remedy = f".map(lambda x, y: (tf.cast(tf.round({pixels}), tf.uint8), y)), and class_names= of the data's own"
    return TypeError(f"the tf.data.Dataset's images are {dtype}; it must be uint8 in 0..255: {remedy}")
