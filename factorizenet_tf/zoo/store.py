"""Where published models lie: a folder, or a server that offers one. Every file is hashed before it is used."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path, PurePosixPath

from ..files import write_bytes
from .cards import Cards, PublishedFile, index_from_json

__all__ = ["INDEX_FILE", "FolderStore", "UrlStore", "open_stores", "unpacked"]

INDEX_FILE = "index.json"
ZOO_VARIABLE = "FACTORIZENET_ZOO"
TIMEOUT_SECONDS = 30
RETRY_SECONDS = (0.5, 2.0)  # the pauses between attempts


class FolderStore:
    """A zoo in a folder of this machine."""

    def __init__(self, folder: Path):
        self.folder = folder

    def cards(self) -> Cards:
        """What the index lists.

        Raises:
            FileNotFoundError: there is no index.json.
            ValueError: it is damaged.
        """
        path = self.folder / INDEX_FILE
        try:
            stamp = path.stat()
        except OSError:
            raise FileNotFoundError(
                f"no zoo in {self.folder}: it has no {INDEX_FILE}; `factorizenet publish --zoo` makes one"
            ) from None
        return _parsed(path, stamp.st_mtime_ns, stamp.st_size)

    def path(self, file: PublishedFile) -> Path:
        """A file's path, once its content is found to be what was published.

        Raises:
            FileNotFoundError: it is missing.
            ValueError: its content has another hash, or it is a link out of the folder.
        """
        path = self.folder / file.path
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; install the package again, or publish the model again")
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{path} is a link out of the zoo's folder; put the file itself there")
        check_content(path.read_bytes(), file, path)
        return path


class UrlStore:
    """A zoo below an http(s) address. Files are kept in the user's cache folder, by their hash."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")

    def cards(self) -> Cards:
        """What the index lists, fetched each time; without a network, as it was fetched last, with a warning.

        Raises:
            ConnectionError: it cannot be fetched and never was.
            ValueError: it is damaged.
        """
        kept = cache_folder() / "indexes" / f"{hashlib.sha256(self.url.encode()).hexdigest()}.json"
        url = f"{self.url}/{INDEX_FILE}"
        try:
            content = self._fetch(url, None)
        except ConnectionError as error:
            if not kept.is_file():
                raise
            warnings.warn(f"{error}; the index fetched last is used", RuntimeWarning, stacklevel=4)
            return index_from_json(kept.read_text(encoding="utf-8", errors="replace"), str(kept))
        cards = index_from_json(content.decode(errors="replace"), url)
        write_bytes(kept, content)
        return cards

    def path(self, file: PublishedFile) -> Path:
        """A file's path in the cache, fetched where it is not there or damaged.

        Raises:
            ConnectionError: it cannot be fetched whole.
            ValueError: the server has other content than the index says.
        """
        path = cache_folder() / "files" / file.sha256 / PurePosixPath(file.path).name
        if not (path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256):
            url = f"{self.url}/{file.path}"
            content = self._fetch(url, file)
            check_content(content, file, url)
            write_bytes(path, content)
        return path

    def _fetch(self, url: str, file: PublishedFile | None) -> bytes:
        for wait in (*RETRY_SECONDS, None):
            try:
                return _download(url, file)
            except _PassingError as error:
                if wait is None:
                    raise ConnectionError(f"{error}; try again, or use a zoo folder") from None
                time.sleep(wait)


class _PassingError(Exception):
    """What may be otherwise a moment later: no answer, half an answer, a server's own error."""


def _download(url, file) -> bytes:
    import pooch
    import requests

    shown = file is not None and sys.stderr.isatty()
    downloader = pooch.HTTPDownloader(timeout=TIMEOUT_SECONDS, progressbar=shown)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "fetched"
        try:
            downloader(url, str(target), None)
            content = target.read_bytes()
        except (requests.RequestException, OSError) as error:
            reason = str(error).strip().partition("\n")[0][:200]
            answer = getattr(error, "response", None)
            if answer is not None and answer.status_code < 500:
                raise ConnectionError(f"{url} could not be fetched ({reason}); check the address") from None
            raise _PassingError(f"{url} could not be fetched ({reason}); check the address and the network") from None
    if file is not None and len(content) < file.size_bytes:
        raise _PassingError(f"{url} ended after {len(content):,} of {file.size_bytes:,} bytes")
    return content


def open_stores(zoo_dir: str | os.PathLike | None = None) -> tuple[FolderStore | UrlStore, ...]:
    """Where names are looked up, in this order.

    Args:
        zoo_dir: a folder or an http(s) address: that alone. None: the zoo that comes with the package, then that of the
            environment variable FACTORIZENET_ZOO, where it is set.
    """
    if zoo_dir is not None:
        return (_open(zoo_dir),)
    second = os.environ.get(ZOO_VARIABLE)
    own = FolderStore(_own_folder())
    return (own, _open(second)) if second else (own,)


def _open(zoo_dir):
    if str(zoo_dir).startswith(("http://", "https://")):
        return UrlStore(str(zoo_dir))
    return FolderStore(Path(zoo_dir).expanduser())


def unpacked(archive: Path, sha256: str) -> Path:
    """The folder in a zip archive, unpacked once into the user's cache.

    Raises:
        ValueError: the archive is damaged or names files outside its folder.
        OSError: the cache cannot be written.
    """
    target = cache_folder() / "unpacked" / sha256
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=".aside-"))
    try:
        with zipfile.ZipFile(io.BytesIO(archive.read_bytes())) as file:
            for name in file.namelist():
                if not (aside / name).resolve().is_relative_to(aside.resolve()):
                    raise ValueError(f"{archive} names {name!r}, outside its folder; publish the model again")
            file.extractall(aside)
        try:
            os.replace(aside, target)
        except OSError:
            if not target.is_dir():  # else another process was first
                raise
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archive} is damaged ({error}); publish the model again") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def cache_folder() -> Path:
    """Where fetched and unpacked files are kept: FACTORIZENET_CACHE, or the system's folder for caches."""
    import pooch

    return Path(os.environ.get("FACTORIZENET_CACHE") or pooch.os_cache("factorizenet_tf"))


def check_content(content: bytes, file: PublishedFile, where) -> None:
    """Raise ValueError where the content is not the published one."""
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise ValueError(
            f"{where} is damaged: expected SHA-256 {file.sha256} ({file.size_bytes:,} bytes), found {found} "
            f"({len(content):,} bytes); install the package again, or publish the model again"
        )


def _own_folder() -> Path:
    """`_zoo` in an installed package, `zoo` beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return package / "_zoo" if (package / "_zoo").is_dir() else package.parent / "zoo"


@functools.lru_cache(maxsize=8)
def _parsed(path: Path, changed: int, size: int) -> Cards:
    return index_from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))
