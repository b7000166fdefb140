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
    name: str | os.PathLike | tuple | dict,
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
    same share. A TFDS set's own validation split is not used, or is the test split if it has no other.

    The images of a folder and of a TFDS set are decoded once, on all cores, into a file below FACTORIZENET_CACHE that is
    mapped into memory, so that they need not fit there. Another size, or files that changed, are decoded again.

    Args:
        name: one of

            * "digits": scikit-learn's 1,797 handwritten digits, which come with it;
            * "tiny_imagenet" or "gtsrb": laid out by `factorizenet prepare` in the folder that FACTORIZENET_TINY_IMAGENET or
              FACTORIZENET_GTSRB names;
            * the TFDS name of an image classification set, e.g. "cifar10", or one config and version of it, "name/config:1.0.0";
            * a folder with one subfolder of images a class, or with such folders called train, val and test (or training,
              valid, validation, testing, in any case);
            * arrays: `(images, labels)`, `((images, labels), (test_images, test_labels))`, or a dict of such pairs or of
              `tf.data.Dataset`s, batched or not, by "train", "validation" and "test"; images are uint8 (n, height, width,
              channels), labels integers (n,).
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
    if isinstance(name, tuple | dict) or hasattr(name, "element_spec"):
        name, (title, classes, splits) = "arrays", _arrays(name, class_names)
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


def _arrays(given, class_names):
    if not isinstance(given, tuple | dict):
        given = {"train": given}
    elif isinstance(given, tuple):
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
    pairs = {name: _pair(name, value) for name, value in given.items()}
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
    elif values.max() >= len(class_names):
        raise ValueError(f"a label is {values.max()}, class_names has {len(class_names)} names; labels count from 0")
    splits = {name: Split(images, labels.astype(np.int32)) for name, (images, labels) in pairs.items()}
    return "arrays", [*map(str, class_names)], splits


def _pair(name, value):
    """Check the images and labels of a split, from arrays or a `tf.data.Dataset`."""
    if hasattr(value, "element_spec"):
        value = _collected(value)
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"the {name} arrays are no pair; give (images, labels) or a tf.data.Dataset of such")
    images, labels = check_images(value[0]), np.asarray(value[1])
    if labels.shape != (len(images),) or not np.issubdtype(labels.dtype, np.integer):
        needed = f"{len(images)} images need integers ({len(images)},)"
        raise ValueError(f"labels are {labels.dtype} {labels.shape}; {needed}")
    if labels.min() < 0:
        raise ValueError(f"a label is {labels.min()}; labels count from 0")
    return images, labels


def _collected(data):
    """The arrays of a `tf.data.Dataset` of (image, label), batched or not."""
    spec = data.element_spec
    if not isinstance(spec, tuple) or len(spec) != 2 or spec[0].shape.rank not in (3, 4):
        raise ValueError(f"the tf.data.Dataset has elements {spec}; they must be (image, label), or batches of such")
    data = data if spec[0].shape.rank == 4 else data.batch(100)
    batches = list(data.as_numpy_iterator())
    if not batches:
        raise ValueError("the tf.data.Dataset is empty; at least one image is needed")
    return tuple(np.concatenate(parts) for parts in zip(*batches))
