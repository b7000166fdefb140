"""A folder with one subfolder of images a class, or with splits of such."""

from __future__ import annotations

import numpy as np

from .dataset import Split
from .images import IMAGE_ENDINGS, read_image

__all__ = ["read_folder"]


def read_folder(root, shape):
    """Read title, class names, training and test split of a folder, all at `shape`, or at the first image's."""
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; give a folder with one subfolder of images a class")
    has_splits = (root / "train").is_dir() and (root / "test").is_dir()
    train_root = root / "train" if has_splits else root
    classes = sorted(entry.name for entry in train_root.iterdir() if entry.is_dir())
    if len(classes) < 2:
        raise ValueError(
            f"{train_root} has {len(classes)} class folders; it needs one subfolder of images a class, at least 2"
        )
    train = _read_classes(train_root, classes, shape)
    if has_splits:
        unknown = sorted({entry.name for entry in (root / "test").iterdir() if entry.is_dir()} - {*classes})
        if unknown:
            raise ValueError(f"{root / 'test'} has the classes {', '.join(unknown)}, {train_root} not; make them alike")
    test = _read_classes(root / "test", classes, shape or train.images.shape[1:]) if has_splits else None
    return root.resolve().name, classes, train, test


def _read_classes(root, classes, shape):
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
