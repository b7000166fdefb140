"""Commands in processes of their own: what they load, and what else is on stderr."""

import subprocess
import sys
from pathlib import Path

NAME = "fnet-1x2.2x2-l1-x0.5-int8"


def test_help_costs_and_the_zoo_load_neither_tensorflow_nor_pandas(zoo):
    code = f"""
import sys, factorizenet_tf as fnet
from factorizenet_tf.cli import main
heavy = {{"tensorflow", "tf_keras", "keras", "pandas", "sklearn"}}
for arguments in (["--help"], ["train", "--help"], ["levels"], ["describe", "--json"], ["list", "--zoo", {str(zoo)!r}]):
    assert main(arguments) == 0
    assert not (heavy | {{"ai_edge_litert"}}) & set(sys.modules), arguments
fnet.zoo.best(zoo_dir={str(zoo)!r}), fnet.zoo.card({NAME!r}, zoo_dir={str(zoo)!r})
for format in ("tflite", "path", "saved_model"):
    fnet.zoo.load({NAME!r}, format, zoo_dir={str(zoo)!r})
assert not heavy & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_an_error_that_needed_tensorflow_is_the_only_line_of_the_installed_command(tmp_path):
    (tmp_path / "cut.keras").write_bytes(b"no archive")
    script = Path(sys.executable).with_name("factorizenet")
    command = [script, "evaluate", tmp_path / "cut.keras", "--dataset", "digits"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"error: {tmp_path / 'cut.keras'} is no model that tf_keras can load")
