import os
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as file:
        return file.namelist()


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else_of_the_checkout(names):
    files = [path.relative_to(ROOT) for path in (ROOT / "factorizenet_tf").rglob("*") if path.is_file()]
    package = {path.as_posix() for path in files if "__pycache__" not in path.parts}
    assert {"factorizenet_tf/zoo/catalog.py", "factorizenet_tf/__init__.pyi", "factorizenet_tf/py.typed"} < package
    assert package == {name for name in names if name.startswith("factorizenet_tf/") and "/_zoo/" not in name}
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"factorizenet_tf"}


def test_the_zoo_is_in_it_as_data(names):
    files = [path.relative_to(ROOT / "zoo") for path in (ROOT / "zoo").rglob("*") if path.is_file()]
    published = {path.as_posix() for path in files if not any(part.startswith(".") for part in path.parts)}
    assert {"index.json", "README.md", "frontier.svg", "cards/fnet-l2-int8.md"} < published
    assert sum(name.endswith(".tflite") for name in published) >= 2
    assert {f"factorizenet_tf/_zoo/{name}" for name in published} == {n for n in names if "/_zoo/" in n}


def test_its_metadata_has_the_requirements_the_extras_and_the_pythons(wheel, names):
    with zipfile.ZipFile(wheel) as file:
        metadata = message_from_bytes(file.read(next(n for n in names if n.endswith(".dist-info/METADATA"))))
        scripts = file.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    requirements = metadata.get_all("Requires-Dist")
    for name in ("tensorflow", "tensorflow-model-optimization", "keras-tuner", "tensorflow-datasets"):
        assert any(line.startswith(f"{name}>=") and "extra" not in line for line in requirements), name
    for name in ("tf_keras", "ai-edge-litert"):
        assert any(line.replace("-", "_").startswith(f"{name.replace('-', '_')}>=") for line in requirements), name
    assert set(metadata.get_all("Provides-Extra")) == {"browser", "docs", "micro", "ray", "report", "serve", "test"}
    assert set(metadata["Requires-Python"].split(",")) == {">=3.11", "<3.14"}
    assert metadata["License"] == "Apache-2.0" or metadata["License-Expression"] == "Apache-2.0"
    assert (ROOT / "README.md").read_text(encoding="utf-8").strip()[:500] in metadata.get_payload(decode=True).decode()
    assert "factorizenet = factorizenet_tf.cli:main" in scripts


def test_it_works_where_the_checkout_is_not(wheel, tmp_path):
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    subprocess.run([*install, "--no-deps", "--target", target, wheel], check=True, capture_output=True)
    code = """
import importlib.resources, json, sys
import numpy
import factorizenet_tf as fnet
from factorizenet_tf.cli import main
index = importlib.resources.files("factorizenet_tf._zoo").joinpath("index.json").read_text()
net = fnet.zoo.load("fnet-l2-int8", "tflite")
assert net.predict(numpy.zeros((1, 32, 32, 3), numpy.uint8)).shape == (1, 10)
print(json.dumps([fnet.__file__, json.loads(index)["format"], fnet.count_macs(fnet.ModelSpec(0)), main(["--help"])]))
"""
    environment = os.environ | {"PYTHONPATH": str(target)}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    where = str(target / "factorizenet_tf" / "__init__.py")
    assert result.stdout.splitlines()[-1].startswith(f'["{where}", 1, ')
    assert result.stdout.splitlines()[-1].endswith(", 0]")
