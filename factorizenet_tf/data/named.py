"""Data sets that come as their makers' archives: laid out as class folders, and read from there under their own title."""

import contextlib
import csv
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..console import Progress
from ..files import atomic_folder, check_new
from .cache import Images
from .folder import read_folder
from .images import image_sizes

__all__ = ["NAMED", "folder_variable", "prepare", "read_named"]


class NamedSet(NamedTuple):
    """A named set: its title as its makers give it, their archives, the splits that it has here, and how many classes.

    `terms` say what its makers allow, None where they state nothing.
    """

    title: str
    archives: tuple[str, ...]
    splits: tuple[str, ...]
    num_classes: int
    size: tuple[int, int] | None  # (width, height) of every image; None where they differ
    targets: Callable  # of the archives' paths and what reads one as text: (path, split/class) of each image
    terms: str | None = None


def _tiny_imagenet(paths, read):
    """The labels of the official test images are not public, so the official validation images are the test split."""
    train = [match for path in paths if (match := re.search(r"train/(n\d+)/images/[^/]+\.JPEG$", path))]
    words = dict(line.split("\t", 1) for line in read("words.txt").splitlines())
    wnids = {match[1] for match in train}
    first = {wnid: re.sub(r"[^\w'-]+", "_", words[wnid].split(",")[0].strip()) for wnid in wnids}
    uses = Counter(first.values())
    names = {wnid: word if uses[word] == 1 else f"{word}_{wnid}" for wnid, word in first.items()}
    yield from ((match.string, f"train/{names[match[1]]}") for match in train)
    labels = dict(line.split("\t")[:2] for line in read("val_annotations.txt").splitlines())
    for path in paths:
        if match := re.search(r"val/images/([^/]+\.JPEG)$", path):
            yield path, f"test/{names[labels[match[1]]]}"


def _gtsrb(paths, read):
    """The 30 images of a track show one sign, so whole tracks are for validation: each tenth one of a class."""
    rows = csv.DictReader(read("GT-final_test.csv").splitlines(), delimiter=";")
    labels = {row["Filename"]: int(row["ClassId"]) for row in rows}
    for path in paths:
        if match := re.search(r"Final_Training/Images/(\d{5})/(\d+)_\d+\.ppm$", path):
            yield path, f"{'validation' if int(match[2]) % 10 == 5 else 'train'}/{match[1]}"
        elif match := re.search(r"Final_Test/Images/(\d+\.ppm)$", path):
            yield path, f"test/{labels[match[1]]:05d}"


TINY_TITLE, TINY_SPLITS = "Tiny ImageNet (official validation images as test)", ("train", "test")
TINY_TERMS = (
    "ImageNet, of which Tiny ImageNet's images are, may be used for non-commercial research and education alone"
)
GTSRB_ARCHIVES = ("GTSRB_Final_Training_Images.zip", "GTSRB_Final_Test_Images.zip", "GTSRB_Final_Test_GT.zip")
NAMED = {
    "tiny_imagenet": NamedSet(
        TINY_TITLE, ("tiny-imagenet-200.zip",), TINY_SPLITS, 200, (64, 64), _tiny_imagenet, TINY_TERMS
    ),
    "gtsrb": NamedSet("GTSRB", GTSRB_ARCHIVES, ("train", "validation", "test"), 43, None, _gtsrb),
}


def folder_variable(name: str) -> str:
    """Give the environment variable that says in which folder a named set is."""
    return f"FACTORIZENET_{name.upper()}"


def prepare(name: str, archives: Sequence[str | os.PathLike], out: str | os.PathLike) -> dict[str, int]:
    """Lay out a set's archives, in any order, as the class folders that `load_dataset(name)` reads; give the images by split.

    The new folder is whole or absent.

    Raises:
        ValueError: there is no such set, or these are not its archives.
        FileExistsError: `out` is there already.
        OSError: an archive cannot be read, or the folder not written.
    """
    if name not in NAMED:
        raise ValueError(f"name is {name!r}; sets that come as archives are {', '.join(NAMED)}")
    check_new(out)
    wanted, counts = NAMED[name], Counter()
    with contextlib.ExitStack() as stack, atomic_folder(out) as folder, Progress() as progress:
        try:
            opened = [stack.enter_context(zipfile.ZipFile(archive)) for archive in archives]
            files = {path: archive for archive in opened for path in archive.namelist()}
            by_name = {PurePosixPath(path).name: path for path in files}
            targets = list(wanted.targets([*files], lambda file: files[by_name[file]].read(by_name[file]).decode()))
            progress.bar(f"laying out {name}", len(targets))
            for path, target in targets:
                (folder / target).mkdir(parents=True, exist_ok=True)
                (folder / target / PurePosixPath(path).name).write_bytes(files[path].read(path))
                counts[target.partition("/")[0]] += 1
                progress.step()
            for split in {*wanted.splits} - {*counts}:
                raise KeyError(f"{split} images")
        except (zipfile.BadZipFile, KeyError) as error:  # a file or a class is looked up and not there
            given, needed = ", ".join(map(str, archives)), ", ".join(wanted.archives)
            raise ValueError(f"{name} needs {needed}, whole; not found in {given}: {error.args[0]}") from None
    return dict(counts)


def read_named(name: str, shape: tuple | None, resize: str) -> tuple[str, list[str], Images]:
    """Read title, class names and images of a named set from the folder that its variable names, as `read_folder` does.

    The title says where all images are of another size than the makers'.
    """
    wanted, variable = NAMED[name], folder_variable(name)
    remedy = f"`factorizenet prepare {name} {' '.join(wanted.archives)} --out FOLDER` makes one"
    if not os.environ.get(variable):
        raise FileNotFoundError(f"{variable} is not set; set it to the folder of {name}: {remedy}")
    root = Path(os.environ[variable]).expanduser()
    for split in wanted.splits:
        count = sum(folder.is_dir() for folder in (root / split).glob("[!.]*"))
        if count != wanted.num_classes:
            raise ValueError(f"{variable} is {root}, of {count} {split} classes, not {wanted.num_classes}; {remedy}")
    _, classes, images = read_folder(root, shape, resize, None, False)
    some = [str(next((root / "train" / folder).iterdir())) for folder in classes]
    sizes = {size for chunk in image_sizes(some) for size in chunk if size is not None}
    copies = f", copies of {'x'.join(map(str, *sizes))}" if len(sizes) == 1 and sizes != {wanted.size} else ""
    if name == "gtsrb":
        names = Path(__file__).with_name("gtsrb.txt").read_text().splitlines()
        classes = [names[int(folder)] for folder in classes]
    return wanted.title + copies, classes, images
