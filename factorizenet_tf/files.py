"""Files and folders that are whole or absent: written aside, then renamed."""

import contextlib
import csv
import io
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["CACHE_VARIABLE", "atomic_folder", "atomic_write", "cache_folder", "check_new", "remove_partial_files"]
__all__ += ["write_bytes", "write_csv", "write_text"]

CACHE_VARIABLE = "FACTORIZENET_CACHE"
_PARTIAL = ".aside-"


def cache_folder() -> Path:
    """Give the folder of fetched, unpacked and decoded files: FACTORIZENET_CACHE, or the system's own for caches."""
    import pooch

    return Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("factorizenet_tf")).expanduser()


def check_new(*paths: str | os.PathLike | None) -> None:
    """Raise FileExistsError if one of the paths to be written exists; None stands for no path."""
    for path in paths:
        if path is not None and Path(path).exists():
            raise FileExistsError(f"{path} is there already; choose another name or remove it")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Give a path beside `path` to write to; rename it to `path` when the block ends well, else remove it.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` is then what it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _aside(path.parent, path)
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.filename == os.fspath(partial):
            error.filename = os.fspath(path)  # what the message is to name
        raise
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike, *, within: Path | None = None) -> Iterator[Path]:
    """Give a new folder to write into; rename it to `path` when the block ends well, else remove it.

    Args:
        path: the folder to make, on the disk of `within`.
        within: where the new folder lies meanwhile; None: beside `path`.

    Raises:
        FileExistsError: `path` is there already, from before or from another process meanwhile.
        OSError: the folder cannot be written or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _aside(within or path.parent, path)
    partial.mkdir()
    try:
        yield partial
        try:
            partial.rename(path)
        except OSError:
            check_new(path)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a whole file or nothing. Raises OSError as `atomic_write` does."""
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def write_text(path: str | os.PathLike, content: str) -> None:
    """Write a whole UTF-8 text file or nothing. Raises OSError as `atomic_write` does."""
    write_bytes(path, content.encode())


def write_csv(path: str | os.PathLike, rows: Sequence[dict]) -> None:
    """Write dicts of equal keys, at least one, as a whole CSV file or nothing. Raises OSError as `atomic_write` does."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def remove_partial_files(folder: Path) -> None:
    """Remove what a killed process left in a folder: files that it had not finished writing."""
    for partial in folder.glob(f"{_PARTIAL}*"):
        if partial.is_file():
            partial.unlink(missing_ok=True)


def _aside(folder, path) -> Path:
    return Path(folder) / f"{_PARTIAL}{uuid.uuid4().hex[:12]}-{path.name}"
