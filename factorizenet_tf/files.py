"""Files that are whole or absent: written aside, flushed, then renamed."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["locked", "remove_asides", "write_bytes", "write_csv", "write_text", "written_aside"]

_ASIDE = ".aside-"


@contextlib.contextmanager
def written_aside(path: str | os.PathLike) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to `path` when the block ends well, removed when it fails.

    Raises:
        OSError: the folder cannot be written or the disk is full; `path` is then what it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{_ASIDE}{path.name}-", suffix=path.suffix)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(aside, 0o666 & ~_umask())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a whole file or nothing. Raises OSError as `written_aside` does."""
    with written_aside(path) as aside:
        aside.write_bytes(content)


def write_text(path: str | os.PathLike, content: str) -> None:
    """Write a whole UTF-8 text file or nothing. Raises OSError as `written_aside` does."""
    write_bytes(path, content.encode())


def write_csv(path: str | os.PathLike, rows: Sequence[dict]) -> None:
    """Write dicts of equal keys, at least one, as a whole CSV file or nothing. Raises OSError as `written_aside` does."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def remove_asides(folder: Path) -> None:
    """Remove what a process left in a folder that was killed while it wrote aside."""
    for aside in folder.glob(f"{_ASIDE}*"):
        aside.unlink(missing_ok=True)


@contextlib.contextmanager
def locked(path: str | os.PathLike, seconds: float) -> Iterator[None]:
    """Held by one process at a time, and freed when that ends, killed or not.

    Raises:
        TimeoutError: another process held it for so many seconds.
        OSError: the file cannot be made.
    """
    from filelock import FileLock

    with FileLock(path, timeout=seconds):
        yield


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
