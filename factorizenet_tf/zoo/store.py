"""Read a zoo from a folder or from a web server. Every file's hash is checked before the file is used."""

import contextlib
import functools
import hashlib
import os
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

from ..files import CACHE_VARIABLE, atomic_folder, cache_folder, write_text
from .cards import Cards, PublishedFile, index_from_json

__all__ = ["INDEX_FILE", "FolderStore", "UrlStore", "bundled_zoo", "fetch", "open_store", "other_zoo", "unzip"]

INDEX_FILE = "index.json"
ATTEMPTS, TIMEOUT_SECONDS = 3, 30  # for what the caller named
QUICK_SECONDS = 4  # for the index of a zoo that is only looked into, too

_indexes: dict[str, Cards | str] = {}  # of this process, by address; a text says why it could not be fetched


class FolderStore:
    """A zoo in a folder of this machine."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.location = str(folder)
        is_bundled = folder == bundled_zoo()
        self._remedy = "install the package again" if is_bundled else "restore it, or publish the model again"

    def cards(self) -> Cards:
        """List the cards of the index; it is read again when it has changed.

        Raises:
            FileNotFoundError: there is no index.json.
            ValueError: it is damaged.
        """
        path = self.folder / INDEX_FILE
        try:
            stamp = path.stat()
        except OSError:
            what = f"no zoo in {self.folder}: it has no {INDEX_FILE}"
            raise FileNotFoundError(f"{what}; `factorizenet publish --zoo` makes one") from None
        return _read_index(path, self.location, self._remedy, stamp.st_mtime_ns, stamp.st_size)

    def path(self, file: PublishedFile) -> Path:
        """Give a file's path after checking that its content is what was published.

        Raises:
            FileNotFoundError: it is missing.
            ValueError: its content has another hash, or it is a link out of the folder.
        """
        path = self.folder / file.path
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; {self._remedy}")
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"{path} is a link out of the zoo's folder; put the file itself there")
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if found != file.sha256:
            expected, found = f"{file.sha256} ({file.size_bytes:,} bytes)", f"{found} ({len(content):,} bytes)"
            raise ValueError(f"{path} is damaged: expected SHA-256 {expected}, found {found}; {self._remedy}")
        return path


class UrlStore:
    """A zoo below an http(s) address. Its files are kept in the user's cache folder, by their hash.

    Each process fetches the index once, and so sees what was published before it started; if that fails, the index fetched
    last is used.

    Args:
        url: of the folder that has index.json.
        quick: give up on the index when the server does not answer for a few seconds, instead of asking again.
    """

    def __init__(self, url: str, *, quick: bool = False):
        self.url = self.location = url.rstrip("/")
        self._quick = quick

    def cards(self) -> Cards:
        """List the cards of the index or, with a warning if it cannot be fetched, of the one fetched last.

        Raises:
            ConnectionError: it cannot be fetched and never was.
            ValueError: it is damaged.
        """
        known = _indexes.get(self.url)
        if known is None or (isinstance(known, str) and not self._quick):
            try:
                known = self._fetch_index()
            except ConnectionError as error:
                known = str(error)
            _indexes[self.url] = known
        if isinstance(known, Cards):
            return known
        if not self._last_index.is_file():
            raise ConnectionError(known)
        warnings.warn(f"{known}; the index fetched last is used", RuntimeWarning, stacklevel=2)
        return self._parsed(self._last_index.read_text(encoding="utf-8", errors="replace"))

    def path(self, file: PublishedFile) -> Path:
        """Give a file's path in the cache, fetching it first if it is missing there or damaged.

        Raises:
            ConnectionError: it cannot be fetched whole.
            ValueError: the server has other content than the index says.
            OSError: it is not in the cache, and the cache cannot be written.
        """
        folder = cache_folder() / "files" / file.sha256
        return fetch(f"{self.url}/{file.path}", folder, file.sha256)

    @property
    def _last_index(self):
        return cache_folder() / "indexes" / f"{hashlib.sha256(self.url.encode()).hexdigest()}.json"

    def _parsed(self, text):
        return index_from_json(text, f"{self.url}/{INDEX_FILE}", zoo=self.url, remedy="tell who publishes it")

    def _fetch_index(self):
        attempts, timeout = (1, QUICK_SECONDS) if self._quick else (ATTEMPTS, TIMEOUT_SECONDS)
        with tempfile.TemporaryDirectory() as folder:
            path = fetch(f"{self.url}/{INDEX_FILE}", Path(folder), None, attempts, timeout)
            text = path.read_text(encoding="utf-8", errors="replace")
        cards = self._parsed(text)
        with contextlib.suppress(OSError):  # a cache that cannot be written: there is none to fall back on
            write_text(self._last_index, text)
        return cards


def open_store(zoo_dir: str | os.PathLike, *, quick: bool = False) -> FolderStore | UrlStore:
    """Open the zoo in a folder or below an http(s) address; `quick` as for `UrlStore`. Raises ValueError for another."""
    text = str(zoo_dir)
    if text.startswith(("http://", "https://")):
        return UrlStore(text, quick=quick)
    if "://" in text:
        raise ValueError(
            f"the zoo {text!r} is neither a folder nor an address that begins with http:// or https://; give one"
        )
    return FolderStore(Path(zoo_dir).expanduser())


@functools.cache
def bundled_zoo() -> Path:
    """Find the package's own zoo: `_zoo` in an installed package, `zoo` beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return package / "_zoo" if (package / "_zoo").is_dir() else package.parent / "zoo"


def other_zoo(location: str | None) -> str | None:
    """Give a zoo's location, or None for the package's own, which no command has to name."""
    return None if location == str(bundled_zoo()) else location


def unzip(archive: Path, sha256: str) -> Path:
    """Unpack a zip archive into the user's cache, once, and give the folder.

    Raises:
        ValueError: the archive is damaged or names files outside its folder.
        OSError: the cache cannot be written.
    """
    target = cache_folder() / "unpacked" / sha256
    if target.is_dir():
        return target
    with _writing(target.parent), contextlib.suppress(FileExistsError), atomic_folder(target) as folder:
        try:
            with zipfile.ZipFile(archive) as file:
                for name in file.namelist():
                    if not (folder / name).resolve().is_relative_to(folder.resolve()):
                        raise ValueError(f"{archive} names {name!r}, outside its folder; publish the model again")
                file.extractall(folder)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{archive} is damaged ({error}); publish the model again") from None
    return target


@functools.lru_cache(maxsize=8)
def _read_index(path, zoo, remedy, changed, size):
    return index_from_json(path.read_text(encoding="utf-8", errors="replace"), str(path), zoo=zoo, remedy=remedy)


def fetch(
    url: str, folder: Path, sha256: str | None, attempts: int = ATTEMPTS, timeout: float = TIMEOUT_SECONDS
) -> Path:
    """Fetch a file into a folder unless it is there; check its content if its hash is known.

    Raises:
        ConnectionError: it cannot be fetched whole.
        ValueError: it has another hash.
        OSError: the folder cannot be written.
    """
    import pooch
    import requests

    def download(url, output, fetcher):
        shown = sha256 is not None and sys.stderr.isatty()
        try:
            pooch.HTTPDownloader(timeout=timeout, progressbar=shown)(url, output, fetcher)
        except requests.HTTPError as error:
            if error.response.status_code >= 500:
                raise
            raise ConnectionError(f"{url} could not be fetched ({error}); check the address") from None

    def readable(path, action, fetcher):
        if action != "fetch":  # it was there
            Path(path).chmod(0o644)  # pooch's temporary files are their owner's alone
        return Path(path)

    pooch.get_logger().setLevel("WARNING")
    base, _, name = url.rpartition("/")
    registry = {name: sha256 and f"sha256:{sha256}"}
    fetcher = pooch.create(folder, f"{base}/", registry=registry, retry_if_failed=attempts - 1)
    with _writing(folder):
        try:
            return fetcher.fetch(name, processor=readable, downloader=download)
        except requests.RequestException as error:
            reason = str(error).strip().partition("\n")[0][:200]
            if isinstance(error, requests.Timeout):
                reason = f"no answer within {timeout} seconds"
            elif isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
                # urllib3's text names its own objects
                reason = "no connection, or one that broke off"
            remedy = "check the address and the network, try again, or use a zoo folder"
            raise ConnectionError(f"{url} could not be fetched ({reason}); {remedy}") from None
        except ValueError as error:
            raise ValueError(f"{url} is not what the zoo's index says: {error} Tell who publishes it.") from None


@contextlib.contextmanager
def _writing(folder):
    """Say of an error of the disk which folder it was, and what helps."""
    try:
        yield
    except ConnectionError:
        raise
    except OSError as error:
        variable = CACHE_VARIABLE if folder.is_relative_to(cache_folder()) else "TMPDIR"
        what = f"the folder {folder} cannot be written ({error.strerror or error})"
        raise type(error)(f"{what}; set {variable} to one that can") from None
