"""Image classification sets of TensorFlow Datasets."""

from pathlib import Path

import numpy as np

from ..console import Progress
from .cache import Images, stored
from .images import fit
from .split import SPLITS, cut_at_random

__all__ = ["read_tfds"]

TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}


def read_tfds(name: str, shape, data_dir, download: bool, resize: str) -> tuple[str, list[str], Images]:
    """Read title, class names and images of a TFDS set, all at `shape`, or at its own; arguments as for `load_dataset`."""
    from .. import _keras  # noqa: F401 (decides, before TFDS imports TensorFlow, on what that says)

    # isort: split
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = "digits, tiny_imagenet, gtsrb, a folder of class folders, or a TFDS name such as cifar10, fashion_mnist, oxford_iiit_pet"
        raise ValueError(f"no folder or data set {name!r}; there are {known}") from None
    except (ValueError, AssertionError) as error:  # no such config, or no such version
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{name!r} is no data set of TFDS ({reason}); correct or leave out config and version"
        ) from None
    _prepare(builder, name, download)
    features = builder.info.features
    if not {"image", "label"} <= set(features or ()) or not hasattr(features["label"], "names"):
        raise ValueError(f"the TFDS set {name!r} has no image and class label; choose an image classification set")
    splits = builder.info.splits
    if "train" not in splits:
        raise ValueError(f"the TFDS set {name!r} has the splits {', '.join(splits)}; a train split is needed")
    own = features["image"].shape
    shape = tuple(shape or own)
    if None in shape:
        raise ValueError(
            f"the images of {name!r} differ in size; give --size, in Python input_shape=(96, 96, 3) or another"
        )
    others = [s for s in ("validation", "test") if s in splits and splits[s].num_examples]
    own_validation = len(others) == 2

    def build(allocate):
        counts = np.cumsum([splits[split].num_examples for split in ("train", *others)])
        cuts = cut_at_random(counts[0], name, has_validation=own_validation, has_test=bool(others))
        held_out = ("validation", "test")[-len(others) :] if others else ()
        cuts |= {split: np.arange(*counts[i : i + 2]) for i, split in enumerate(held_out)}
        order = np.concatenate([cuts[split] for split in SPLITS])
        write, labels, places = allocate(len(order), shape), np.empty(len(order), np.int32), np.argsort(order)
        with Progress() as progress:
            progress.bar(f"reading {name}", len(order))
            at = 0
            for images, numbers in _batches(builder, own, ["train", *others]):
                here = places[at : at + len(images)]
                write(here, fit(images, shape, resize))
                labels[here] = numbers
                at += len(images)
                progress.step(len(images))
        if labels.min() < 0:
            raise ValueError(f"a split of {builder.info.name} has no labels; choose another data set")
        return labels, {split: len(cuts[split]) for split in SPLITS}, []

    files = sorted((p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in Path(builder.data_dir).iterdir())
    key = {"tfds": builder.info.full_name, "folder": str(builder.data_dir), "files": files}
    key |= {"validation": "own"} if own_validation else {}
    images = stored(key | {"shape": shape, "resize": resize}, build)
    title = TITLES.get(builder.info.name, builder.info.name) + (" (JPEG)" if _is_lossy_copy(builder, own) else "")
    return title, features["label"].names, images


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
    remedy = f"run `tfds build {name}` where there is a network, or set TFDS_DATA_DIR to the folder that has it"
    raise FileNotFoundError(f"the data set {name!r} is not in {builder.data_dir}{reason}; {remedy}")


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


def _batches(builder, own, splits):
    """Yield images uint8 (n, height, width, channels), in batches where their sizes are equal, and labels (n,)."""
    for split in splits:
        data = builder.as_dataset(split=split, shuffle_files=False, as_supervised=False)
        data = data.map(lambda example: (example["image"], example["label"]), num_parallel_calls=2)
        yield from data.batch(1 if None in own else 100).prefetch(1).as_numpy_iterator()


def _is_lossy_copy(builder, own):
    """Whether images that TFDS keeps lossless, 32x32 and the like, are JPEG files here."""
    import tensorflow_datasets as tfds

    if None in own or min(own[:2]) > 64:
        return False
    raw = builder.as_dataset(split="train[:1]", decoders={"image": tfds.decode.SkipDecoding()})
    return next(iter(raw.as_numpy_iterator()))["image"].startswith(b"\xff\xd8")
