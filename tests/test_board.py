"""What a board needs: the commands of a net that run without TensorFlow, and the small install that they run in."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
REQUIREMENTS = ROOT / "factorizenet_tf" / "requirements-board.txt"
HEAVY = ("tensorflow", "tf_keras", "keras_tuner", "tensorflow_datasets", "pandas", "h5py", "sklearn")
COMMANDS = (
    "list",
    "card fnet-l2-int8",
    "predict image.png --model fnet-l2-int8",
    "export fnet-l2-int8 --tflite net.tflite",
    "latencies net.tflite --out table.json",
    "inspect net.tflite",
    "slim net.tflite slim.tflite",
    "export net.tflite --tflite fast.tflite --regroup fastest --latencies table.json",
)


@pytest.fixture
def board(tmp_path):
    """An empty folder with an image."""
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "image.png")
    return tmp_path


def test_the_commands_of_a_board_load_no_tensorflow(run, board):
    commands = [*COMMANDS, f"export {run.folder} --micro run --tflite run.tflite", f"evaluate {run.folder}"]
    code = f"""
import sys
import factorizenet_tf as fnet
loaded = lambda: [name for name in {HEAVY!r} if name in sys.modules]
assert fnet.zoo.list() and fnet.zoo.load("fnet-l2-int8", format="tflite").labels and not loaded(), loaded()
from factorizenet_tf.cli import main
for command in {commands!r}:
    assert main(command.split()) == 0, command
    assert set(loaded()) <= ({{"sklearn", "pandas"}} if command[:8] == "evaluate" else set()), (command, loaded())
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=board, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_the_boards_requirements_are_the_packages_own_with_the_same_bounds():
    lines = [line for line in REQUIREMENTS.read_text().splitlines() if line[0] != "#"]
    own = (ROOT / "setup.py").read_text()
    assert [line for line in lines if f'"{line}"' not in own] == []
    assert not any(heavy in line for line in lines for heavy in ("tensorflow", "keras", "pandas"))


@pytest.mark.slow
def test_the_small_install_has_no_tensorflow_and_runs_the_commands(board, wheel):
    venv.create(board / "venv", with_pip=True)
    python = board / "venv" / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*arguments):
        result = subprocess.run(list(map(str, arguments)), cwd=board, env=clean, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    call(*install, "--no-deps", wheel)
    find = "import importlib.util as u; print(*u.find_spec('factorizenet_tf').submodule_search_locations)"
    assert find in (ROOT / "docs" / "litert.md").read_text()
    call(*install, "-r", Path(call(python, "-c", find).strip()) / "requirements-board.txt")
    installed = call(python, "-m", "pip", "list", "--format=freeze")
    assert "factorizenet" in installed
    assert not any(name in installed.lower().replace("-", "_") for name in ("tensorflow", *HEAVY))
    for command in COMMANDS:
        call(board / "venv" / "bin" / "factorizenet", *command.split())
    assert (board / "fast.tflite").stat().st_size >= (board / "net.tflite").stat().st_size
