"""Which images are for validation and which for test, where the data do not say so."""

import re
import warnings
from collections.abc import Sequence

import numpy as np

__all__ = ["SPLITS", "cut_at_random", "cut_by_class", "groups_of"]

SPLITS = ("train", "validation", "test")
VALIDATION_SHARE = 0.1
MAX_VALIDATION_IMAGES = 5_000
TEST_SHARE = 0.2  # cut from data that comes without a test split
SPLIT_SEED = 0


def cut_at_random(count: int, title: str, *, has_validation: bool = False, has_test: bool) -> dict[str, np.ndarray]:
    """Shuffle `count` training images and cut off the splits that the data lack; give the images' numbers by split.

    A test split is cut only if there is neither test nor validation.

    Raises:
        ValueError: there are too few.
    """
    order, cuts = np.random.default_rng(SPLIT_SEED).permutation(count), {}
    if not has_test and not has_validation:
        part = max(1, round(TEST_SHARE * len(order)))
        cuts["test"], order = order[:part], order[part:]
    if not has_validation:
        part = min(max(1, round(VALIDATION_SHARE * len(order))), MAX_VALIDATION_IMAGES)
        cuts["validation"], order = order[:part], order[part:]
    if not len(order):
        raise ValueError(f"{title} has {count} images; three splits need at least 4")
    return cuts | {"train": order}


def cut_by_class(labels: np.ndarray, groups: np.ndarray, title: str, *, has_test: bool) -> dict[str, np.ndarray]:
    """Cut off validation and, without a test split, test: the same share of each class, no group of images divided.

    Args:
        labels, groups: int (n,); all images of a group are in one split.
        title: for the message.
        has_test: there is a test split.

    Raises:
        ValueError: there are too few images, or groups.
    """
    random, cuts = np.random.default_rng(SPLIT_SEED), {}
    order = random.permutation(len(labels))
    for split in ("validation",) if has_test else ("test", "validation"):
        share = TEST_SHARE if split == "test" else min(VALIDATION_SHARE, MAX_VALIDATION_IMAGES / max(len(order), 1))
        if len(set(groups[order].tolist())) < 2:
            count = len(set(groups.tolist()))
            what = "images" if count == len(labels) else f"images in {count} groups"
            raise ValueError(f"{title} has {len(labels)} {what}; the splits need more, at least a group each")
        chosen = _chosen(labels[order], groups[order], share, random)
        cuts[split], order = order[chosen], order[~chosen]
    return cuts | {"train": order}


def _chosen(labels: np.ndarray, groups: np.ndarray, share: float, random: np.random.Generator) -> np.ndarray:
    """Choose about a share, 0..1, of the images of each class, whole groups only: bool (n,).

    Groups are taken in random order, each where it brings the numbers of images of the classes nearer to the share; at
    least one image of a class of two or more is aimed at. Where each group is too large, the smallest one is taken.
    """
    counts = np.bincount(labels)
    lacking = np.where(counts >= 2, np.maximum(share * counts, 1), share * counts).tolist()
    pairs, sizes = np.unique(np.stack([groups, labels]), axis=1, return_counts=True)
    members: dict[int, list] = {}
    for group, label, size in zip(*pairs.tolist(), sizes.tolist()):
        members.setdefault(group, []).append((label, size))
    names, chosen = list(members), []
    for i in random.permutation(len(names)):
        content = members[names[i]]
        if sum(abs(lacking[label] - size) - abs(lacking[label]) for label, size in content) < 0:
            chosen.append(names[i])
            for label, size in content:
                lacking[label] -= size
    if not chosen:
        chosen = [min(names, key=lambda name: sum(size for _, size in members[name]))]
    return np.isin(groups, chosen)


def groups_of(paths: Sequence[str], pattern: str | None) -> np.ndarray:
    """Number the groups of files: those whose paths give the same text for a regular expression; int (n,).

    Compared are the texts of the pattern's own groups, or of the whole match; a file that does not match is a group of its own.

    Raises:
        ValueError: the pattern is none, or matches no file.
    """
    if pattern is None:
        return np.arange(len(paths))
    try:
        found = [re.search(pattern, path) for path in paths]
    except re.error as error:
        raise ValueError(
            f"group_by is {pattern!r}, no regular expression ({error}); correct it or leave it out"
        ) from None
    alone = sum(match is None for match in found)
    if alone == len(paths):
        none = f"none of {len(paths):,} file names, e.g. {paths[0]}"
        raise ValueError(f"group_by is {pattern!r} and matches {none}; correct it or leave it out")
    if alone:
        example = next(path for path, match in zip(paths, found) if match is None)
        message = f"group_by {pattern!r} does not match {alone:,} files, e.g. {example}; each is its own group"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
    keys = [(path,) if match is None else match.groups() or (match[0],) for path, match in zip(paths, found)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys])
