"""Commands in processes of their own: what they load, and what else is on stderr."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(sys.executable).with_name("factorizenet")
NAME = "fnet-1x2.2x2-l1-x0.5-int8"


def test_help_costs_and_the_zoo_load_neither_tensorflow_nor_pandas(zoo):
    code = f"""
import sys, factorizenet_tf as fnet
from factorizenet_tf.cli import main
heavy = {{"tensorflow", "tf_keras", "keras", "pandas", "sklearn"}}
for arguments in ([], ["--help"], ["train", "--help"], ["levels"], ["describe", "--json"], ["list", "--zoo", {str(zoo)!r}]):
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
    command = [SCRIPT, "evaluate", tmp_path / "cut.keras", "--dataset", "digits"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith(f"error: {tmp_path / 'cut.keras'} is no model that tf_keras can load")


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["pre"], ["predict", "prepare"]),
        (["card", "fnet-1"], ["fnet-1x2.2x2-l1-x0.5-float", NAME]),
        (["predict", "--model", NAME[:-2]], [NAME]),
        (["train", "--fr"], ["--freeze", "--from"]),
    ],
)
def test_bash_completes_commands_options_and_names_of_nets_without_tensorflow(zoo, tmp_path, words, found):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('imported')")
    environment = os.environ | {"_FACTORIZENET_COMPLETE": "complete_bash", "FACTORIZENET_ZOO": str(zoo)}
    environment |= {"COMP_WORDS": " ".join(["factorizenet", *words]), "COMP_CWORD": str(len(words))}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = subprocess.run([SCRIPT], capture_output=True, text=True, env=environment)
    assert sorted(result.stdout.split()) == sorted(found)
    assert result.stderr == ""


def on_a_terminal(*command, columns=80):
    """What a command writes on a terminal of 80 columns."""
    parent, child = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [SCRIPT, *map(str, command)], stdout=child, stderr=subprocess.PIPE, env=environment
    ) as process:
        os.close(child)
        text = b""
        try:
            while part := os.read(parent, 65_536):
                text += part
        except OSError:  # so Linux says that the other end is closed
            pass
    os.close(parent)
    assert process.returncode == 0
    return text.decode().splitlines()


@pytest.mark.parametrize("command", ["list", "levels", "describe", "inspect fnet-l2-int8"])
def test_tables_fit_a_terminal_of_80_columns(command):
    lines = on_a_terminal(*command.split())
    assert sum(set(line) == {"-"} for line in lines) >= 1
    assert max(len(line) for line in lines if "  " in line or set(line) == {"-"}) <= 80  # a title the terminal folds
    assert not any("\x1b" in line for line in lines)
    assert command != "list" or sum(set(line) == {"-"} for line in lines) == 1
    assert command != "list" or {"bytes", "ram", "ratio", "val", "test"} <= set(" ".join(lines).split())


def test_a_card_is_laid_out_on_a_terminal_of_80_columns():
    lines = on_a_terminal("card", "fnet-l2-int8")
    assert max(map(len, lines)) <= 80
    assert not any(mark in line for line in lines for mark in ("\x1b", "| --", "```"))


@pytest.mark.slow  # TensorFlow is imported five times, and three nets are converted
def test_nothing_of_the_c_side_is_on_stderr_unless_asked_for(tmp_path):
    environment = {name: text for name, text in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    run = ["--dataset", "digits", "--size", 8, "--channels", 1, "--width", 8, "--stages", "1x2"]
    for command in (
        ["train", *run, "--epochs", 1, "--qat-epochs", 1, "--out", "run", "--quiet"],
        ["export", "run", "--tflite", "a.tflite", "--saved-model", "model"],
        ["quantize", "run/float.h5", "--dataset", "digits", "--method", "ptq", "--out", "ptq", "--quiet"],
        ["analyze", "run", "--quiet", "--calibration-images", 32, "--evaluation-images", 32],
        ["evaluate", "run"],
        ["doctor"],
        ["--verbose", "evaluate", "run/float.h5"],
    ):
        command = [SCRIPT, *map(str, command)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert ("oneDNN" in result.stderr) == ("--verbose" in command)
        assert (result.stderr == "") == ("--verbose" not in command)
