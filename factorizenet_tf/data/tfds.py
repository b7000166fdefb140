"""Image classification sets of TensorFlow Datasets."""

from __future__ import annotations

import numpy as np

from .dataset import Split
from .images import fit

__all__ = ["read_tfds"]

TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
MAX_BYTES = 8 * 2**30


def read_tfds(name, shape, data_dir, download):
    """Read title, class names, training and test split of a TFDS set, all at `shape`, or at its own."""
    from .. import _keras  # noqa: F401 (decides, before TFDS imports TensorFlow, on what that says)

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
        images[at : at + len(batch)], labels[at : at + len(batch)] = fit(batch, shape), numbers
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
