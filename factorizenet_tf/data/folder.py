"""Read a folder with one subfolder of images a class, or with such folders called train, val and test."""

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..console import Progress
from .cache import Images, stored
from .images import IMAGE_ENDINGS, decoded, image_sizes
from .split import SPLITS, cut_by_class, groups_of

__all__ = ["read_folder"]

SPLIT_NAMES = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev", "eval"), "validation"
)
NO_IMAGES = {"thumbs.db", "desktop.ini", "__macosx"}  # what systems leave behind, beside hidden files
FORMAT = 1  # of what a cache holds for a key
SAID = 10_000  # files from which on a line says what takes its time


class _File(NamedTuple):
    """An image file: its path, the label of its class, bytes, and when it was written."""

    path: str
    label: int
    size: int
    time: int


@dataclass
class _Listing:
    classes: list[str]
    files: dict[str, list[_File]]
    left_out: Counter = field(default_factory=Counter)  # by ending


def read_folder(
    root: Path, shape: tuple | None, resize: str, group_by: str | None, skip_broken: bool
) -> tuple[str, list[str], Images]:
    """Read title, class names and images of a folder, all at `shape`, or at their own; arguments as for `load_dataset`.

    Raises:
        FileNotFoundError: there is no folder.
        ValueError: classes or splits are not what they must be, the images differ in size, or one is broken.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}; give a folder with one subfolder of images a class")
    root = root.absolute()
    listing = _list(root)
    if group_by is not None and "validation" in listing.files:
        raise ValueError(f"{root} has validation images, so group_by= would have no effect; leave it out")
    listed = repr([[tuple(file) for file in files] for files in listing.files.values()])
    key = {"format": FORMAT, "folder": str(root), "classes": listing.classes, "splits": [*listing.files]}
    key["files"] = hashlib.sha256(os.fsencode(listed)).hexdigest()
    options = {"shape": shape, "resize": resize, "group_by": group_by, "skip_broken": skip_broken}
    images = stored(key | options, lambda allocate: _build(root, listing.files, allocate, **options))
    broken, *notes = images.notes
    notes += _lacking(root, listing.classes, images.splits)
    left_out = listing.left_out + Counter({"broken or too large": broken})
    if left_out:
        counts = ", ".join(f"{count:,} {what}" for what, count in sorted(left_out.items()))
        notes.append(f"{sum(left_out.values()):,} files are left out: {counts}")
    for note in notes:
        warnings.warn(f"{root}: {note}", RuntimeWarning, stacklevel=3)
    return root.resolve().name, listing.classes, images


def _list(root) -> _Listing:
    folders = _folders(root)
    split_folders: dict[str, str] = {}
    for folder in folders:
        split = SPLIT_NAMES.get(os.path.basename(folder).lower())
        if split and split_folders.setdefault(split, folder) != folder:
            raise ValueError(f"{root} has two folders for {split}, {split_folders[split]} and {folder}; keep one")
    has_splits = "train" in split_folders and (len(split_folders) > 1 or len(folders) == 1)
    if split_folders and not has_splits and len(split_folders) == len(folders):
        what = f"only the folders {', '.join(map(os.path.basename, folders))}: names of splits, none of training images"
        raise ValueError(f"{root} has {what}; call one of them train, and give each one subfolder of images a class")
    if "train" in split_folders and not has_splits:
        train, *others = sorted(folders, key=lambda folder: folder != split_folders["train"])
        inner = _names(train)
        others = [folder for folder in others if len(others) == 1 or inner & _names(folder)]
        if len(inner) > 1 and others:
            found = f"{train} has {len(inner)} class folders, and {os.path.basename(others[0])} beside it"
            raise ValueError(f"{found} is no split's name; rename it val or test, or move it away")
    split_folders = split_folders if has_splits else {"train": str(root)}
    classes = sorted(_names(split_folders["train"]))
    if len(classes) < 2:
        what = f"{split_folders['train']} has {len(classes)} class folders"
        offered = f"; did you mean {folders[0]}?" if classes and not has_splits and len(_names(folders[0])) > 1 else ""
        raise ValueError(f"{what}; it needs one subfolder of images a class, at least 2{offered}")
    listing = _Listing(classes, {})
    if has_splits:
        _count_files(root, listing.left_out)
        others = [folder for folder in folders if folder not in split_folders.values()]
        listing.left_out.update("of other folders" for folder in others for _ in _walk(folder))
    for split in SPLITS:
        if split in split_folders:
            listing.files[split] = _list_split(split_folders[split], split_folders["train"], listing)
    return listing


def _list_split(root, train_root, listing) -> list[_File]:
    names = _names(root)
    if unknown := sorted(names - {*listing.classes}):
        raise ValueError(f"{root} has the classes {', '.join(unknown)}, which {train_root} lacks; make them alike")
    files = []
    _count_files(root, listing.left_out)
    for label, name in enumerate(listing.classes):
        folder, found = os.path.join(root, name), []
        if name not in names:
            lacks = f"{root} has no folder for the class {name}, which {train_root} has"
            raise ValueError(f"{lacks}; add one with images, or remove the class")
        for entry in _walk(folder, (os.path.realpath(root),)):
            ending = os.path.splitext(entry.name)[1].lower()
            if ending in IMAGE_ENDINGS and entry.is_file():
                state = entry.stat()
                found.append(_File(entry.path, label, state.st_size, state.st_mtime_ns))
            else:
                other = "links to a folder above" if entry.is_dir() else "dead links"
                listing.left_out[(ending or "without ending") if entry.is_file() else other] += 1
        if not found:
            endings = ", ".join(sorted(IMAGE_ENDINGS))
            raise ValueError(f"the class folder {folder} has no images ({endings}); add some or remove it")
        files += sorted(found, key=lambda file: file.path.split(os.sep))
    return files


def _count_files(folder, left_out):
    above = (os.path.realpath(folder),)
    for entry in filter(_is_shown, os.scandir(folder)):
        if entry.is_file() or _leads_above(entry, above):
            left_out["beside the class folders" if entry.is_file() else "links to a folder above"] += 1


def _is_shown(entry):
    return not entry.name.startswith(".") and entry.name.lower() not in NO_IMAGES


def _folders(root) -> list[str]:
    above, entries = (os.path.realpath(root),), filter(_is_shown, os.scandir(root))
    return sorted(entry.path for entry in entries if entry.is_dir() and not _leads_above(entry, above))


def _names(root) -> set[str]:
    return set(map(os.path.basename, _folders(root)))


def _leads_above(entry, above):
    """Tell whether an entry is a link to one of the folders, all without links, or to what these lie in."""
    real = os.path.join(os.path.realpath(entry), "") if entry.is_symlink() else None
    return real is not None and any(os.path.join(folder, "").startswith(real) for folder in above)


def _walk(folder, above=()) -> Iterator[os.DirEntry]:
    """Yield what is no folder below one, and the links to a folder that they lie in; other links are followed."""
    above = (*above, os.path.realpath(folder))
    for entry in filter(_is_shown, os.scandir(folder)):
        if entry.is_dir() and not _leads_above(entry, above):
            yield from _walk(entry.path, above)
        else:
            yield entry


def _build(root, files, allocate, shape, resize, group_by, skip_broken):
    """Decode the files into a store, in their order; see `cache.Build`. The first note is how many were left out."""
    count = sum(map(len, files.values()))
    with Progress() as progress:
        if count >= SAID:
            progress.say(f"reading {count:,} images of {root}, once")
        shape = shape or _common_shape(root, files, progress)
        splits, left_out = _in_order(root, files, group_by), 0
        while True:
            ordered = [file for split in splits.values() for file in split]
            hashes, broken = _decode(ordered, allocate(len(ordered), shape), shape, resize, progress)
            if not broken:
                break
            if not skip_broken:
                remedy = f"leave out all such images ({len(broken):,}): --skip-broken, in Python skip_broken=True"
                raise ValueError(f"{next(iter(broken.values()))}, or {remedy}")
            left_out += len(broken)
            whole = {split: [file for file in found if file.path not in broken] for split, found in files.items()}
            if any({f.label for f in files[split]} != {f.label for f in found} for split, found in whole.items()):
                raise ValueError(f"{next(iter(broken.values()))}; it is of a class of which all images are broken")
            files = whole
            splits = _in_order(root, files, group_by)
    labels = np.array([file.label for file in ordered], np.int32)
    counts = {split: len(found) for split, found in splits.items()}
    return labels, counts, [left_out, *_twice(splits, hashes)]


def _common_shape(root, files, progress) -> tuple[int, int, int]:
    paths = [file.path for found in files.values() for file in found]
    sizes = Counter(size for chunk in image_sizes(paths) for size in chunk if size is not None)
    if len(sizes) > 1:
        most = ", ".join(f"{width}x{height} ({count:,})" for (width, height), count in sizes.most_common(3))
        found = f"{len(sizes)} sizes: {most}{', ...' if len(sizes) > 3 else ''}"
        remedy = "give the one to bring them to: --size, in Python input_shape=(height, width, channels)"
        raise ValueError(f"the images of {root} have {found}; {remedy}")
    (width, height), *_ = sizes or [(1, 1)]  # all are broken, which is said next
    return height, width, 3


def _in_order(root, files, group_by) -> dict[str, list[_File]]:
    """Cut what the folder does not split; the training images shuffled."""
    train = files["train"]
    if "validation" in files:
        order = np.random.default_rng(0).permutation(len(train))
        return files | {"train": [train[i] for i in order]}
    groups = groups_of([os.path.relpath(file.path, root) for file in train], group_by)
    labels = np.array([file.label for file in train])
    cuts = cut_by_class(labels, groups, root, has_test="test" in files)
    found = files | {split: [train[i] for i in numbers] for split, numbers in cuts.items()}
    return {split: found[split] for split in SPLITS}


def _decode(files, write, shape, resize, progress) -> tuple[list[str], dict[str, str]]:
    hashes, broken = [], {}
    progress.bar("reading images", len(files))
    for images, found, messages in decoded([file.path for file in files], shape, resize):
        at = len(hashes)
        write(range(at, at + len(images)), images)
        hashes += found
        broken |= {files[at + i].path: message for i, message in messages.items()}
        progress.step(len(images))
    return hashes, broken


def _lacking(root, classes, splits) -> list[str]:
    """Note which classes have training images alone; raise ValueError if one has none."""
    counts = {split: np.bincount(part.labels, minlength=len(classes)) for split, part in splits.items()}
    train = counts.pop("train")
    held_out = sum(counts.values())
    if not train.all():
        name, count = classes[train.argmin()], held_out[train.argmin()]
        what = f"{root} has no training image of the class {name}: its {count:,} images are of too few groups to be cut"
        raise ValueError(f"{what}; add some, choose smaller groups (--group-by), or make folders train, val and test")
    lacking = [name for name, count in zip(classes, held_out) if not count]
    return [f"{len(lacking):,} classes have training images alone: {', '.join(lacking[:9])}"] if lacking else []


def _twice(splits, hashes) -> list[str]:
    """Note that files of equal content are in several splits."""
    first, shared, at = {}, [], 0
    for split, files in splits.items():
        for file, digest in zip(files, hashes[at:]):
            there, path = first.setdefault(digest, (split, file.path))
            if there != split:
                shared.append(f"{file.path} of {split} is {path} of {there}")
        at += len(files)
    return [f"{len(shared):,} images are in two splits: {shared[0]}"] if shared else []
