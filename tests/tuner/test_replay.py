import csv
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_progressive import SPACE, formula

FOLDER = Path(__file__).parents[2] / "tuner"
sys.path.append(str(FOLDER))  # where a script finds the others
import replay_macros  # noqa: E402
from compare import interval  # noqa: E402
from exhaustive import add_row, curve, fresh, missing, read_rows  # noqa: E402
from replay import STRATEGIES, Table, noisy, read_table, replay, seed_noise  # noqa: E402

EPOCHS, BUDGET = 9, 1_300_000


def learn(net):
    return tuple(round(formula(net) * (1 - 0.4 ** (epoch + 1)), 4) for epoch in range(EPOCHS))


@pytest.fixture(scope="module")
def table():
    return Table(SPACE, {net: learn(net) for net in SPACE.nets()})


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "BayesianOptimization"])
def test_each_strategy_finds_a_good_net_and_is_charged_what_it_trains(table, strategy):
    fitting = table.fitting(BUDGET)
    found, again = (
        replay(strategy, table, BUDGET, seed=0, most=10 * len(fitting) * EPOCHS, stops=True) for _ in range(2)
    )
    assert (found.spent, found.best) == (again.spent, again.best)
    assert found.target == table.best(BUDGET) - 0.003
    assert found.best[-1] <= table.best(BUDGET)
    assert found.best == sorted(found.best)
    assert found.spent == sorted(set(found.spent))
    assert found.epochs >= found.spent[-1] >= EPOCHS
    good = [spent for spent, best in zip(found.spent, found.best) if best >= found.target]
    assert found.reached == (good[0] if good else None)


def test_the_walk_spends_less_than_a_fifth_and_than_stock_oracles(table):
    budget = 2_000_000
    total = len(table.fitting(budget)) * EPOCHS
    walked = replay("walk", table, budget, seed=0, most=total)
    assert walked.reached <= total / 5
    assert walked.epochs <= total / 2
    for strategy in ("RandomSearch", "GridSearch", "Hyperband"):
        reached = [replay(strategy, table, budget, seed=s, most=total, stops=True).reached for s in range(9)]
        assert walked.reached < np.median([total if r is None else r for r in reached]), strategy


@pytest.mark.slow
def test_bayesian_optimization_is_replayed_too(table):
    found = replay("BayesianOptimization", table, 10**9, seed=0, most=11 * EPOCHS, stops=False)
    assert found.epochs == 11 * EPOCHS
    assert found.best[-1] > 0.85


def test_rows_become_a_table_and_two_seeds_the_noise(table):
    def row(net, seed, shift):
        epochs = {f"epoch_{i}": f"{v + shift:.4f}" for i, v in enumerate(table.curves[net], 1)}
        return {"name": net.name, "level": ".".join(map(str, net.levels)), "seed": str(seed), **epochs}

    rows = [row(net, 0, 0) for net in SPACE.nets()]
    assert read_table(rows, SPACE.spec) == table
    with pytest.raises(ValueError, match=r"lacks 1 nets of seed 0, e\.g\. fnet-l0-x0\.5"):
        read_table(rows[1:], SPACE.spec)
    assert seed_noise(rows) == (0.0, 0)
    noise, count = seed_noise([*rows, row(SPACE.net(1), 1, 0.02), row(SPACE.net(2), 1, -0.02)])
    assert (noise, count) == (pytest.approx(0.02 / math.sqrt(2)), 2)
    assert noisy(table, 0.01, 0) is table
    shifts = [noisy(table, 0.01, 1).curves[net][-1] - table.curves[net][-1] for net in table.curves]
    assert np.std(shifts) == pytest.approx(0.01, rel=0.2)


@pytest.mark.slow
def test_training_for_the_table_is_training(run, digits):
    expected = [row["val_accuracy"] for row in run.history() if row["phase"] == "float"]
    accuracies = list(curve(fresh(run.spec, run.recipe.seed), digits, run.recipe))
    assert accuracies == pytest.approx(expected, abs=0.03)


def test_a_nets_row_is_kept_once_and_each_process_has_its_part(tmp_path):
    path, nets, accuracies = tmp_path / "table.csv", list(SPACE.nets()), [0.1, 0.25]
    assert missing(nets, path, 0, 0, 1) == nets
    for _ in range(2):
        add_row(path, nets[3], 0, accuracies, 7.0)
    (row,) = read_rows(path)
    assert [float(row[f"epoch_{i}"]) for i in (1, 2)] == accuracies
    assert nets[3] not in missing(nets, path, 0, 0, 1)
    assert nets[3] in missing(nets, path, 1, 0, 1)
    parts = [missing(nets, path, 1, part, 3) for part in range(3)]
    assert sorted(net.name for part in parts for net in part) == sorted(net.name for net in nets)
    with pytest.raises(ValueError, match="has rows of 2 epochs, not 1"):
        add_row(path, nets[0], 0, accuracies[:1], 7.0)


def test_a_replay_on_a_formula_over_macro_architectures_comes_near_the_best_by_a_fifth_of_the_trainings():
    for name in ("blocks", "macros"):
        row = replay_macros.replay(replay_macros.SPACES[name], seed=2)
        assert row["fitting"] >= 120
        assert row["within_0.3_after"] <= row["fitting"] / 5
        assert row["best_trained_below"] <= row["answer_below"]


@pytest.mark.slow
def test_the_scripts_make_a_table_and_a_summary(tmp_path):
    shape = ["--size", "16", "--channels", "1", "--stages", "1x2"]
    command = [sys.executable, FOLDER / "exhaustive.py", "--dataset", "digits", *shape, "--epochs", "2"]
    command += ["--out", tmp_path / "t.csv"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lines = iter(process.stdout.readline, "")
    (first,) = [next(line for line in lines if line.startswith("1/4 "))]
    assert first.endswith(" h left\n")
    process.kill()  # after its first net
    process.communicate()
    kept = read_rows(tmp_path / "t.csv")
    assert 1 <= len(kept) < 4
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert f"4 nets, {4 - len(kept)} to train here" in result.stdout
    rows = read_rows(tmp_path / "t.csv")
    assert len(rows) == 4
    assert all(row in rows for row in kept)
    command = [sys.executable, FOLDER / "replay.py", "--table", tmp_path / "t.csv", *shape, "--seeds", "2"]
    command += ["--strategies", "walk", "RandomSearch", "--out", tmp_path, "--max-macs", "90000"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "4 nets, 2 epochs" in result.stdout
    rows = list(csv.DictReader((tmp_path / "replay_summary.csv").read_text().splitlines()))
    assert [row["strategy"] for row in rows] == ["walk", "RandomSearch"]
    assert len((tmp_path / "replay.csv").read_text().splitlines()) == 5
    assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")


def test_a_difference_of_two_accuracies_has_the_interval_of_the_images_that_one_net_alone_has_right():
    own, other = np.zeros((2, 10_000), bool)
    own[:600] = other[300:800] = True  # 300 are right by the first alone, 200 by the second
    # One point; variance of the mean: (0.05 - 0.01**2) / 10,000, so 1.96 deviations are 0.44 points.
    np.testing.assert_allclose(interval(own, other), (0.01 - 0.0044, 0.01 + 0.0044), atol=2e-4)
    assert interval(own, own) == (0, 0)
