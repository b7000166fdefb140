import base64
import hashlib
import io
import json
import re
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import requests

import factorizenet_tf as fnet
from factorizenet_tf.tflite.int8_model import TFLiteModel
from factorizenet_tf.zoo import gallery
from factorizenet_tf.zoo.catalog import find
from factorizenet_tf.zoo.gallery import build_gallery, serve_gallery

NAME = "fnet-1x2.2x2-l1-x0.5-int8"


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """A folder as `npm pack` leaves one, the packages' files one byte each."""
    folder, packages = tmp_path_factory.mktemp("runtime"), {}
    for package, (_, files) in gallery.RUNTIME.items():
        path = folder / f"litertjs-{package}-2.5.3.tgz"
        with tarfile.open(path, "w:gz") as archive:
            for file in files:
                entry = tarfile.TarInfo(f"package/{file}")
                entry.size = 1
                archive.addfile(entry, io.BytesIO(b"x"))
        packages[package] = hashlib.sha256(path.read_bytes()).hexdigest(), files
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "RUNTIME", packages)
        yield folder


@pytest.fixture(scope="module")
def site(zoo, runtime, tmp_path_factory):
    out = tmp_path_factory.mktemp("sites") / "site"
    build_gallery(out, zoo_dir=zoo, runtime=runtime)
    return out


def data_of(site):
    return json.loads((site / "gallery.json").read_text())


def test_all_that_the_page_names_is_in_its_folder_and_what_its_hash_says(site):
    page, data = (site / "index.html").read_text(), data_of(site)
    (imports,) = re.findall(r'<script type="importmap">(.*?)</script>', page)
    named = [*re.findall(r'(?:href|src)="([^"#]+)"', page), *json.loads(imports)["imports"].values()]
    for script in site.glob("*.js"):
        named += re.findall(r'from "(\./[^"]+)"', script.read_text())
    named += re.findall(r'LOADER = "([^"]+)"', (site / "runtime.js").read_text())
    named += [f"samples/{name}" for name in re.findall(r'\["([\w-]+\.\w+)", "', (site / "trying.js").read_text())]
    for net in data["nets"]:
        named += [net["page"], *(file["path"] for file in net["files"])]
    assert len(named) > 30
    assert [name for name in named if not (site / name).is_file()] == []
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()} - {"gallery.json"}
    assert data["files"] == {name: hashlib.sha256((site / name).read_bytes()).hexdigest() for name in files}
    digest = base64.b64encode(hashlib.sha256(imports.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in page  # else the browser refuses the import map
    assert not re.findall(r"https?://(?!www\.w3\.org)", "".join(path.read_text() for path in site.glob("*.[hjc]*")))


def test_its_nets_give_the_published_ones_numbers(site, zoo, noise):
    net = next(net for net in data_of(site)["nets"] if net["name"] == NAME)
    browser, published = TFLiteModel(site / net["run"]["path"]), fnet.zoo.load(NAME, "tflite", zoo_dir=zoo)
    assert (browser.input_type, browser.output_type, browser.batch_size) == ("uint8", "uint8", 1)
    images = noise(20)
    logits = browser.predict(images)
    np.testing.assert_array_equal(logits, published.predict(images))
    assert (net["run"]["scale"], net["run"]["zero_point"] - 128) == published.output_quantization
    assert net["run"]["pixels"] is None  # a pixel is its own number
    assert net["layers"][0]["layer"] == "stem"


def test_its_zoo_is_one_and_nothing_in_it_names_this_machine(site, zoo):
    assert fnet.zoo.list(zoo_dir=site / "zoo") == fnet.zoo.list(zoo_dir=zoo)
    text = "".join(path.read_text() for path in site.rglob("*") if path.suffix in (".json", ".md", ".html", ".js"))
    assert not [name for name in (str(zoo), str(Path.home()), str(Path.cwd()), "/tmp/") if name in text]


def test_the_layers_of_a_net_without_a_plan_are_its_files(tmp_path):
    card, _ = find("baseline-resnet8-int8")
    (tmp_path / "zoo").mkdir()
    layers = gallery._net(card, None, tmp_path)["layers"]
    assert sum(layer["macs"] for layer in layers) == card.macs
    assert (layers[0]["kind"], layers[-1]["kind"], layers[-1]["output_shape"]) == ("conv", "dense", [10])


def test_a_gallery_is_replaced_and_other_files_are_not(site, zoo, runtime, tmp_path, fails):
    copy = shutil.copytree(site, tmp_path / "site")
    (copy / "nets" / f"{NAME}.tflite").unlink()
    build_gallery(copy, zoo_dir=zoo, runtime=runtime)
    assert data_of(copy) == data_of(site)
    (copy / "nets" / "mine.txt").touch()
    line = fails("gallery", "--zoo", zoo, "--runtime", runtime, "--out", copy)
    assert "holds other files (nets/mine.txt); give a new folder" in line
    (copy / "gallery.json").write_text("[]")
    with pytest.raises(FileExistsError, match=r"holds other files \(elements.js\)"):
        build_gallery(copy, zoo_dir=zoo, runtime=runtime)
    with pytest.raises(FileExistsError, match="is a file; give a folder"):
        build_gallery(copy / "index.html", zoo_dir=zoo, runtime=runtime)


def test_an_empty_zoo_and_a_missing_or_damaged_runtime_say_what_to_do(zoo, copy, runtime, tmp_path, fails, monkeypatch):
    (copy / "index.json").write_text('{"format": 1, "models": []}')
    assert "no models to show; `factorizenet publish`" in fails("gallery", "--zoo", copy, "--out", tmp_path / "site")
    named = r"npm pack @litertjs/core@2.5.3 @litertjs/wasm-utils@2.5.3` and give its folder by --runtime"
    assert named in fails("gallery", "--zoo", zoo, "--out", tmp_path / "site", "--runtime", tmp_path)
    (tmp_path / "litertjs-core-2.5.3.tgz").write_bytes(b"other")
    assert "is damaged: expected" in fails("gallery", "--zoo", zoo, "--out", tmp_path / "site", "--runtime", tmp_path)
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://127.0.0.1:9/mirror/")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    line = fails("gallery", "--zoo", zoo, "--out", tmp_path / "site", code=1)
    assert "http://127.0.0.1:9/mirror/@litertjs/core/-/core-2.5.3.tgz could not be fetched" in line
    assert named in line
    assert not (tmp_path / "site").exists()


def test_it_is_served_with_the_types_that_browsers_ask_for(site, monkeypatch):
    found, servers, make = [], [], gallery.ThreadingHTTPServer

    def kept(*arguments):
        servers.append(make(*arguments))
        return servers[-1]

    def look(url):
        def ask():
            for name in ("", "gallery.js", "runtime/core/litert_wasm_compat_internal.wasm", f"nets/{NAME}.tflite"):
                found.append(requests.get(url + name).headers["Content-Type"].partition(";")[0])
            servers[0].shutdown()

        threading.Thread(target=ask).start()

    monkeypatch.setattr(gallery, "ThreadingHTTPServer", kept)
    serve_gallery(site, port=0, started=look)
    assert found == ["text/html", "text/javascript", "application/wasm", "application/octet-stream"]
    with pytest.raises(OSError, match="port 70000 cannot be served on"):
        serve_gallery(site, port=70_000)
