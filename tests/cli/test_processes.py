"""Commands in processes of their own: what they load, and what else is on stderr."""

import subprocess
import sys
from pathlib import Path

import pytest


def in_a_process(*arguments, **options):
    command = [sys.executable, "-m", "factorizenet_tf.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, **options)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["levels"], ["describe", "--json"]])
def test_help_and_costs_load_neither_tensorflow_nor_pandas(arguments):
    code = f"""
import sys
from factorizenet_tf.cli import main
assert main({arguments!r}) == 0
heavy = {{"tensorflow", "tf_keras", "keras", "pandas", "sklearn", "ai_edge_litert"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_an_int8_model_is_evaluated_without_tensorflow(run):
    code = f"""
import sys
from factorizenet_tf.cli import main
assert main(["evaluate", {str(run.folder)!r}, "--dataset", "digits"]) == 0
assert "tensorflow" not in sys.modules
assert "ai_edge_litert" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_an_error_that_needed_tensorflow_is_the_only_line_of_its_process(tmp_path):
    result = in_a_process("evaluate", tmp_path / "none", "--dataset", "digits")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr == (
        f"error: no model at {tmp_path / 'none'}; give a .tflite, .h5 or .keras file, a run's folder, or a name of "
        "`factorizenet list`\n"
    )


def test_the_installed_command_passes_the_exit_code_on(tmp_path):
    script = Path(sys.executable).with_name("factorizenet")
    assert subprocess.run([script, "levels", "--width", "12"], capture_output=True).returncode == 2
    assert subprocess.run([script, "levels", "--json"], capture_output=True).returncode == 0
