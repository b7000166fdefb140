import json
import os
import shutil
import subprocess
import sys

import pytest

import factorizenet_tf as fnet
from factorizenet_tf.cli import main

NAME = "fnet-1x2.2x2-l1-x0.5-int8"


@pytest.fixture
def says(capsys):
    """Runs a command that ends with a code, and gives its stdout, or its one line on stderr where it fails."""

    def call(*arguments, code=0):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == code
        out, err = capsys.readouterr()
        if not code:
            return out
        assert (out, err.count("\n"), err[:7]) == ("", 1, "error: ")
        return err

    return call


def test_list_prints_the_models_within_the_limits(says, zoo):
    def rows(*options):
        return json.loads(says("list", "--zoo", zoo, *options, "--json"))

    float_row, int8_row = rows()
    assert (float_row["precision"], int8_row["name"], int8_row["zoo"]) == ("float", NAME, str(zoo))
    assert rows("--precision", "float") == [float_row]
    assert rows("--max-macs", 1) == []
    for macs in ("12.5e6", "12.5M", "12500k", 12_500_000):
        assert rows("--best", "--max-macs", macs) == [int8_row]
    assert NAME in says("list", "--zoo", zoo)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-macs", "-1"], "'-1' is no amount; give a whole number above 0, e.g. 12500000, 12.5e6, 12.5M or 100k"),
        (["--max-ram-bytes", "many"], "'many' is no amount"),
        (["--max-latency-ms", "-1"], "max_latency_ms is -1.0; it must be above 0"),
        (["--best", "--max-size-bytes", "0"], "'0' is no amount"),
    ],
)
def test_a_limit_that_is_none_is_refused(says, zoo, options, message):
    assert message in says("list", "--zoo", zoo, *options, code=2)


def test_card_prints_the_page_and_the_entry(says, zoo):
    assert says("card", NAME, "--zoo", zoo).strip() == (zoo / "cards" / f"{NAME}.md").read_text().strip()
    entry = json.loads((zoo / "index.json").read_text())["models"][1]
    assert json.loads(says("card", NAME, "--zoo", zoo, "--json")) == entry
    assert f"did you mean '{NAME}'" in says("card", NAME.upper(), "--zoo", zoo, code=2)


def test_verify_exits_1_where_a_model_is_not_what_its_card_says(says, zoo, tmp_path, capsys):
    assert "1 models, " in says("verify", NAME, "--zoo", zoo, "--quiet")
    copy = shutil.copytree(zoo, tmp_path / "zoo")
    path = copy / fnet.zoo.card(NAME, zoo_dir=copy).file("tflite").path
    path.write_bytes(path.read_bytes() + b"more")
    assert main(["verify", "--all", "--zoo", str(copy), "--quiet"]) == 1
    assert f"1 of 2 models are not what their cards say: {NAME}" in capsys.readouterr().err


def test_verify_and_publish_say_what_they_need(says, run, zoo, tmp_path):
    assert "give names of models, or --all" in says("verify", code=2)
    assert "give the runs' folders and --zoo FOLDER" in says("publish", run.folder, code=2)
    assert "no finished run" in says("publish", tmp_path, "--zoo", tmp_path / "zoo", "--quiet", code=2)
    said = says("publish", run.folder, "--zoo", "https://example.com/zoo", "--quiet", code=2)
    assert "https://example.com/zoo; publish into a folder" in said
    said = says("publish", run.folder, "--zoo", zoo, "--quiet", code=2)
    assert f"this run is published already, as {run.spec.name}-int8@1" in said
    twice = says("publish", run.folder, run.folder, "--zoo", zoo, "--name", "mine", code=2)
    assert "--name mine is for one run, not 2" in twice


def test_another_zoos_trouble_is_one_line_on_stderr(tmp_path):
    command = [sys.executable, "-m", "factorizenet_tf.cli", "list", "--best", "--dataset", "cifar10"]
    environment = os.environ | {"FACTORIZENET_ZOO": str(tmp_path / "my-zo")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0
    assert "fnet-l" in result.stdout
    assert result.stderr.startswith("warning: FACTORIZENET_ZOO is left out: no zoo in ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "--all", "--precision", "float32"], "precision is 'float32'; it must be float or int8"),
        (["verify", "fnet-l2-int8", "--precision", "float"], "--precision is for --all"),
        (["list", "--best", "--all-versions"], "--best looks at the newest versions"),
        (["publish", "--latencies", "--zoo", "z", "--licence", "MIT"], "--licence is for runs"),
    ],
)
def test_an_option_that_would_have_no_effect_is_refused(says, arguments, message):
    assert message in says(*arguments, code=2)
