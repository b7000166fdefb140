import dataclasses
import json
import shutil

import keras_tuner
import numpy as np
import pytest
from test_progressive import SPACE, formula

from factorizenet_tf.requirement import Requirement
from factorizenet_tf.tuner import budget, oracle
from factorizenet_tf.tuner import costs as measured_costs
from factorizenet_tf.tuner.oracle import FactorizationOracle
from factorizenet_tf.tuner.space import macs, uniform

SPEC = SPACE.spec


def make(folder, max_macs=1_200_000, **options):
    new = FactorizationOracle(SPEC, max_macs=max_macs, **options)
    new._set_project_dir(str(folder), "project")
    return new


def finish(oracle, accuracy=formula):
    """Run the next trial to its end."""
    trial = oracle.create_trial("tuner0")
    spec = oracle.net(trial)
    oracle.update_trial(trial.trial_id, {oracle.objective.name: accuracy(spec)})
    trial.status = "COMPLETED"
    oracle.end_trial(trial)
    return spec


def run_to_the_end(oracle):
    specs = []
    while oracle.create_trial("tuner0").status == "RUNNING":  # asked again, it gives the same trial
        specs.append(finish(oracle))
    assert oracle.create_trial("tuner0").status == "STOPPED"
    return specs


def reloaded(folder, **options):
    again = make(folder, **options)
    again.reload()
    return again


@pytest.fixture
def expected(tmp_path):
    walked = make(tmp_path / "expected")
    specs = run_to_the_end(walked)
    return walked.walk(), specs


def test_no_net_is_proposed_twice_or_over_budget(expected):
    walk, specs = expected
    assert len(specs) == len(set(specs)) > 5
    assert all(macs(spec) <= 1_200_000 for spec in specs)
    assert max(specs, key=formula) == walk.best


class Killed(BaseException):
    """The process is gone."""


def run_until_killed(folder, writes, monkeypatch):
    """Search until so many files are written; whether it was killed before its end."""
    write = oracle.write_text
    left = [writes]

    def counted(path, content):
        write(path, content)
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(oracle, "write_text", counted)
        try:
            run_to_the_end(make(folder))
        except Killed:
            return True
    return False


def test_killed_after_any_write_it_goes_on_and_no_trial_is_lost_or_repeated(tmp_path, expected, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda file: None)
    kills = 0
    for writes in (*range(1, 10), *range(12, 200, 16)):
        folder = tmp_path / str(writes)
        if not run_until_killed(folder, writes, monkeypatch):
            break
        kills += 1
        again = reloaded(folder)
        run_to_the_end(again)
        assert again.walk() == expected[0]
        ended = [again.net(t) for t in again.trials.values()]
        assert sorted(s.name for s in ended) == sorted(s.name for s in expected[1])
        assert sorted(again.end_order) == sorted(again.trials) == sorted(set(again.end_order))
        values = [t.metrics.metrics["val_int8_accuracy"]._observations[0].value for t in again.trials.values()]
        assert all(len(value) == 1 for value in values)
    assert kills > 10


def test_damaged_files_are_named_and_deleted_nothing_is_lost_with_them(tmp_path, expected):
    first = make(tmp_path)
    for _ in range(3):
        finish(first)
    ongoing = first.create_trial("tuner0").trial_id
    file, state = (tmp_path / "project" / name for name in ("trial_0001/trial.json", "oracle.json"))
    file.write_text("{")
    remedy = r"trial\.json is damaged .*delete the folder .*trial_0001, then .* done again"
    with pytest.raises(ValueError, match=remedy):
        reloaded(tmp_path)
    shutil.rmtree(file.parent)
    assert list(reloaded(tmp_path).trials) == ["0000", "0001", "0002", ongoing]
    finish(reloaded(tmp_path))
    state.write_text('{"half":')
    with pytest.raises(ValueError, match=r"oracle\.json is damaged .*delete it, the trials' files have the same"):
        reloaded(tmp_path)
    state.unlink()
    again = reloaded(tmp_path)
    assert again.end_order == ["0000", "0001", "0002"]
    assert again.create_trial("tuner0").trial_id == ongoing
    run_to_the_end(again)
    assert again.walk() == expected[0]
    (tmp_path / "project" / measured_costs.COSTS_FILE).write_text("[")
    with pytest.raises(ValueError, match=r"costs\.json is damaged .*delete it"):
        make(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"max_macs": 700_000},
            r"max_macs is 700,000; the smallest net, fnet-l5-x0\.5, has 771,392 MACs; what would help: --size 16",
        ),
        ({"max_ram_bytes": 9_000}, r"max_ram_bytes is 9,000; the stem of .*fnet-l5-x0\.5, alone needs 11,264"),
        ({"max_size_bytes": 5_000}, r"is 5,000; the weights of .*fnet-l5-x0\.5, alone have \d,\d{3}"),
        ({}, "nothing is required"),
        ({"max_macs": 10**7, "patience": -1}, "patience is -1; it must be at least 0"),
        ({"max_macs": 10**7, "max_trials": 0}, "max_trials is 0; it must be at least 1"),
        ({"max_macs": 10**7, "widths": ()}, "widths is empty"),
        ({"max_macs": 10**7, "objective": keras_tuner.Objective("loss", "min")}, "'min'; the search needs max"),
        ({"requirement": Requirement(max_macs=10**7), "max_macs": 10**7}, "requirement and max_macs are given"),
    ],
)
def test_what_cannot_be_is_refused_with_the_value(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        FactorizationOracle(SPEC, **arguments)


def test_numbers_of_numpy_are_numbers_and_the_search_the_same(tmp_path):
    plain = FactorizationOracle(SPEC, max_macs=2_000_000, widths=(8, 16), seed=3, max_trials=2, patience=1)
    numbers = {"seed": np.int64(3), "max_trials": np.int32(2), "patience": np.int8(1), "widths": np.array([8, 16])}
    given = FactorizationOracle(SPEC, Requirement(max_macs=np.float64(2e6)), **numbers)
    given._set_project_dir(str(tmp_path), "project")
    given.save()
    assert json.dumps(given.identity()) == json.dumps(plain.identity())


@pytest.fixture
def latencies(monkeypatch):
    """Latency of each net as it would be measured, 0.1 unless it is set, and the nets that were measured, in order."""
    values, measured = {}, []

    def measure(spec, wanted, labels=None):
        measured.append(spec)
        return {"latency_ms": values.get(spec, 0.1)}

    monkeypatch.setattr(measured_costs, "measure", measure)
    return values, measured


def test_measured_costs_decide_and_are_taken_once_a_net(tmp_path, latencies):
    values, measured = latencies
    values[SPACE.net(5)] = 0.2
    first = make(tmp_path, max_latency_ms=0.15)
    assert SPACE.net(5) not in run_to_the_end(first)
    assert first.walk().rejected[SPACE.net(5)] == "over budget: 0.2 latency_ms > 0.15"
    assert len(measured) == len(set(measured))
    assert SPACE.net(2) not in measured  # over the MACs
    before = len(measured)
    assert reloaded(tmp_path, max_latency_ms=0.15).walk() == first.walk()
    assert len(measured) == before


def test_after_the_last_trial_nothing_is_measured_for_a_round_that_never_comes(tmp_path, latencies):
    walked = make(tmp_path, max_latency_ms=0.2, max_trials=3)  # the levels 3 to 5 that fit
    run_to_the_end(walked)
    assert [proposal.spec.level for proposal in walked.walk().proposals] == [3, 4, 5]
    assert set(latencies[1]) == {*uniform(SPACE.net(0))[3:]}


def test_macro_architectures_blocks_and_channels_are_searched_and_a_killed_search_goes_on(tmp_path):
    def new(folder, trials=9):
        choices = {"widths": (8, 16), "macros": ("base", "2x2.2x2r"), "blocks": (1, 2, 3), "channels": (0.5, 1, 2)}
        return make(folder, **choices, max_trials=trials)

    def accuracy(spec):
        return round(0.5 + 0.03 * np.log(macs(spec)) - 0.01 * sum(stage.blocks for stage in spec.stages), 6)

    whole, part = new(tmp_path / "whole"), new(tmp_path / "part")
    assert whole.space.count() > 100_000  # which are not all looked at
    expected = [finish(whole, accuracy) for _ in range(9)]
    assert len({spec.name for spec in expected}) == 9
    assert len({spec.macro for spec in expected}) > 4
    first = [finish(part, accuracy) for _ in range(5)]
    again = new(tmp_path / "part")
    again.reload()
    assert first + [finish(again, accuracy) for _ in range(4)] == expected
    today, older = new(tmp_path / "today", 30), new(tmp_path / "older", 30)
    vars(older._search)["boldness"] = 0.0  # by the rules of an earlier version, which proposed others
    trained = [finish(older, accuracy) for _ in range(29)]
    assert set(trained) - {finish(today, accuracy) for _ in range(29)}
    again = new(tmp_path / "older", 30)
    again.reload()
    finish(again, accuracy)
    assert [proposal.spec for proposal in again.walk().proposals[:29]] == trained


@pytest.mark.parametrize(
    ("measure", "messages"),
    [
        (lambda *arguments: 1 / 0, ["division by zero"]),
        (
            lambda *arguments: {"size_bytes": 50_000},
            ["nets looked at fits, the nearest of them: ", "50,000 size_bytes > 40,000", "either ("],
        ),
    ],
)
def test_where_nothing_can_be_measured_or_fits_the_search_ends_and_says_so(measure, messages, tmp_path, monkeypatch):
    monkeypatch.setattr(measured_costs, "measure", measure)
    monkeypatch.setattr(budget, "measure", measure)
    walked = make(tmp_path, max_size_bytes=40_000)
    for _ in range(2):  # no lock stays held
        assert walked.create_trial("tuner0").status == "STOPPED"
    assert all(message in str(walked.failure) for message in messages)


def test_a_full_disk_stops_the_search_and_the_files_stay_whole(tmp_path, monkeypatch):
    walked = make(tmp_path)
    walked.create_trial("tuner0")
    before = (tmp_path / "project" / "oracle.json").read_text()

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(oracle, "write_text", full)
    finish(walked)
    assert walked.create_trial("tuner0").status == "STOPPED"
    assert "No space left" in str(walked.failure)
    assert (tmp_path / "project" / "oracle.json").read_text() == before


def test_failed_trials_are_skipped_and_three_in_a_row_stop_the_search(tmp_path):
    walked = make(tmp_path)
    for _ in range(3):
        assert walked.failure is None
        trial = walked.create_trial("tuner0")
        assert trial.status == "RUNNING"
        trial.status, trial.message = "FAILED", "Traceback\nNanLossError: the loss is nan"
        walked.end_trial(trial)
    assert walked.create_trial("tuner0").status == "STOPPED"
    assert str(walked.failure) == "3 trials in a row failed, the last of them: NanLossError: the loss is nan"


def test_with_a_floor_the_best_trial_is_the_answer_and_not_the_most_accurate_one(tmp_path):
    walked = make(tmp_path, None, min_accuracy=0.86)
    run_to_the_end(walked)
    first, *others = walked.get_best_trials(1_000)
    assert walked.net(first) == walked.walk().best
    assert max(trial.score for trial in others) > first.score
    assert [walked.net(t) for t in (first, *others)] == walked.walk().ranked


def test_max_trials_is_kept_and_the_best_of_them_is_the_answer(tmp_path):
    for most in (1, 4, 6):  # within a round or at its end
        walked = make(tmp_path / str(most), max_trials=most)
        specs = run_to_the_end(walked)
        assert len(specs) == most
        assert walked.walk().best == max(specs, key=formula) == walked.net(walked.get_best_trials()[0])


def test_a_net_whose_weights_alone_exceed_a_budget_is_not_measured(tmp_path, monkeypatch):
    level_0 = dataclasses.replace(SPEC, level=0)
    limit = budget.least_costs(level_0)["size_bytes"] - 1
    search = make(tmp_path, max_macs=macs(level_0), max_size_bytes=limit)
    monkeypatch.setattr(search.costs, "measure", lambda spec: pytest.fail("measured"))
    assert f"size_bytes > {limit:,}" in search.violation(level_0)
