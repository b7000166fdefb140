import csv
import importlib.metadata
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nbclient
import nbformat
import pytest

import factorizenet_tf as fnet

ROOT = Path(__file__).parent.parent


def test_importing_the_package_loads_neither_tensorflow_nor_pandas():
    code = "import sys, factorizenet_tf as f; f.ModelSpec(2); assert not {'tensorflow', 'pandas', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_export_resolves_and_a_typo_does_not():
    assert all(getattr(fnet, name) is not None for name in fnet.__all__)
    assert set(fnet.__all__) <= set(dir(fnet))
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = fnet.trian
    assert fnet.__version__ == importlib.metadata.version("factorizenet_tf")


def test_only_the_package_is_a_package():
    for folder in ("zoo", "tuner", "tests", "notebooks"):
        assert (ROOT / folder).is_dir()
        assert not list((ROOT / folder).rglob("__init__.py"))
    assert not list((ROOT / "zoo").rglob("*.py"))
    assert "[project]" not in (ROOT / "pyproject.toml").read_text()


def test_the_wheel_has_the_package_and_the_zoo_and_works_elsewhere(tmp_path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        "--wheel-dir",
        tmp_path,
        ROOT,
    ]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"factorizenet_tf/py.typed", "factorizenet_tf/_zoo/index.json", "factorizenet_tf/cli.py"} <= set(names)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"factorizenet_tf"}
    assert not [name for name in names if "_zoo" in name and name.endswith(".py")]
    target = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(target)
    code = "import factorizenet_tf as f; print(f.__file__, f.__version__, f.count_macs(f.ModelSpec(2)))"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith(str(target))
    requirements = importlib.metadata.requires("factorizenet_tf")
    needed = {re.split(r"[><=; ]", line)[0] for line in requirements if "extra ==" not in line}
    users = {"tensorflow", "tensorflow-model-optimization", "keras-tuner", "tensorflow-datasets"}
    assert users | {"tf_keras", "ai-edge-litert"} <= needed
    assert set(importlib.metadata.metadata("factorizenet_tf").get_all("Provides-Extra")) == {
        "report",
        "serve",
        "micro",
        "test",
    }


def test_each_command_of_the_readme_exists():
    from factorizenet_tf.cli import app

    known = {command.callback.__name__ for command in app.registered_commands}
    readme = (ROOT / "README.md").read_text()
    used = set(re.findall(r"^factorizenet (\w+)", readme, re.MULTILINE))
    assert used == known
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"^make (\w+)", readme, re.MULTILINE)) <= targets


def test_the_quick_start_notebook_runs(tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "fnet-l2 of levels 0 to" in text
    assert "median_ms" in text


def test_the_levels_script_compares_precisions_and_continues(tmp_path):
    command = [sys.executable, ROOT / "tuner" / "levels.py", "--levels", "0,2", "--epochs", "1", "--qat-epochs", "1"]
    command += ["--width", "8", "--out", tmp_path]
    for _ in range(2):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    rows = list(csv.DictReader((tmp_path / "levels.csv").read_text().splitlines()))
    assert [row["level"] for row in rows] == ["0", "2"]
    assert {"float", "ptq_per_tensor", "ptq_per_channel", "qat", "tflite"} <= set(rows[0])
    assert (tmp_path / "levels.png").read_bytes().startswith(b"\x89PNG")
    assert fnet.Int8Model(tmp_path / f"{rows[0]['name']}-int8.tflite").num_classes == 10
