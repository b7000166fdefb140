import csv
import dataclasses
import json

import pytest

import factorizenet_tf as fnet
from factorizenet_tf.analysis import study as module
from factorizenet_tf.analysis.study import best_level, study

STAGES = ((1, 2),)


def row(name, macs, accuracy, **more):
    return (
        {"name": name, "macs": macs, "size_bytes": 10 * macs, "latency_ms": 1.0, "ram_bytes": None}
        | {
            "validation_tflite": accuracy,
            "test_tflite": 1 - accuracy,  # the other way round: nothing may be chosen by it
        }
        | more
    )


ROWS = [row("l0", 300, 0.92), row("l1", 200, 0.91), row("l2", 100, 0.90), row("l3", 90, 0.90)]


@pytest.mark.parametrize(
    ("requirement", "value", "name"),
    [
        ("max_macs", 1_000, "l0"),
        ("max_macs", 250, "l1"),
        ("max_macs", 100, "l3"),  # as accurate as l2 with fewer MACs
        ("max_macs", 80, None),
        ("max_size_bytes", 2_000, "l1"),
        ("min_accuracy", 0.905, "l1"),
        ("min_accuracy", 0.93, None),
        ("max_ram_bytes", 1_000, None),
        ("max_latency_ms", 1.0, "l0"),
    ],
)
def test_the_best_level_under_a_requirement(requirement, value, name):
    answer = best_level(ROWS, requirement, value)
    assert answer.name == name
    assert answer.requirement == f"{requirement}={value:g}" if isinstance(value, float) else f"{requirement}={value}"
    if name is None:
        assert "no level" in answer.why


@pytest.fixture(scope="module")
def small(digits):
    specs = [fnet.ModelSpec(level, width=8, input_shape=digits.image_shape, stages=STAGES) for level in (0, 3)]
    recipe = fnet.recipe_for("digits", epochs=2, qat_epochs=1, batch_size=128, calibration_images=32)
    return digits, specs, recipe


@pytest.fixture(scope="module")
def done(small, tmp_path_factory):
    """A study of two levels, stopped in the analysis of the second and continued."""
    digits, specs, recipe = small
    out = tmp_path_factory.mktemp("studies") / "study"
    original, calls = module.analyze, []

    def stopping(*arguments, **options):
        calls.append(arguments[0].spec.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    module.analyze = stopping
    try:
        with pytest.raises(KeyboardInterrupt):
            study(digits, specs, out=out, recipe=recipe, verbose=False)
        (out / "analyses" / specs[1].name).mkdir()
        (out / "analyses" / specs[1].name / "nets.csv").write_text("half")
        partial = (out / "study.csv").read_text()
        found = study(
            digits, specs, out=out, recipe=recipe, requirements={"max_macs": 10**9, "min_accuracy": 1.0}, verbose=False
        )
    finally:
        module.analyze = original
    assert calls == [specs[0].name, specs[1].name, specs[1].name]  # the first level's analysis was kept
    assert partial.count("\n") == 2
    return found


def test_a_stopped_study_goes_on_and_writes_everything(done, small):
    _, specs, _ = small
    assert [row["name"] for row in done.rows] == [spec.name for spec in specs]
    assert [row["macs"] for row in done.rows] == [fnet.count_macs(spec) for spec in specs]
    with open(done.folder / "study.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for row, spec in zip(rows, specs):
        metrics = json.loads((done.folder / "runs" / spec.name / "metrics.json").read_text())
        assert float(row["test_tflite"]) == metrics["accuracy"]["test"]["tflite"]
        assert row["origin"] == "trained"
        assert 0 < float(row["channel_precision_3x3"]) <= 1
    assert done.analysis.names == tuple(spec.name for spec in specs)
    assert (done.folder / "report.html").stat().st_size > 4_000_000
    assert (done.folder / "figures" / "accuracy.png").is_file()
    page = (done.folder / "study.md").read_text()
    assert all(f"| {spec.name} |" in page for spec in specs)
    assert done.answers[0].name in page


def test_the_simulated_accuracies_are_those_of_the_tflite_files(done, small):
    digits, _, _ = small
    simulated = done.analysis.output.set_index(["net", "precision"])["accuracy"]
    for row in done.rows:
        for file, precision in (("ptq_per_channel", "per_channel W8A8"), ("qat", "qat W8A8"), ("float", "float")):
            # the simulation calibrates on more images than the recipe: a few images may differ
            assert abs(simulated[row["name"], precision] - row[f"validation_{file}"]) <= 4 / len(digits.validation)


def test_another_study_in_the_folder_is_refused(done, small):
    digits, specs, recipe = small
    with pytest.raises(ValueError, match=r"holds another study \(its recipe differ"):
        study(digits, specs, out=done.folder, recipe=fnet.recipe_for("digits", epochs=3), verbose=False)
    with pytest.raises(ValueError, match="holds other files"):
        study(digits, specs, out=done.folder / "runs", recipe=recipe, verbose=False)


def test_bad_arguments_are_refused_before_anything_is_written(small, tmp_path):
    digits, specs, recipe = small
    out = tmp_path / "study"
    with pytest.raises(ValueError, match="no levels"):
        study(digits, [], out=out, recipe=recipe)
    with pytest.raises(ValueError, match="is given twice"):
        study(digits, [specs[0], specs[0]], out=out, recipe=recipe)
    with pytest.raises(ValueError, match="unknown requirements max_flops"):
        study(digits, specs, out=out, recipe=recipe, requirements={"max_flops": 1})
    with pytest.raises(ValueError, match="min_accuracy is 90"):
        study(digits, specs, out=out, recipe=recipe, requirements={"min_accuracy": 90})
    with pytest.raises(ValueError, match="qat_epochs is 0"):
        study(digits, specs, out=out, recipe=fnet.recipe_for("digits", qat_epochs=0))
    other = fnet.ModelSpec(1, width=16, input_shape=digits.image_shape, stages=STAGES)
    with pytest.raises(ValueError, match="differs from"):
        study(digits, [specs[0], other], out=out, recipe=recipe)
    assert not out.exists()


def test_a_published_net_has_its_cards_numbers_and_a_latency_measured_here(zoo):
    (card,) = fnet.zoo.list(precision="int8", zoo_dir=zoo)
    row = module._published_row(dataclasses.replace(card, latency_ms=1e6), zoo)
    assert row["origin"] == "zoo"
    assert (row["macs"], row["ram_bytes"]) == (card.macs, card.ram_bytes)
    assert row["test_tflite"] == card.accuracy
    assert 0 < row["latency_ms"] < 1e3


@pytest.mark.slow
def test_nets_of_a_zoo_are_taken_and_not_trained(done, small, tmp_path, monkeypatch):
    digits, specs, recipe = small
    fnet.zoo.publish(done.folder / "runs" / specs[0].name, zoo_dir=tmp_path / "zoo", verbose=False)
    monkeypatch.setattr(module, "train", None)
    monkeypatch.setenv("FACTORIZENET_ZOO", str(tmp_path / "zoo"))
    found = study(digits, specs[:1], out=tmp_path / "default", recipe=recipe, verbose=False)
    assert found.rows[0]["origin"] == "zoo"
    with pytest.raises(TypeError, match="not callable"):  # it would train
        study(digits, specs[:1], out=tmp_path / "all", recipe=recipe, train_all=True, verbose=False)
    found = study(digits, specs[:1], out=tmp_path / "study", recipe=recipe, zoo_dir=tmp_path / "zoo", verbose=False)
    assert found.rows[0]["origin"] == "zoo"
    assert found.rows[0]["test_tflite"] == done.rows[0]["test_tflite"]
    assert found.analysis.names == (specs[0].name,)
