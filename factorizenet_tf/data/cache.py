"""Cache decoded images on disk as one memory-mapped file, whole or absent, found again by the key that they were made from."""

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..files import CACHE_VARIABLE, atomic_folder, cache_folder, write_text
from .dataset import Split, content_hash

__all__ = ["Build", "Images", "stored"]

IMAGES_FILE, FIELDS_FILE = "images.bin", "fields.json"
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR}
MAX_BYTES_IN_MEMORY = 2**30  # of images whose cache cannot be written


@dataclass(frozen=True)
class Images:
    """What a cache holds: the splits, in the order train, validation, test; the builder's notes; the splits' `content_hash`."""

    splits: dict[str, Split]
    notes: list
    sha256: str


Write = Callable[[Sequence[int], np.ndarray], None]
# Given what makes a store for `count` images of a shape, write them by their places, and give the labels (n,) by place, how
# many places each split takes, in order, and notes.
Build = Callable[[Callable[[int, tuple], Write]], tuple[np.ndarray, dict[str, int], list]]


def stored(key: dict, build: Build) -> Images:
    """Give the images of `key` from the cache, building them by `build` if they are missing there or damaged.

    A process that asks for what another is building waits for it. If the cache cannot be written, up to 1 GiB is kept in
    memory, with a warning.

    Raises:
        OSError: more than that cannot be written; the message says what to do.
    """
    from filelock import FileLock  # not in a board's install, which reads no data set

    text = json.dumps(key, sort_keys=True)
    folder = cache_folder() / "data" / hashlib.sha256(text.encode()).hexdigest()[:32]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            found = _read(folder, text)
            if found is None:
                for partial in (folder, *folder.parent.glob(f".*-{folder.name}")):  # damaged, or of a process killed
                    shutil.rmtree(partial, ignore_errors=True)
                with atomic_folder(folder) as aside:
                    _write(aside, text, build)
                found = _read(folder, text)
            return found
    except OSError as error:
        if error.errno not in UNWRITABLE and folder.parent.is_dir():  # where it cannot be made, whatever the reason
            raise
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = f"set {CACHE_VARIABLE} to a folder with space"
        remedy += f", or delete {folder.parent}, where old images stay until you do" if is_full else ""
        return _in_memory(build, f"the cache {folder.parent} cannot be written ({error.strerror})", remedy)


def _write(folder, text, build):
    path, full_shape = folder / IMAGES_FILE, ()
    with open(path, "wb") as file:

        def allocate(count, shape):
            nonlocal full_shape
            full_shape, size = (count, *shape), int(np.prod(shape))
            if count * size > shutil.disk_usage(folder).free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file.truncate(0)
            file.truncate(count * size)

            def write(places, images):
                for place, image in zip(places, images):
                    file.seek(int(place) * size)
                    file.write(np.ascontiguousarray(image))

            return write

        labels, counts, notes = build(allocate)
    fields = {"key": text, "shape": full_shape, "counts": counts, "labels": labels.tolist(), "notes": notes}
    fields["sha256"] = content_hash(_splits(folder, fields).values())
    fields["written"] = path.stat().st_mtime_ns
    write_text(folder / FIELDS_FILE, json.dumps(fields))


def _splits(folder, fields) -> dict[str, Split]:
    # A view as plain array: what is taken from it is no memmap, and its pages are the file's.
    images = np.memmap(folder / IMAGES_FILE, np.uint8, "r", shape=tuple(fields["shape"])).view(np.ndarray)
    return _cut(images, np.array(fields["labels"], np.int32), fields["counts"])


def _cut(images, labels, counts):
    ends = np.cumsum(list(counts.values())).tolist()
    return {name: Split(images[end - n : end], labels[end - n : end]) for (name, n), end in zip(counts.items(), ends)}


def _read(folder, text) -> Images | None:
    if not folder.exists():
        return None
    try:
        fields = json.loads((folder / FIELDS_FILE).read_text())
        state, splits = (folder / IMAGES_FILE).stat(), _splits(folder, fields)
        is_whole = fields["key"] == text and state.st_size == np.prod(fields["shape"])
        if state.st_mtime_ns != fields["written"]:  # copied, or written by something else
            is_whole = is_whole and content_hash(splits.values()) == fields["sha256"]
        if is_whole:
            return Images(splits, fields["notes"], fields["sha256"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    warnings.warn(f"the cached images in {folder} are damaged; they are made anew", RuntimeWarning, stacklevel=2)
    return None


def _in_memory(build, reason, remedy) -> Images:
    kept = np.empty(0, np.uint8)

    def allocate(count, shape):
        nonlocal kept
        size = count * int(np.prod(shape))
        if size > MAX_BYTES_IN_MEMORY:
            raise OSError(f"{reason}, and the images take {size / 2**30:.1f} GiB; {remedy}")
        kept = np.empty((count, *shape), np.uint8)
        return kept.__setitem__

    labels, counts, notes = build(allocate)
    warnings.warn(f"{reason}; the images are kept in memory: {remedy}", RuntimeWarning, stacklevel=2)
    splits = _cut(kept, labels.astype(np.int32), counts)
    return Images(splits, notes, content_hash(splits.values()))
