import csv
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
import typer

import factorizenet_tf as fnet
from factorizenet_tf.cli import app

ROOT = Path(__file__).parent.parent


def test_every_export_resolves_and_a_typo_does_not():
    assert all(getattr(fnet, name) is not None for name in fnet.__all__)
    assert set(fnet.__all__) <= set(dir(fnet))
    with pytest.raises(AttributeError, match="attribute trian"):
        _ = fnet.trian
    assert fnet.__version__ == importlib.metadata.version("factorizenet_tf")


def test_only_the_package_is_a_package():
    for folder in ("zoo", "tuner", "tests", "notebooks"):
        assert (ROOT / folder).is_dir()
        assert not list((ROOT / folder).rglob("__init__.py"))
    assert not list((ROOT / "zoo").rglob("*.py"))
    assert "[project]" not in (ROOT / "pyproject.toml").read_text()


@pytest.mark.slow
def test_the_quick_start_notebook_runs(tmp_path):
    notebook = nbformat.read(ROOT / "notebooks" / "quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "fnet-l2 of levels 0 to" in text
    assert "median_ms" in text


@pytest.mark.slow
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


def test_each_command_option_and_make_target_of_the_readme_exists():
    commands = typer.main.get_command(app).commands
    readme = (ROOT / "README.md").read_text()
    lines = re.findall(r"^(?:\w+=\S+ )*factorizenet (\w+) ([^#\n]*)", readme, re.MULTILINE)
    assert {name for name, _ in lines} == set(commands)
    used = {(name, option) for name, rest in lines for option in re.findall(r"--[\w-]+", rest)}
    assert ("train", "--out") in used
    assert used <= {(name, option) for name, command in commands.items() for p in command.params for option in p.opts}
    targets = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"^make (\w+)", readme, re.MULTILINE)) <= targets
