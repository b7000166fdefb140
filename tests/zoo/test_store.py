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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import factorizenet_tf as fnet
from factorizenet_tf.zoo import store
from factorizenet_tf.zoo.catalog import find
from factorizenet_tf.zoo.store import FolderStore, UrlStore, bundled_zoo, open_store, unzip

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


@pytest.fixture
def copy(zoo, tmp_path):
    return shutil.copytree(zoo, tmp_path / "zoo")


def tflite_of(folder):
    return folder / fnet.zoo.card(NAME, zoo_dir=folder).file("tflite").path


@contextlib.contextmanager
def served(folder, cut=None, failures=(), log=None):
    """The address of a server of a folder.

    Args:
        cut: end each file but the index after so many bytes.
        failures: what the first requests get in place of an answer: a status code, or "half" of the file.
        log: gets the name of each file that is asked for.
    """
    left, log = list(failures), [] if log is None else log

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
            log.append(self.path.rpartition("/")[2])
            failure = left.pop(0) if left else None
            if isinstance(failure, int):
                self.send_error(failure)
            else:
                self.end = 1000 if failure == "half" else cut
                super().do_GET()

        def copyfile(self, source, outputfile):
            content = source.read()
            outputfile.write(content if self.end is None or self.path.endswith("index.json") else content[: self.end])

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_zoo_is_a_folder_or_an_address(tmp_path):
    assert (bundled_zoo() / "index.json").is_file()
    assert isinstance(open_store("https://example.com/zoo"), UrlStore)
    assert open_store("~/zoo").folder == tmp_path.home() / "zoo"
    with pytest.raises(FileNotFoundError, match=r"no zoo in .* it has no index\.json"):
        fnet.zoo.names(zoo_dir=tmp_path)
    with pytest.raises(
        ValueError, match=r"'ftp://example\.com' is neither a folder nor an address that begins with http"
    ):
        fnet.zoo.names(zoo_dir="ftp://example.com")


def test_a_damaged_file_is_told_with_both_hashes(copy):
    path = tflite_of(copy)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    expected = fnet.zoo.card(NAME, zoo_dir=copy).file("tflite").sha256
    with pytest.raises(ValueError, match=f"expected SHA-256 {expected}.*found {found}.*publish the model"):
        fnet.zoo.load(NAME, "tflite", zoo_dir=copy)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing; restore it, or publish the model again"):
        fnet.zoo.load(NAME, "path", zoo_dir=copy)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    role=st.sampled_from(["tflite", "weights", "saved_model"]),
    at=st.floats(0, 1, exclude_max=True),
    noise=st.binary(max_size=3),
)
def test_no_byte_of_a_file_can_change_unseen(zoo, tmp_path, role, at, noise):
    file = fnet.zoo.card(NAME, zoo_dir=zoo).file(role)
    content = (zoo / file.path).read_bytes()
    start = int(at * len(content))
    changed = content[:start] + noise + content[start + len(noise) :] if noise else content[:start]
    copy = tmp_path / file.path
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(changed)
    if changed == content:
        assert FolderStore(tmp_path).path(file) == copy
    else:
        with pytest.raises(ValueError, match="is damaged: expected SHA-256"):
            FolderStore(tmp_path).path(file)


def test_a_link_out_of_the_folder_is_refused(copy, tmp_path):
    path = tflite_of(copy)
    shutil.move(path, tmp_path / "elsewhere.tflite")
    os.symlink(tmp_path / "elsewhere.tflite", path)
    with pytest.raises(ValueError, match="a link out of the zoo's folder"):
        fnet.zoo.load(NAME, "path", zoo_dir=copy)


def test_a_changed_index_is_read_again(copy):
    assert NAME in fnet.zoo.names(zoo_dir=copy)
    index = json.loads((copy / "index.json").read_text())
    index["models"] = index["models"][:1]
    (copy / "index.json").write_text(json.dumps(index))
    assert NAME not in fnet.zoo.names(zoo_dir=copy)


def test_only_the_packages_own_zoo_is_installed_again(copy, monkeypatch):
    monkeypatch.setattr(store, "bundled_zoo", lambda: copy)
    (copy / "index.json").write_text("half")
    with pytest.raises(ValueError, match=r"is no JSON .*; install the package again"):
        FolderStore(copy).cards()
    with served(copy) as url, pytest.raises(ValueError, match=r"is no JSON .*; tell who publishes it"):
        fnet.zoo.names(zoo_dir=url)


def test_a_zoo_is_loaded_over_http_kept_and_used_without_the_server(copy, noise, cache):
    log = []
    with served(copy, log=log) as url:
        net = fnet.zoo.load(NAME, "tflite", zoo_dir=url)
        assert fnet.zoo.list(zoo_dir=url)[1].zoo == url
        fnet.zoo.load(NAME, "path", zoo_dir=url)
    assert log == ["index.json", "model.tflite"]  # each once a process
    assert (net.predict(noise(4)) == fnet.zoo.load(NAME, "tflite", zoo_dir=copy).predict(noise(4))).all()
    store._indexes.clear()  # another process
    with pytest.warns(RuntimeWarning, match="the index fetched last is used"):
        again = fnet.zoo.load(NAME, "path", zoo_dir=url)
    assert again.read_bytes() == tflite_of(copy).read_bytes()
    assert again.stat().st_mode & 0o444 == (cache / "indexes").parent.stat().st_mode & 0o444  # readable as all is


def test_a_damaged_file_in_the_cache_is_fetched_again(copy):
    with served(copy) as url:
        path = fnet.zoo.load(NAME, "path", zoo_dir=url)
        path.write_bytes(b"half")
        assert fnet.zoo.load(NAME, "path", zoo_dir=url).read_bytes() == tflite_of(copy).read_bytes()


@pytest.mark.parametrize(
    ("failures", "pauses", "error"),
    [
        ([503, 500], [1, 2], None),
        (["half", 503], [1, 2], None),
        ([503] * 3, [1, 2], r"503.*try again"),
        ([404], [], r"404.*check the address"),
    ],
)
def test_what_fails_for_a_moment_is_fetched_again(copy, slept, failures, pauses, error):
    card, _ = find(NAME, copy)
    with served(copy, failures=failures) as url:
        if error is None:
            assert UrlStore(url).path(card.file("tflite")).read_bytes() == tflite_of(copy).read_bytes()
        else:
            with pytest.raises(ConnectionError, match=error):
                UrlStore(url).path(card.file("tflite"))
    assert slept == pauses


def test_half_a_file_or_another_is_an_error_and_leaves_nothing(copy, cache, slept):
    with (
        served(copy, cut=1000) as url,
        pytest.raises((ConnectionError, ValueError), match=r"could not be fetched|is not what"),
    ):
        fnet.zoo.load(NAME, "path", zoo_dir=url)
    tflite_of(copy).write_bytes(b"x" * 100_000)
    with served(copy) as url, pytest.raises(ValueError, match=r"is not what the zoo's index says: SHA256 .*expected"):
        fnet.zoo.load(NAME, "path", zoo_dir=url)
    assert not [path for path in (cache / "files").rglob("*") if path.is_file()]


def test_no_server_and_no_index_say_what_to_do(copy, slept):
    with pytest.raises(ConnectionError, match="check the address and the network"):
        fnet.zoo.names(zoo_dir="http://127.0.0.1:9")
    with served(copy.parent) as url, pytest.raises(ConnectionError, match="404"):
        fnet.zoo.names(zoo_dir=url)


@pytest.fixture(params=["unreachable", "hanging", "mistyped", "damaged", "no address"])
def trouble(request, tmp_path, monkeypatch):
    """A zoo that cannot be read."""
    monkeypatch.setattr(store, "QUICK_SECONDS", 0.3)
    monkeypatch.setattr(store, "TIMEOUT_SECONDS", 0.3)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "index.json").write_text("half")
    with socket.create_server(("127.0.0.1", 0)) as server:  # it takes connections and says nothing
        yield {
            "unreachable": "http://127.0.0.1:9/zoo",
            "hanging": f"http://127.0.0.1:{server.getsockname()[1]}",
            "mistyped": str(tmp_path / "my-zo"),
            "damaged": str(tmp_path / "damaged"),
            "no address": "htp://example.com/zoo",
        }[request.param]


def test_another_zoos_trouble_is_a_warning_and_an_error_where_it_is_named(trouble, slept, monkeypatch):
    monkeypatch.setenv("FACTORIZENET_ZOO", trouble)
    calls = (
        lambda **zoo: fnet.zoo.list(max_macs=3_000_000, **zoo),
        lambda **zoo: fnet.zoo.best(**zoo),
        lambda **zoo: fnet.zoo.card("fnet-l2-int8", **zoo),
        lambda **zoo: fnet.zoo.load("fnet-l2-int8", "path", **zoo),
    )
    for call in calls:
        with pytest.warns(RuntimeWarning, match="FACTORIZENET_ZOO is left out: "):
            assert call()
        with pytest.raises((OSError, ValueError), match=r"zoo|127\.0\.0\.1"):
            call(zoo_dir=trouble)
    assert len(slept) in (0, 2 * len(calls))  # where it is named it is asked again, and only there


def test_a_cache_that_cannot_be_written_serves_what_it_has_and_names_itself(copy, cache, monkeypatch):
    with served(copy) as url:
        fnet.zoo.load(NAME, "path", zoo_dir=url)
        folder = fnet.zoo.load(NAME, "saved_model", zoo_dir=url)

        def refuse(*arguments, **options):
            raise OSError(errno.EROFS, "Read-only file system")

        store._indexes.clear()
        monkeypatch.setattr(store, "write_text", refuse)
        monkeypatch.setattr(store, "atomic_folder", refuse)
        monkeypatch.setattr("pooch.core.os.makedirs", refuse)
        assert fnet.zoo.load(NAME, "path", zoo_dir=url).is_relative_to(cache)
        assert fnet.zoo.load(NAME, "saved_model", zoo_dir=url) == folder
        with pytest.raises(OSError, match=r"cannot be written \(Read-only file system\); set FACTORIZENET_CACHE to"):
            fnet.zoo.load(NAME.replace("int8", "float"), "path", zoo_dir=url)
        with pytest.raises(OSError, match="set FACTORIZENET_CACHE"):
            unzip(copy / fnet.zoo.card(NAME, zoo_dir=copy).file("saved_model").path, "4" * 64)


def test_an_archive_is_unpacked_once_and_never_outside(tmp_path, cache):
    good = tmp_path / "good.zip"
    with zipfile.ZipFile(good, "w") as file:
        file.writestr("a/b.txt", "text")
    folder = unzip(good, "1" * 64)
    assert (folder / "a" / "b.txt").read_text() == "text"
    good.unlink()
    assert unzip(good, "1" * 64) == folder
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad, "w") as file:
        file.writestr("../../out.txt", "text")
    with pytest.raises(ValueError, match="outside its folder"):
        unzip(bad, "2" * 64)
    (tmp_path / "no.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is damaged"):
        unzip(tmp_path / "no.zip", "3" * 64)
    assert [path.name for path in (cache / "unpacked").iterdir()] == ["1" * 64]
