import contextlib
import functools
import hashlib
import http.server
import json
import os
import shutil
import socketserver
import threading
import zipfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import factorizenet_tf as fnet
from factorizenet_tf.zoo import store
from factorizenet_tf.zoo.store import FolderStore, UrlStore, open_stores, unpacked

NAME = "fnet-l1-x0.5-int8"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FACTORIZENET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def copy(zoo, tmp_path):
    return shutil.copytree(zoo, tmp_path / "zoo")


def tflite_of(folder):
    return folder / fnet.zoo.card(NAME, zoo_dir=folder).file("tflite").path


@contextlib.contextmanager
def served(folder, cut=None, failures=()):
    """The address of a server of a folder.

    Args:
        cut: end each file but the index after so many bytes.
        failures: what the first requests get in place of an answer: a status code, or "half" of the file.
    """
    left = list(failures)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def do_GET(self):
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


def test_the_packages_own_zoo_is_found():
    (own,) = open_stores(None)
    assert isinstance(own, FolderStore)
    assert (own.folder / "index.json").is_file()
    (there,) = open_stores("https://example.com/zoo")
    assert isinstance(there, UrlStore)


def test_a_folder_without_an_index_is_no_zoo(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no zoo in .* it has no index\.json"):
        fnet.zoo.names(zoo_dir=tmp_path)


def test_a_damaged_file_is_told_with_both_hashes(copy):
    path = tflite_of(copy)
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    expected = fnet.zoo.card(NAME, zoo_dir=copy).file("tflite").sha256
    with pytest.raises(ValueError, match=f"expected SHA-256 {expected}.*found {found}.*publish the model again"):
        fnet.zoo.load(NAME, "tflite", zoo_dir=copy)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="is missing; install the package again"):
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


def test_a_zoo_is_loaded_over_http_kept_and_used_without_the_server(copy, noise):
    with served(copy) as url:
        net = fnet.zoo.load(NAME, "tflite", zoo_dir=url)
    assert (net.predict(noise(4)) == fnet.zoo.load(NAME, "tflite", zoo_dir=copy).predict(noise(4))).all()
    with pytest.warns(RuntimeWarning, match="the index fetched last is used"):
        again = fnet.zoo.load(NAME, "path", zoo_dir=url)
    assert again.read_bytes() == tflite_of(copy).read_bytes()


def test_a_damaged_file_in_the_cache_is_fetched_again(copy):
    with served(copy) as url:
        path = fnet.zoo.load(NAME, "path", zoo_dir=url)
        path.write_bytes(b"half")
        assert fnet.zoo.load(NAME, "path", zoo_dir=url).read_bytes() == tflite_of(copy).read_bytes()


def test_half_a_file_is_an_error_and_leaves_nothing(copy, cache):
    with served(copy, cut=1000) as url, pytest.raises(ConnectionError, match=r"could not be fetched|ended after"):
        fnet.zoo.load(NAME, "path", zoo_dir=url)
    assert not (cache / "files").exists()


def test_what_fails_for_a_moment_is_fetched_again(copy, monkeypatch):
    slept = []
    monkeypatch.setattr(store.time, "sleep", slept.append)
    with served(copy, failures=[503, 500]) as url:
        assert NAME in fnet.zoo.names(zoo_dir=url)
    assert slept == [0.5, 2]
    with served(copy, failures=["half", 503]) as url:
        card = fnet.zoo.card(NAME, zoo_dir=copy)
        path = UrlStore(url).path(card.file("tflite"))
    assert path.read_bytes() == tflite_of(copy).read_bytes()
    with served(copy, failures=[503] * 3) as url, pytest.raises(ConnectionError, match=r"503.*try again"):
        fnet.zoo.names(zoo_dir=url)
    slept.clear()
    with served(copy, failures=[404]) as url, pytest.raises(ConnectionError, match="404"):
        fnet.zoo.names(zoo_dir=url)
    assert slept == []


def test_another_files_content_is_an_error_and_leaves_nothing(copy, cache):
    tflite_of(copy).write_bytes(b"x" * 100_000)
    with served(copy) as url, pytest.raises(ValueError, match="is damaged: expected SHA-256"):
        fnet.zoo.load(NAME, "path", zoo_dir=url)
    assert not (cache / "files").exists()


def test_no_server_and_no_index_say_what_to_do(copy):
    with pytest.raises(ConnectionError, match="check the address and the network"):
        fnet.zoo.names(zoo_dir="http://127.0.0.1:9")
    with served(copy.parent) as url, pytest.raises(ConnectionError, match="404"):
        fnet.zoo.names(zoo_dir=url)


def test_an_archive_is_unpacked_once_and_never_outside(tmp_path, cache):
    good = tmp_path / "good.zip"
    with zipfile.ZipFile(good, "w") as file:
        file.writestr("a/b.txt", "text")
    folder = unpacked(good, "1" * 64)
    assert (folder / "a" / "b.txt").read_text() == "text"
    good.unlink()
    assert unpacked(good, "1" * 64) == folder
    bad = tmp_path / "bad.zip"
    with zipfile.ZipFile(bad, "w") as file:
        file.writestr("../../out.txt", "text")
    with pytest.raises(ValueError, match="outside its folder"):
        unpacked(bad, "2" * 64)
    (tmp_path / "no.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="is damaged"):
        unpacked(tmp_path / "no.zip", "3" * 64)
    assert [path.name for path in (cache / "unpacked").iterdir()] == ["1" * 64]
