import contextlib
import csv
import importlib.util
import json
import sys

import numpy as np
import pytest
from filelock import FileLock
from test_tuner import Fake, FakeRun

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.tuner import FactorizationOracle, budget
from factorizenet_tf.tuner import costs as measured_costs
from factorizenet_tf.tuner import search as search_module
from factorizenet_tf.tuner import tuner as search_tuner
from factorizenet_tf.tuner.search import SearchResult, publish_found, search
from factorizenet_tf.tuner.space import Space, macs

SPEC = fnet.ModelSpec(0, width=8, input_shape=(16, 16, 1), stages=((1, 2), (1, 2)))
OPTIONS = ["--dataset", "digits", "--size", 16, "--channels", 1, "--width", 8, "--stages", "1x2,1x2", "--quiet"]


class Formula(Fake):
    """More MACs are better."""

    share = 1 / 200_000

    def __call__(self, spec, dataset, *, out, **options):
        run = super().__call__(spec, dataset, out=out, **options)
        accuracies = dict.fromkeys(run.metrics["accuracy"]["validation"], round(macs(spec) * self.share, 4))
        return FakeRun(run.metrics | {"accuracy": {"validation": accuracies}, "macs": macs(spec)})


@pytest.fixture
def fake(monkeypatch):
    new = Formula()
    monkeypatch.setattr(search_tuner, "train", new)
    return new


def find(digits, folder, **options):
    return search(FactorizationOracle(SPEC, **{"max_macs": 100_000} | options), digits, out=folder, verbose=False)


def call(*arguments):
    return main(["search", *map(str, arguments)])


def test_a_search_leaves_every_trial_and_every_rejected_net_with_its_reason(digits, tmp_path, fake):
    found = find(digits, tmp_path / "out")
    fitting = [net for net in Space(SPEC, (8,)).nets() if macs(net) <= 100_000]
    assert found.best == max(fitting, key=macs)
    assert found.meets_requirement
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [row["name"] for row in found.rows]
    trained = [row for row in rows if row["status"] == "trained"]
    assert [row["name"] for row in trained] == [spec.name for spec in fake.calls]
    for line, level, last in zip(found.summary.splitlines()[-2:], found.best.levels, (3, 4)):
        assert f", level 0 to {last}: " in line
        assert line.partition(": ")[2].split(", ")[level] == "it is here"
    over = next(row for row in rows if row["level"] == "0.0")
    assert (over["status"], over["reason"]) == ("rejected", "over budget: 166,208 macs > 100,000")
    assert all(row["reason"] for row in rows)
    assert {row["status"] for row in rows} == {"trained", "rejected"}
    summary = (tmp_path / "out" / "summary.txt").read_text()
    assert summary == found.summary + "\n"
    assert f"the answer is {found.best.name}:" in summary
    assert "required: macs <= 100,000" in summary
    assert (tmp_path / "out" / "frontier.png").read_bytes().startswith(b"\x89PNG")


def test_one_training_that_is_no_better_than_chance_says_so_and_nothing_of_levels_not_tried(digits, tmp_path, fake):
    # The most frequent of 10 classes has 19 of 144 images: 13.2 %, and 3 binomial deviations are 8.5 points.
    counts = np.bincount(digits.validation.labels)
    assert (counts.max(), counts.sum()) == (19, 144)
    found = find(digits, tmp_path / "out", max_trials=1)
    assert found.best == fake.calls[0]
    first, second = found.summary.splitlines()[-2:]
    assert first == "  stage 1, level 0 to 3: not tried, it is here, not tried, not tried"
    assert second == "  stage 2, level 0 to 4: not tried, it is here, not tried, not tried, not tried"
    assert "chance" not in found.summary
    fake.share = 1e-6
    summary = find(digits, tmp_path / "chance", max_trials=1).summary
    assert "this does not differ from chance: always answering the same class gives up to 13.2 %" in summary
    assert "144 images show no difference below 8.5 points" in summary


def test_a_search_whose_trainings_all_diverge_says_so_and_draws_nothing(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(search_tuner, "train", Fake(fnet.NanLossError("training diverged: the loss is nan")))
    found = find(digits, tmp_path / "out", max_trials=1)
    assert found.best is None
    assert "training diverged" in (tmp_path / "out" / "results.csv").read_text()
    assert not (tmp_path / "out" / "frontier.png").exists()


def test_a_trained_net_that_no_longer_fits_leaves_the_frontier(digits, tmp_path, fake, monkeypatch):
    slow = []
    monkeypatch.setattr(
        measured_costs, "measure", lambda spec, wanted, labels=None: {"latency_ms": 0.2 if spec in slow else 0.1}
    )
    best = find(digits, tmp_path / "out", max_latency_ms=0.15).best
    (tmp_path / "out" / measured_costs.COSTS_FILE).unlink()
    slow.append(best)
    found = find(digits, tmp_path / "out", max_latency_ms=0.15)
    (row,) = [row for row in found.rows if row["name"] == best.name and row["trial"]]
    assert row["status"] == "over budget"
    assert row["reason"].endswith("over budget: 0.2 latency_ms > 0.15")
    assert found.best != best


@pytest.mark.parametrize("refused", ["fnet-small", SPEC.name])
def test_a_net_that_may_not_be_published_is_named_and_the_others_are_published(refused, tmp_path, monkeypatch, capsys):
    names, published = ["fnet-small", SPEC.name], []
    rows = [
        {"name": name, "trial": trial, "status": "trained", "macs": 1 + trial, "val_int8_accuracy": 0.1 + trial / 2}
        for trial, name in enumerate(names)
    ]

    def publish(run, zoo_dir, verbose):
        if run.parent.name == f"trial_{names.index(refused)}":
            raise search_module.PublishError(f"{refused} is not published: it is bad")
        return published.append(run.parent.name) or []

    monkeypatch.setattr(search_module.zoo, "publish", publish)
    found = SearchResult(tmp_path, SPEC, rows, [], "", True)
    message = rf"the answer is not published, it is in .*: {refused} is not published: it is bad"
    with pytest.raises(RuntimeError, match=message) if refused == SPEC.name else contextlib.nullcontext():
        publish_found(found, tmp_path)
    assert published == [f"trial_{1 - names.index(refused)}"]
    assert f"{refused} is not published: it is bad" in capsys.readouterr().err


def test_a_floor_out_of_reach_ends_with_the_best_and_exit_code_1(tmp_path, fake, capsys):
    code = call(*OPTIONS, "--min-accuracy", 0.99, "--out", tmp_path / "out")
    out, err = capsys.readouterr()
    assert code == 1
    assert "no net reaches the floor; the best is fnet-1x2.1x2-l0-x0.5: 83.10 %" in out
    assert err.startswith("error: no net was found that meets the requirement")


def test_the_command_prints_json_and_is_not_kerastuners_chief(tmp_path, fake, capsys, monkeypatch):
    assert call(*OPTIONS, "--max-macs", "60k", "--out", tmp_path / "out", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["best"] in [net.name for net in fake.calls if macs(net) == max(map(macs, fake.calls))]
    assert {row["name"] for row in printed["nets"] if row["status"] == "trained"} == {s.name for s in fake.calls}
    monkeypatch.setenv("KERASTUNER_ORACLE_IP", "127.0.0.1")
    assert call(*OPTIONS, "--max-macs", "60k", "--out", tmp_path / "out") == 2
    assert "KERASTUNER_ORACLE_IP is set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing is required; give at least one of --max-macs, --max-size-bytes, "),
        (["--max-macs", 30_000], "--max-macs is 30,000; the smallest net, fnet-1x2.1x2-l4-x0.5, has 42,048 MACs"),
        (["--max-macs", -1], "--max-macs is '-1'; give a whole number above 0, e.g. 12500000, 12.5e6, 12.5M or 100k"),
        (["--max-latency-ms", -1], "--max-latency-ms is '-1'; give milliseconds above 0"),
        (["--max-macs", 60_000, "--ray", "here"], "the Ray address is 'here'; give HOST:PORT"),
        (["--min-accuracy", 97], "--min-accuracy is 97.0; it must be above 0 and at most 1"),
        (["--max-macs", 60_000, "--width", "8,x"], "width is '8,x'; it must be a multiple of 8"),
        (["--max-macs", 60_000, "--width", "12"], "width is 12; it must be a positive multiple of 8"),
        (["--max-macs", 60_000, "--blocks", "3-1"], "blocks is '3-1'; give numbers joined by commas"),
        (["--max-macs", 60_000, "--blocks", "0,1"], "blocks to choose from are 0, 1; a stage has at least 1"),
        (["--max-macs", 60_000, "--stage-channels", "x"], "stage-channels is 'x'; give multiples joined by commas"),
        (["--max-macs", 60_000, "--stage-channels", "0"], "channels are 0; each must be above 0"),
        (["--max-macs", 60_000, "--macros", "base"], "--macro and --macros are given; give one of them"),
        (["--max-macs", 60_000, "--qat-epochs", 0], "the recipe has no QAT"),
    ],
)
def test_what_cannot_be_is_one_line_and_exit_code_2(options, message, tmp_path, fake, capsys):
    assert call(*OPTIONS, *options, "--out", tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not fake.calls


def test_a_measured_limit_that_nothing_fits_is_refused_with_what_would_help(tmp_path, fake, capsys, monkeypatch):
    def measure(spec, wanted, labels=None):
        return {"ram_bytes": 2 * budget.least_costs(spec)["ram_bytes"]}

    monkeypatch.setattr(measured_costs, "measure", measure)
    monkeypatch.setattr(budget, "measure", measure)
    command = [*OPTIONS[:-1], "--max-ram-bytes", "3k", "--out", tmp_path / "out"]  # the stem holds 16x16x9 = 2,304
    assert call(*command) == 2
    *before, said, error = capsys.readouterr().err.splitlines()
    assert "measuring fnet-1x2.1x2-l0-x0.5" in before
    assert said == "measuring fnet-1x2.1x2-l4-x0.5 at 8x8x1: would it fit?"
    assert "none of the 20 nets looked at fits, the nearest of them: fnet-1x2.1x2-l" in error
    assert "4,608 ram_bytes > 3,000; raise --max-ram-bytes; what" in error
    assert error.endswith(" would help: --size 8: 1,152 bytes of RAM")
    another = [*OPTIONS, "--max-macs", "60k", "--out", tmp_path / "out"]
    with FileLock(tmp_path / "out" / ".lock", 0):  # another process is at it, and has trained nothing yet
        assert call(*another) == 2
        assert "holds another search" in capsys.readouterr().err
    assert call(*another) == 0  # nothing was trained: the folder is free
    assert call(*command) == 2
    assert "holds another search" in capsys.readouterr().err


def test_of_several_macro_architectures_the_one_that_cannot_be_is_named(fails, tmp_path):
    options = ["--dataset", "digits", "--size", 16, "--channels", 1, "--max-macs", "60k", "--out", tmp_path / "out"]
    line = fails("search", *options, "--macros", "1x2.1x2,mobilenetv1")
    assert "macro-architecture mobilenetv1: input of 16x16 is smaller than" in line


def test_the_command_searches_over_macro_architectures_and_says_what_they_are(tmp_path, fake, capsys):
    options = [*OPTIONS[:-3], "--max-trials", 7, "--max-macs", "70k", "--out", tmp_path / "out"]
    choices = ["--macros", "1x2.1x2,s2.1x2", "--blocks", "1-2", "--stage-channels", "1,2"]
    assert call(*options, *choices) == 0
    out, err = capsys.readouterr()
    plan = "476 nets: levels of each stage, width 8; macro-architecture 1x2.1x2, s2.1x2; blocks of each stage 1, 2; "
    plan += "channels of each stage x1, x2"
    assert err.startswith(plan)
    assert plan in out
    assert f"the answer is {max(fake.calls, key=macs).name}: " in out
    assert "  stage 1, blocks 1, 2: " in out
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").read_text().splitlines()))
    assert {row["macro"] for row in rows} >= {net.macro for net in fake.calls}
    assert call(*options, *choices, "--blocks", 1) == 2
    assert "search.blocks: the folder has [1, 2], you gave [1]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        ("ray", ["--max-macs", "60k", "--ray", "local"], "many machines need Ray: pip install 'factorizenet_tf[ray]'"),
        ("tflite_micro", ["--max-ram-bytes", "60k"], "--max-ram-bytes: measuring RAM needs tflite_micro: pip install"),
        ("tflite_micro", ["--max-macs", "60k", "--publish", "zoo"], "--publish: measuring RAM needs tflite_micro: pip"),
    ],
)
def test_an_extra_that_is_missing_is_said_before_anything_is_loaded(
    module, options, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(fnet.data, "load_dataset", None)
    assert call(*OPTIONS, *options, "--out", tmp_path / "out") == 1
    assert message in capsys.readouterr().err
