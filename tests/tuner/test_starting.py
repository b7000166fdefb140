import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "tuner" / "starting.py"


@pytest.fixture
def starting(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import starting

    monkeypatch.setattr(starting, "RESULTS", tmp_path / "starting.csv")
    return starting


def test_few_images_a_class_are_cut_for_training_and_validation_and_the_test_split_stays(starting, digits):
    cut = starting.few(digits, 3)
    assert np.bincount(cut.train.labels).tolist() == np.bincount(cut.validation.labels).tolist() == [3] * 10
    assert cut.test is digits.test
    assert cut.sha256 != digits.sha256


def test_each_net_is_trained_from_its_weights_and_from_nothing_and_a_set_that_is_not_here_is_said(
    starting, digits, run, monkeypatch, tmp_path, capsys
):
    trained = []

    def train(spec, data, *, out, recipe, initial, freeze):
        trained.append((spec.input_shape, initial, freeze, recipe.seed, out.name))
        values = {"float": 0.5 + recipe.seed / 10, "tflite": 0.4 + recipe.seed / 10}
        return SimpleNamespace(metrics={"macs": 7, "accuracy": {"validation": values, "test": values}})

    monkeypatch.setattr(starting.fnet, "train", train)
    monkeypatch.setattr(starting, "SHAPE", digits.image_shape)
    monkeypatch.setitem(starting.SETS, "gtsrb", lambda arguments: digits)
    chosen = ["--sets", "signs", "gtsrb", "--epochs", "2", "--seeds", "2", "--freeze", "1"]
    starting.main(["--start", f"small={run.folder}", "--out", str(tmp_path), *chosen])
    name = run.spec.name
    assert trained == [
        ((16, 16, 1), None, 0, 0, f"{name}-nothing-f0-e2-s0"),
        ((16, 16, 1), None, 0, 1, f"{name}-nothing-f0-e2-s1"),
        ((16, 16, 1), str(run.folder), 1, 0, f"{name}-small-f1-e2-s0"),
        ((16, 16, 1), str(run.folder), 1, 1, f"{name}-small-f1-e2-s1"),
    ]
    rows = list(csv.DictReader((tmp_path / "starting.csv").read_text().splitlines()))
    assert [(row["set"], row["start"], row["test_int8"]) for row in rows[1:3]] == [
        ("gtsrb", "nothing", "0.5"),
        ("gtsrb", "small", "0.4"),
    ]
    said = capsys.readouterr().out
    assert "signs left out: give --signs" in said
    assert "45.00%" in said
