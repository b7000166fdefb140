import json
import os
import subprocess
import sys

import pytest

import factorizenet_tf as fnet
from factorizenet_tf.cli import main

NAME = "fnet-1x2.2x2-l1-x0.5-int8"


def test_list_prints_the_models_within_the_limits(prints_json, succeeds, zoo):
    def rows(*options):
        return prints_json("list", "--zoo", zoo, *options)

    float_row, int8_row = rows()
    assert (float_row["precision"], int8_row["name"], int8_row["zoo"]) == ("float", NAME, str(zoo))
    assert rows("--precision", "float") == [float_row]
    assert rows("--max-macs", 1) == []
    assert f"within 1 MACs; the smallest is {NAME[:-5]}" in succeeds("list", "--zoo", zoo, "--max-macs", 1)
    for macs in ("12.5e6", "12.5M", "12500k", 12_500_000):
        assert rows("--best", "--max-macs", macs) == [int8_row]
    assert NAME in succeeds("list", "--zoo", zoo)


def test_card_prints_the_page_and_the_entry(prints_json, succeeds, zoo):
    page, picture = (zoo / "cards" / f"{NAME}.md").read_text().split("\n![confusion matrix]")
    assert succeeds("card", NAME, "--zoo", zoo).strip() == page.strip()
    assert picture == f"({NAME}.svg)\n"
    assert prints_json("card", NAME, "--zoo", zoo) == json.loads((zoo / "index.json").read_text())["models"][1]


def test_verify_exits_1_where_a_file_is_damaged_and_runs_nothing_of_it(copy, capsys):
    path = copy / fnet.zoo.card(NAME, zoo_dir=copy).file("tflite").path
    path.write_bytes(path.read_bytes() + b"more")
    assert main(["verify", NAME, "--zoo", str(copy), "--quiet"]) == 1
    out, err = capsys.readouterr()
    assert "1 models, 3 of 4 checks passed" in out  # the files' own
    assert f"1 of 1 models are not what their cards say: {NAME}" in err


def test_verify_says_how_many_accuracies_it_left_out(copy, capsys, monkeypatch):
    text = (copy / "index.json").read_text().replace('"dataset_name": "digits"', '"dataset_name": "gtsrb"')
    (copy / "index.json").write_text(text)
    monkeypatch.delenv("FACTORIZENET_GTSRB", raising=False)
    assert main(["verify", "--all", "--zoo", str(copy)]) == 0
    out, err = capsys.readouterr()
    assert "checks passed; accuracy of 2 not checked: " in out.splitlines()[-1]
    assert "FACTORIZENET_GTSRB is not set" in out.splitlines()[-1]
    assert err.count(": passed, accuracy not checked\n") == 2


def test_another_zoos_trouble_is_one_line_on_stderr(tmp_path):
    command = [sys.executable, "-m", "factorizenet_tf.cli", "list", "--best", "--dataset", "cifar10"]
    environment = os.environ | {"FACTORIZENET_ZOO": str(tmp_path / "my-zo")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (result.returncode, result.stderr.count("\n")) == (0, 1)
    assert "fnet-" in result.stdout
    assert result.stderr.startswith("warning: FACTORIZENET_ZOO is left out: no zoo in ")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("list --max-macs -1", "'-1' is no amount; give a whole number above 0, e.g. 12500000, 12.5e6, 12.5M or 100k"),
        ("list --max-latency-ms -1", "--max-latency-ms is -1.0; it must be above 0"),
        ("list --best --all-versions", "--best looks at the newest versions"),
        ("verify", "give names of models, or --all"),
        ("verify --all --precision float32", "precision is 'float32'; it must be float or int8"),
        ("verify fnet-l2-int8 --precision float", "--precision is for --all"),
        (f"verify {NAME} --zoo ZOO --data-dir here", "digits is none of its sets; leave it out"),
        ("publish RUN", "give the runs' folders and --zoo FOLDER"),
        ("publish nowhere --zoo new", "no finished run in nowhere"),
        ("publish RUN --zoo https://example.com/zoo", "https://example.com/zoo; publish into a folder"),
        ("publish RUN --zoo ZOO --quiet", f"this run is published already, as {NAME}@1"),
        ("publish RUN RUN --zoo ZOO --name mine", "--name mine is for one run, not 2"),
        ("publish --latencies --zoo z --licence MIT", "--licence is for runs"),
    ],
)
def test_what_cannot_be_done_is_one_line_with_the_remedy(fails, run, zoo, command, message):
    places = {"RUN": run.folder, "ZOO": zoo}
    assert message in fails(*(places.get(word, word) for word in command.split()))
