"""Commands in processes of their own: what they load, and what else is on stderr."""

import subprocess
import sys
from pathlib import Path


def test_help_and_costs_load_neither_tensorflow_nor_pandas():
    code = """
import sys
from factorizenet_tf.cli import main
for arguments in (["--help"], ["train", "--help"], ["levels"], ["describe", "--json"]):
    assert main(arguments) == 0
    heavy = {"tensorflow", "tf_keras", "keras", "pandas", "sklearn", "ai_edge_litert"} & set(sys.modules)
    assert not heavy, (arguments, heavy)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_an_error_that_needed_tensorflow_is_the_only_line_of_the_installed_command(tmp_path):
    (tmp_path / "cut.keras").write_bytes(b"no archive")
    script = Path(sys.executable).with_name("factorizenet")
    command = [script, "evaluate", tmp_path / "cut.keras", "--dataset", "digits"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"error: {tmp_path / 'cut.keras'} is no model that tf_keras can load")
