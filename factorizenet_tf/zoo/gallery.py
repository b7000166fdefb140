"""A zoo as a static page: frontier, cards and layers of its nets, which run in the reader's browser by LiteRT.js."""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata, resources
from pathlib import Path

import numpy as np

from ..cost import cost_rows
from ..files import atomic_folder, cache_folder
from ..spec import ModelSpec
from ..tflite.flatbuffer import read_flatbuffer
from ..tflite.inspect import operator_rows
from ..tflite.int8_model import quantize_pixels
from ..tflite.io_types import with_browser_io
from .cards import Card, Cards, index_to_json
from .catalog import find
from .catalog import list as list_cards
from .pages import card_page
from .store import INDEX_FILE, fetch

__all__ = ["build_gallery", "serve_gallery"]

DATA_FILE = "gallery.json"
REGISTRY_VARIABLES = ("NPM_CONFIG_REGISTRY", "npm_config_registry")
REGISTRY = "https://registry.npmjs.org"
WASM = "wasm/litert_wasm_compat_internal"  # the build that needs neither threads nor relaxed SIMD, which Safari lacks
VERSION = "2.5.3"
RUNTIME = {  # the packages @litertjs/...: the SHA-256 of what `npm pack` gives, and the files of it that the page loads
    "core": (
        "a97660833e9e7e1063c95e12016718881240b14f7438728a2f62785e912d30fd",
        ("package.json", "dist/index.js", f"{WASM}.js", f"{WASM}.wasm"),
    ),
    "wasm-utils": ("ce2a1f8379c067be49e59752e5a7f40db6be09f6e497f0f11e59f17b515366a7", ("dist/index.js",)),
}
TYPES = {  # the system's own table may lack them
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".wasm": "application/wasm",
}
NUMBERS = (
    *("macs", "params", "size_bytes", "ram_bytes", "latency_ms", "latency_ratio", "validation_accuracy", "accuracy"),
    *("dataset", "dataset_name", "class_names", "accuracies", "agreement", "latency_machine", "command", "licence"),
    *("published", "reference"),
)


def build_gallery(
    out: str | os.PathLike, *, zoo_dir: str | os.PathLike | None = None, runtime: str | os.PathLike | None = None
) -> Cards:
    """Write the page of a zoo's newest models to a folder for any static web server; give the models' cards.

    The folder has everything that the page loads, and in `zoo/` the models as a zoo of their own. An existing gallery is
    replaced.

    Args:
        out: the folder.
        zoo_dir: as for `zoo.list`.
        runtime: a folder with LiteRT.js as `npm pack` writes it; None fetches it once from npm's registry, or the one that
            NPM_CONFIG_REGISTRY names.

    Raises:
        FileExistsError: the folder holds other files.
        FileNotFoundError: `runtime` lacks a file; or as for `zoo.list`.
        ConnectionError: LiteRT.js or a zoo cannot be fetched.
        ValueError: the zoo is empty, or a file is damaged.
    """
    out = Path(out).expanduser().resolve()
    _check_out(out)
    cards = list_cards(zoo_dir=zoo_dir)
    if not cards:
        raise ValueError("the zoo has no models to show; `factorizenet publish` adds a trained run")
    with atomic_folder(out) as folder:
        with resources.as_file(resources.files(__package__) / "gallery_page") as page:
            shutil.copytree(page, folder, dirs_exist_ok=True)
        for package, (sha256, files) in RUNTIME.items():
            (folder / "runtime" / package).mkdir(parents=True)
            with tarfile.open(fileobj=io.BytesIO(_tarball(package, sha256, runtime))) as archive:
                for name in files:
                    content = archive.extractfile(f"package/{name}").read()
                    (folder / "runtime" / package / name.rpartition("/")[2]).write_bytes(content)
        nets = [_net(card, zoo_dir, folder) for card in cards]
        (folder / "zoo" / INDEX_FILE).write_text(index_to_json(cards), encoding="utf-8")
        written = sorted(path for path in folder.rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): _sha256(path.read_bytes()) for path in written}
        data = {"version": metadata.version("factorizenet_tf"), "nets": nets, "files": files}
        (folder / DATA_FILE).write_text(json.dumps(data, separators=(",", ":")), encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
    return cards


def serve_gallery(folder: str | os.PathLike, *, port: int = 8000, started: Callable[[str], None] | None = None) -> None:
    """Serve a folder on 127.0.0.1 until Ctrl-C; port 0 takes a free one, and `started` is called with the address.

    Raises:
        OSError: the port is taken.
    """
    handler = functools.partial(_Handler, directory=os.fspath(folder))
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    except (OSError, OverflowError) as error:
        raise OSError(f"port {port} cannot be served on ({error}); give another by --port") from None
    with server:
        if started is not None:
            started(f"http://127.0.0.1:{server.server_port}/")
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = TYPES

    def end_headers(self):
        self.send_header("Cache-Control", "no-cache")  # a gallery that was built again is seen at once
        super().end_headers()

    def log_message(self, *_):
        """Say nothing of each request."""


def _check_out(out) -> None:
    """Raise where the folder holds what no gallery wrote."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; give a folder")
    try:
        own = {DATA_FILE, *json.loads((out / DATA_FILE).read_text(encoding="utf-8"))["files"]}
        found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    except (OSError, ValueError, TypeError, KeyError):  # no gallery: nothing in it is ours
        own, found = set(), {path.name for path in out.iterdir()} if out.exists() else set()
    if other := sorted(found - own):
        raise FileExistsError(f"{out} holds other files ({other[0]}); give a new folder, or remove them")


def _tarball(package, sha256, runtime) -> bytes:
    """Read a package of LiteRT.js from a folder, or fetch it; its content is what the hash says."""
    packages = " ".join(f"@litertjs/{name}@{VERSION}" for name in RUNTIME)
    remedy = f"run `npm pack {packages}` and give its folder by runtime="
    if runtime is None:
        registry = next(filter(None, map(os.environ.get, REGISTRY_VARIABLES)), REGISTRY).rstrip("/")
        url = f"{registry}/@litertjs/{package}/-/{package}-{VERSION}.tgz"
        try:
            return fetch(url, cache_folder() / "files" / sha256, sha256).read_bytes()
        except ConnectionError as error:
            raise ConnectionError(f"{error}; or where there is a network {remedy}") from None
        except ValueError:
            raise ValueError(f"{url} has other content than LiteRT.js {VERSION}; {remedy}") from None
    path = Path(runtime).expanduser() / f"litertjs-{package}-{VERSION}.tgz"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; {remedy}")
    content = path.read_bytes()
    if _sha256(content) != sha256:
        raise ValueError(f"{path} is damaged: expected SHA-256 {sha256}, found {_sha256(content)}; {remedy}")
    return content


def _net(card: Card, zoo_dir, folder: Path) -> dict:
    """Copy a model's files and page; give what the page says of it, with the file that the browser runs."""
    card, store = find(card.reference, zoo_dir)
    for file in card.files:
        target = folder / "zoo" / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(store.path(file).read_bytes())
    page = f"zoo/cards/{card.name}.md"
    (folder / page).parent.mkdir(exist_ok=True)
    (folder / page).write_text(card_page(card), encoding="utf-8")
    files = [dataclasses.asdict(file) | {"path": f"zoo/{file.path}"} for file in card.files]
    net = {"name": card.name, "precision": card.precision, "level": card.level_text, "page": page, "files": files}
    net |= {field: getattr(card, field) for field in NUMBERS}
    net |= {"input_shape": card.spec.input_shape, "layers": [], "resize": card.reading.get("resize", "stretch")}
    if isinstance(card.spec, ModelSpec):
        net["layers"] = [row._asdict() for row in cost_rows(card.spec)]
    return net | (_int8(card, folder, net["layers"]) if card.precision == "int8" else {})


def _int8(card, folder, layers) -> dict:
    """Write an int8 model's file for the browser; give how its numbers are to be read, and its layers."""
    content = with_browser_io((folder / "zoo" / card.file("tflite").path).read_bytes())
    path = folder / "nets" / f"{card.name}.tflite"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    model = read_flatbuffer(content)
    graph = model.subgraphs[0]
    logits = graph.tensors[graph.outputs[0]].quantization
    numbers = quantize_pixels(np.arange(256, dtype=np.uint8), (card.input_scale, card.input_zero_point))
    pixels = numbers.astype(int) + 128
    run = {"path": f"nets/{path.name}", "pixels": None if (pixels == range(256)).all() else pixels.tolist()}
    run |= {"scale": float(logits.scale[0]), "zero_point": int(logits.zeroPoint[0])}
    if not layers:
        names = {"CONV_2D": "conv", "DEPTHWISE_CONV_2D": "depthwise", "FULLY_CONNECTED": "dense"}
        layers = [
            {"layer": f"{row['operator']} {row['place'][1]}", "kind": names.get(row["operator"], row["operator"])}
            | {"groups": row["groups"], "output_shape": row["output_shape"][1:], "macs": row["macs"]}
            | {"weight_bytes": row["constant_bytes"]}
            for row in operator_rows(model)
            if row["macs"]
        ]
    return {"run": run, "layers": layers}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
