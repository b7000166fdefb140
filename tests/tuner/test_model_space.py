"""Searches over what a net that is there already may become."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import factorizenet_tf as fnet
from factorizenet_tf._keras import keras
from factorizenet_tf.loading import resolve
from factorizenet_tf.requirement import Requirement
from factorizenet_tf.tuner import FactorizationOracle, FactorizationTuner
from factorizenet_tf.tuner import search as search_module
from factorizenet_tf.tuner.costs import milliseconds
from factorizenet_tf.tuner.model_space import ModelSpace
from factorizenet_tf.tuner.progressive import Result, Search, effects, propose
from factorizenet_tf.tuner.space import macs

layers = keras.layers


@pytest.fixture(scope="module")
def model():
    """An untrained net: 16x16 grey images, three regular convolutions behind the one that reads them, at two resolutions."""
    keras.utils.set_random_seed(0)
    options = {"padding": "same", "activation": "relu", "use_bias": False}
    convolutions = [
        layers.Conv2D(filters, 3, strides, name=f"conv{number}", **options)
        for number, (filters, strides) in enumerate([(8, 2), (16, 1), (16, 2), (24, 1)])
    ]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(10)]
    return keras.Sequential([keras.Input((16, 16, 1)), *convolutions, *head], name="mine")


@pytest.fixture(scope="module")
def images(digits):
    return digits.calibration(48)


@pytest.fixture(scope="module")
def space(model, images):
    return ModelSpace(model, images, middles=(1, 2), table=fnet.factorization_table(model, images, middle=(1, 2)))


def test_a_space_has_every_net_once_with_its_macs_its_name_and_its_layers(space, model):
    rows, nets = space.rows(), list(space.nets())
    assert len(nets) == len(set(nets)) == len({net.name for net in nets}) == space.count() > 50
    assert space.count_macs(rows).tolist() == [net.macs for net in nets]
    assert space.smallest() == min(nets, key=macs)
    # 8 -> 16 is conv1; level 1, middle 2: 3 * 3 * 4 * 16 + 16 * 16 a place where the layer has 9 * 8 * 16: cheaper.
    assert space.stage_names == ("8x8", "4x4")
    for net in (nets[0], nets[7], nets[-1]):
        assert space.net_of(space.row_of(net)) == net == space.net_from(space.values_of(net))
        made = space.factorized(net, 4)
        assert fnet.count_macs(made) == net.macs
        assert fnet.architecture_of(made, net.name) == space.spec_of(net)
    as_it_is = space.uniform()[0][0]
    assert (as_it_is.name, as_it_is.level, as_it_is.macs) == ("mine-l0", 0, fnet.count_macs(model))
    assert space.trend(np.array([space.row_of(as_it_is)])) == [0]


def test_other_choices_are_nets_that_differ_in_one_group_alone(space):
    net = space.with_levels(space.uniform()[1][-1], (2, 0))
    assert (net.levels, net.middles) == ((2, 0), (2, 1))
    found = space.alternatives(net)
    assert list(found) == ["8x8, level", "8x8, middle", "4x4, level"]
    assert found["8x8, middle"] == {1: space.net_of([0, 0, 0, 2, 0]), 2: net}
    assert {other.levels[1] for other in found["4x4, level"].values()} <= set(range(5))
    assert space.row_of(net) in set(map(tuple, space.neighbours(np.array([space.row_of(net)])).tolist()))


def test_layers_share_a_level_by_resolution_each_or_by_patterns(model, images):
    def groups(how):
        return ModelSpace(model, images, groups=how).identity()["groups"]

    assert groups("resolution") == {"8x8": ["conv1"], "4x4": ["conv2", "conv3"]}
    assert groups("each") == {"conv1": ["conv1"], "conv2": ["conv2"], "conv3": ["conv3"]}
    assert groups(("*3", "conv[13]")) == {"*3": ["conv3"], "conv[13]": ["conv1"]}
    with pytest.raises(ValueError, match=r"'dense\*' has no layer that can be factorized"):
        groups(("conv1", "dense*"))
    with pytest.raises(ValueError, match="it must be resolution, each, or patterns"):
        groups("all")


def walk(space, budget, accuracy):
    requirement = Requirement(max_macs=budget)
    search = Search(space, requirement, lambda net: requirement.violation({"macs": net.macs}))
    results = {}
    while pending := propose(search, results).pending:
        results[pending[0].spec] = Result(accuracy(pending[0].spec))
    return search, results, propose(search, results)


def test_with_a_table_a_search_trains_fewer_nets_until_it_has_the_best(space, model, images):
    loss = dict(zip(space.nets(), space.trend(space.rows())))
    without = ModelSpace(model, images, middles=(1, 2))
    trained = {"with": 0, "without": 0}
    for budget in (share * fnet.count_macs(model) for share in (0.4, 0.55, 0.7)):
        best = min((net for net in loss if net.macs <= budget), key=loss.get)
        for name, each in (("with", space), ("without", without)):
            search, results, state = walk(each, budget, lambda net: 0.9 - 0.3 * loss[net])
            trained[name] += list(results).index(best) + 1
            if name == "with":
                assert "its layers alone lost least" in state.proposals[0].reason
                assert state.best == best
                assert set(effects(search, results, best)) == set(each.alternatives(best))
    assert 3 <= trained["with"] < trained["without"]


def test_a_factorized_nets_milliseconds_are_those_of_the_file_to_export(space, run, monkeypatch):
    class Timed(fnet.Int8Model):
        def latency_ms(self):
            return SimpleNamespace(median_ms=len(self.content))

    content = run.int8_model().content
    files = (content + b" ", content)
    monkeypatch.setattr(
        "factorizenet_tf.tflite.regroup.regroup_fastest", lambda given: SimpleNamespace(content=files[0])
    )
    found = [milliseconds(spec, Timed(content)) for spec in (space.original, run.spec)]
    assert found == [len(file) for file in files]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_macs": 1_000}, "the smallest net, mine-l4, has"),
        ({"max_macs": "all", "widths": (8,)}, "widths, macros, blocks and channels are of the package's own nets"),
        ({"max_macs": "all", "inherit": True}, "each net of a model starts from the model's own weights"),
    ],
)
def test_what_does_not_go_with_a_model_is_refused(options, message, space, model, digits, tmp_path):
    options = options | {"max_macs": fnet.count_macs(model)} if options["max_macs"] == "all" else options
    inherit = options.pop("inherit", False)
    with pytest.raises(ValueError, match=message):
        FactorizationTuner(FactorizationOracle(space, **options), digits, inherit=inherit, directory=tmp_path)


@pytest.mark.slow
def test_a_search_over_a_model_tunes_goes_on_and_publishes_what_its_card_can_make_again(
    run, tmp_path, prints_json, succeeds, fails, monkeypatch
):
    latency = {"latency_ms": 1.5, "latency_ratio": 1.5, "latency_machine": "a machine"}
    monkeypatch.setattr(fnet.zoo.publishing, "_latencies", lambda contents, spec: [latency for _ in contents])
    monkeypatch.setattr(fnet.zoo.publishing, "MAX_LOSS", 0.1)  # what three epochs lose is the processor's luck
    out, zoo = tmp_path / "search", tmp_path / "zoo"
    command = ["search", "--model", run.folder, "--dataset", "digits", "--max-macs", "70%", "--out", out, "--quiet"]
    command += ["--images", 64, "--middle", "1,2", "--epochs", 3, "--patience", 0]
    found = prints_json(*command, "--max-trials", 1, "--ray", "local")
    (trained,) = [row for row in found["nets"] if row["status"] == "trained"]
    metrics = json.loads((out / "trial_0" / "run" / "metrics.json").read_text())
    assert metrics["macs"] == trained["macs"] <= 0.7 * run.metrics["macs"]
    assert trained["val_int8_accuracy"] > 0.5
    assert "search.middles: the folder has [1.0, 2.0], you gave [1.0]" in fails(*command, "--middle", 1)
    monkeypatch.setattr(search_module.FactorizationTuner, "run_trial", None)
    assert prints_json(*command, "--max-trials", 1, "--publish", zoo)["best"] == found["best"]
    card = fnet.zoo.card(f"{found['best']}-int8", zoo_dir=zoo)
    assert card.macs == trained["macs"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to").mkdir(parents=True)
    (tmp_path / "path" / "to" / run.folder.name).symlink_to(run.folder)
    assert metrics["command"].startswith(f"factorizenet factorize path/to/{run.folder.name} ")
    succeeds(*metrics["command"].partition("  #")[0].split()[1:])
    again = json.loads((tmp_path / "runs" / found["best"] / "metrics.json").read_text())
    assert again["accuracy"] == metrics["accuracy"]


def test_shares_are_of_the_models_own_costs_and_what_is_wrong_is_said(model, tmp_path, fails, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save("mine.keras")
    command = ["search", "--dataset", "digits", "--out", "out"]
    assert "a share refers to --model's own cost; give an amount" in fails(*command, "--max-macs", "50%")
    assert "--middle would have no effect" in fails(*command, "--max-macs", "1M", "--middle", 2)
    command += ["--model", "mine.keras"]
    assert "--width would have no effect" in fails(*command, "--max-macs", "50%", "--width", 8)
    assert "--max-size-bytes is '120%'; a share must be" in fails(*command, "--max-size-bytes", "120%")
    assert "groups is 'none.txt'; give resolution, each, or a file" in fails(
        *command, "--max-macs", "50%", "--groups", "none.txt"
    )
    own = fnet.count_macs(resolve("mine.keras").float_model())
    assert f"--max-macs is {own // 100:,}; the smallest net, mine-l4, has" in fails(*command, "--max-macs", "1%")
    monkeypatch.setattr("factorizenet_tf.tuner.costs.measure", lambda *arguments: {"size_bytes": 50_000})
    error = fails(*command, "--max-size-bytes", "40k", "--quiet")
    assert "50,000 size_bytes > 40,000" in error
    assert " nets looked at fits, the nearest of them: mine-l" in error
    assert error.endswith("; raise --max-size-bytes, or give smaller middles\n")
