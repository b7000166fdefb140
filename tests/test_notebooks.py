"""The notebooks: what they show is of what they say, and they run from a wheel in an empty folder.

`python tests/test_notebooks.py notebooks` makes all outputs anew; `... notebooks 01_levels` those of one.
"""

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
MAX_BYTES = 300_000
# Paths and processors of the machine that it ran on.
ITS_OWN = re.compile(r"(?<![\w.>])/(home|tmp|root|work|usr|var|opt|Users)/|EPYC|Xeon|Intel|AMD")


def read(name, folder=ROOT / "notebooks"):
    return nbformat.read(folder / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def digest(notebook):
    """Of the code and, where that names the zoo, of what the zoo publishes; latencies are measured anew too often."""
    parts = [cell.source for cell in code(notebook)]
    if "zoo" in "".join(parts):
        stated = "name", "version", "macs", "size_bytes", "ram_bytes", "validation_accuracy", "accuracy"
        cards = json.loads((ROOT / "zoo" / "index.json").read_text())["models"]
        parts += [repr([card[key] for key in stated]) for card in cards]
    return hashlib.sha256("\n\0".join(parts).encode()).hexdigest()


def execute(name, out):
    """Run a notebook in an empty folder, write it with its outputs below `out`, print where its package lies."""
    notebook = read(name)
    for cell in code(notebook):
        cell.outputs, cell.execution_count = [], None
    where = nbformat.v4.new_code_cell("import factorizenet_tf\nprint(factorizenet_tf.__file__)")
    notebook.cells.append(where)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        nbclient.NotebookClient(
            notebook, timeout=300, record_timing=False, coalesce_streams=True, resources=resources
        ).execute()
        assert set(os.listdir(folder)) <= {"runs"}
    print(notebook.cells.pop().outputs[0].text, end="")
    notebook.metadata["outputs_of"] = digest(notebook)
    nbformat.write(notebook, Path(out) / f"{name}.ipynb")


@pytest.mark.parametrize("name", NAMES)
def test_the_outputs_are_those_of_the_code_and_of_no_machine(name):
    notebook, cells = read(name), code(read(name))
    assert notebook.metadata["outputs_of"] == digest(notebook)
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"display_data", "execute_result", "stream"}
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    text = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
    assert ITS_OWN.findall(text) == []
    assert len(text.encode()) < MAX_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_with_what_it_needs_and_how_long_it_takes_and_says_so_where_it_is_not_there(name, monkeypatch):
    notebook = read(name)
    opening, first = notebook.cells[0].source, code(notebook)[0].source
    assert opening.startswith("# ")
    assert "**Which question this answers:** " in opening
    assert re.search(r"\*\*Takes:\*\* about .* on one core", opening)
    (extras,) = re.findall(r"\*\*Needs:\*\* the package with its extras? (.*?) \(\[install\]", opening)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError) as caught:
        exec(first, {})
    assert str(caught.value).startswith("this notebook needs ")
    assert str(caught.value).endswith(f": pip install 'factorizenet_tf[{','.join(re.findall('`(.*?)`', extras))}]'")


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """A new environment's Python: the package from its wheel, what it needs from this environment."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps"]
    subprocess.run([*install, wheel], check=True, env=without_checkout())
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(f"{Path(pytest.__file__).parents[1]}\n")
    return python


def without_checkout():
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_a_wheel_in_an_empty_folder(name, python, tmp_path):
    environment = without_checkout() | {"FACTORIZENET_CACHE": str(tmp_path / "cache")}
    result = subprocess.run([python, __file__, tmp_path, name], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(python.parents[1]))
    assert os.listdir(tmp_path) == [f"{name}.ipynb"]  # nor is anything in the cache
    cells = code(read(name, tmp_path))
    assert not [output.text for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    stable = [number for number, cell in enumerate(cells) if "stable" in cell.metadata.get("tags", ())]
    assert stable
    for number in stable:
        assert cells[number].outputs == code(read(name))[number].outputs, cells[number].source


if __name__ == "__main__":
    for name in sys.argv[2:] or NAMES:
        execute(name, sys.argv[1])
