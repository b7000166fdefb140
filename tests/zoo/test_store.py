import contextlib
import errno
import functools
import hashlib
import http.server
import json
import os
import shutil
import socket
import socketserver
import threading
import zipfile

import pytest

import factorizenet_tf as fnet
from factorizenet_tf.zoo import store
from factorizenet_tf.zoo.catalog import find
from factorizenet_tf.zoo.store import FolderStore, UrlStore, open_store, unzip

NAME = "fnet-1x2.2x2-l1-x0.5-int8"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FACTORIZENET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "_indexes", {})
    return tmp_path / "cache"


@pytest.fixture
def slept(monkeypatch):
    """The pauses between attempts, which are not waited for."""
    pauses = []
    monkeypatch.setattr("time.sleep", pauses.append)
    return pauses


def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def tflite_of(folder):
    return folder / fnet.zoo.card(NAME, zoo_dir=folder).file("tflite").path


@contextlib.contextmanager
def served(folder, failures=(), log=None):
    """The address of a server of a folder; `log` gets the name of each file that is asked for.

    The first requests get `failures` for an answer: a status code, "half" of the file or "other" bytes.
    """
    left, log = list(failures), [] if log is None else log

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            log.append(self.path.rpartition("/")[2])
            self.failure = left.pop(0) if left else None
            if isinstance(self.failure, int):
                self.send_error(self.failure)
            else:
                super().do_GET()

        def copyfile(self, source, outputfile):
            content = source.read(1000 if self.failure == "half" else -1)
            outputfile.write(bytes(len(content)) if self.failure == "other" else content)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_zoo_is_a_folder_or_an_address(tmp_path):
    assert isinstance(open_store("https://example.com/zoo"), UrlStore)
    assert open_store("~/zoo").folder == tmp_path.home() / "zoo"


def test_a_damaged_or_missing_file_and_a_link_out_of_the_folder_are_told_with_the_remedy(copy, tmp_path):
    path = tflite_of(copy)
    expected = fnet.zoo.card(NAME, zoo_dir=copy).file("tflite").sha256
    path.write_bytes(b"other")
    found = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ValueError, match=f"expected SHA-256 {expected}.*found {found}.*publish the model"):
        fnet.zoo.load(NAME, "tflite", zoo_dir=copy)
    shutil.move(path, tmp_path / "elsewhere.tflite")
    with pytest.raises(FileNotFoundError, match="is missing; restore it, or publish the model again"):
        fnet.zoo.load(NAME, "path", zoo_dir=copy)
    os.symlink(tmp_path / "elsewhere.tflite", path)
    with pytest.raises(ValueError, match="a link out of the zoo's folder"):
        fnet.zoo.load(NAME, "path", zoo_dir=copy)


def test_a_changed_index_is_read_again_and_a_damaged_one_restored_by_who_can(copy, monkeypatch):
    assert NAME in fnet.zoo.names(zoo_dir=copy)
    index = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps(index | {"models": index["models"][:1]}))
    assert NAME not in fnet.zoo.names(zoo_dir=copy)
    monkeypatch.setattr(store, "bundled_zoo", lambda: copy)
    (copy / "index.json").write_text("half")
    with pytest.raises(ValueError, match=r"is no JSON .*; install the package again"):
        FolderStore(copy).cards()
    with served(copy) as url, pytest.raises(ValueError, match=r"is no JSON .*; tell who publishes it"):
        fnet.zoo.names(zoo_dir=url)


def test_a_zoo_is_loaded_over_http_kept_and_used_without_the_server(copy, cache):
    log, content = [], tflite_of(copy).read_bytes()
    with served(copy, log=log) as url:
        path = fnet.zoo.load(NAME, "path", zoo_dir=url)
        assert fnet.zoo.list(zoo_dir=url)[1].zoo == url
        assert fnet.zoo.load(NAME, "tflite", zoo_dir=url).size_bytes == len(content)
        assert log == ["index.json", "model.tflite"]  # each once a process
        path.write_bytes(b"half")
        assert fnet.zoo.load(NAME, "path", zoo_dir=url).read_bytes() == content  # fetched again
    store._indexes.clear()  # another process
    with pytest.warns(RuntimeWarning, match="the index fetched last is used"):
        again = fnet.zoo.load(NAME, "path", zoo_dir=url)
    assert again.read_bytes() == content
    assert again.stat().st_mode & 0o444 == cache.stat().st_mode & 0o444  # readable as all is


@pytest.mark.parametrize(
    ("failures", "pauses", "error"),
    [
        ([503, 500], [1, 2], None),
        (["half", 503], [1, 2], None),
        ([503] * 3, [1, 2], r"503.*try again"),
        (["half"] * 3, [1, 2], "could not be fetched .*one that broke off"),
        ([404], [], r"404.*check the address"),
        (["other"] * 3, [1, 2], r"is not what the zoo's index says: SHA256 .*expected"),
    ],
)
def test_a_moments_failure_is_fetched_again_a_lasting_one_leaves_nothing(copy, cache, slept, failures, pauses, error):
    file = find(NAME, copy)[0].file("tflite")
    with served(copy, failures) as url:
        if error is None:
            assert UrlStore(url).path(file).read_bytes() == tflite_of(copy).read_bytes()
        else:
            with pytest.raises((ConnectionError, ValueError), match=error):
                UrlStore(url).path(file)
            assert not [path for path in (cache / "files").rglob("*") if path.is_file()]
    assert slept == pauses


@pytest.mark.parametrize(
    ("zoo", "message"),
    [
        ("http://127.0.0.1:9/zoo", "no connection, .*; check the address and the network"),
        ("hanging", "no answer within 0.2 seconds"),
        ("my-zo", r"no zoo in my-zo: it has no index\.json"),
        ("htp://example.com/zoo", "is neither a folder nor an address that begins with http"),
    ],
)
def test_another_zoos_trouble_is_a_warning_and_an_error_where_it_is_named(zoo, message, slept, monkeypatch):
    for name in ("QUICK_SECONDS", "TIMEOUT_SECONDS"):
        monkeypatch.setattr(store, name, 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes connections and says nothing
        zoo = zoo.replace("hanging", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setenv("FACTORIZENET_ZOO", zoo)
        best = functools.partial(fnet.zoo.best, dataset="cifar10")
        for call in (best, functools.partial(fnet.zoo.load, "fnet-l2-int8", "path")):
            with pytest.warns(RuntimeWarning, match="FACTORIZENET_ZOO is left out: "):
                assert call()
            with pytest.raises((OSError, ValueError), match=message):
                call(zoo_dir=zoo)
    assert len(slept) in (0, 4)  # where it is named it is asked again, and only there


def test_a_cache_that_cannot_be_written_serves_what_it_has_and_names_itself(copy, cache, monkeypatch):
    with served(copy) as url:
        fnet.zoo.load(NAME, "path", zoo_dir=url)
        folder = fnet.zoo.load(NAME, "saved_model", zoo_dir=url)
        store._indexes.clear()
        for name in ("write_text", "atomic_folder"):
            monkeypatch.setattr(store, name, full)
        monkeypatch.setattr("pooch.core.os.makedirs", full)
        assert fnet.zoo.load(NAME, "path", zoo_dir=url).is_relative_to(cache)
        assert fnet.zoo.load(NAME, "saved_model", zoo_dir=url) == folder
        said = r"the folder {}/{}\S* cannot be written \(No space left on device\); set FACTORIZENET_CACHE to"
        with pytest.raises(OSError, match=said.format(cache, "files")):
            fnet.zoo.load(NAME.replace("int8", "float"), "path", zoo_dir=url)
        with pytest.raises(OSError, match=said.format(cache, "unpacked")):
            unzip(copy / fnet.zoo.card(NAME, zoo_dir=copy).file("saved_model").path, "4" * 64)
        store._indexes.clear()
        monkeypatch.setattr("pooch.core.temporary_file", full)  # where the index is fetched to, which is no cache
        with pytest.raises(OSError, match=rf"the folder (?!{cache})\S+ cannot be written .*; set TMPDIR to one"):
            fnet.zoo.names(zoo_dir=url)


def test_an_archive_is_unpacked_once_and_never_outside(tmp_path, cache):
    archive = tmp_path / "a.zip"
    for name, digest in (("a/b.txt", "1" * 64), ("../../out.txt", "2" * 64)):
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(name, "text")
        if name == "a/b.txt":
            folder = unzip(archive, digest)
            assert (folder / "a" / "b.txt").read_text() == "text"
        else:
            with pytest.raises(ValueError, match="outside its folder"):
                unzip(archive, digest)
    archive.write_bytes(b"no archive")
    assert unzip(archive, "1" * 64) == folder
    with pytest.raises(ValueError, match="is damaged"):
        unzip(archive, "3" * 64)
    assert [path.name for path in (cache / "unpacked").iterdir()] == ["1" * 64]
