import csv
import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest

import factorizenet_tf as fnet
from factorizenet_tf.analysis import study as module
from factorizenet_tf.analysis.study import choose_level, study


def row(name, macs, accuracy):
    costs = {"macs": macs, "size_bytes": 10 * macs, "latency_ms": 1.0, "ram_bytes": None}
    # the test split the other way round: nothing may be chosen by it
    return {"name": name} | costs | {"validation_tflite": accuracy, "test_tflite": 1 - accuracy}


ROWS = [row("l0", 300, 0.92), row("l1", 200, 0.91), row("l2", 100, 0.90), row("l3", 90, 0.90)]


@pytest.mark.parametrize(
    ("requirement", "value", "name", "why"),
    [
        ("max_macs", 1_000, "l0", "300 macs, the most accurate level that fits: 92.00 % on validation as int8"),
        ("max_macs", 100, "l3", "90 macs"),  # as accurate as l2 with fewer MACs
        ("max_macs", 80, None, "no level fits; the smallest is l3 with 90 macs"),
        ("max_size_bytes", 2_000, "l1", "2,000 size_bytes"),
        ("min_accuracy", 0.905, "l1", "200 macs, the fewest of the levels that reach it: 91.00 %"),
        ("min_accuracy", 0.93, None, "no level reaches it; the highest is l0 with 92.00 %"),
        ("max_ram_bytes", 1_000, None, "no level has a ram_bytes; pip install"),
        ("max_latency_ms", 1.0, "l0", "1.0 latency_ms"),
    ],
)
def test_the_level_under_a_requirement(requirement, value, name, why):
    answer = choose_level(ROWS, requirement, value)
    assert (answer.name, answer.requirement) == (name, f"{requirement}={value:g}")
    assert answer.why.startswith(why)


@pytest.fixture
def stub(monkeypatch, run, analysis):
    """Trainings and analyses that are done already; what was analysed, and when to be interrupted."""

    def train(spec, dataset, **options):
        return dataclasses.replace(run, spec=spec)

    def analyze(source, **options):
        made.calls.append(getattr(source, "spec", source))
        if len(made.calls) == made.stop_at:
            raise KeyboardInterrupt
        return analysis

    made = SimpleNamespace(calls=[], stop_at=None)
    monkeypatch.setattr(module, "train", train)
    monkeypatch.setattr(module, "analyze", analyze)
    monkeypatch.setattr(module, "report_html", lambda analysis, title: f"{title}: {', '.join(analysis.names)}")
    return made


def test_a_stopped_study_goes_on_and_writes_everything(stub, digits, spec, recipe, run, tmp_path):
    specs = [dataclasses.replace(spec, level=0), spec]
    out, stub.stop_at = tmp_path / "study", 2
    options = {"out": out, "recipe": recipe, "train_all": True, "verbose": False}
    with pytest.raises(KeyboardInterrupt):
        study(digits, specs, **options)
    assert (out / "study.csv").read_text().count("\n") == 2
    found = study(digits, specs, **options, requirements={"max_macs": 10**9, "min_accuracy": 1.0})
    assert stub.calls == [*specs, spec]  # the first level's analysis was kept
    with open(out / "study.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [spec.name for spec in specs]
    for row in rows:
        assert float(row["test_tflite"]) == run.metrics["accuracy"]["test"]["tflite"]
        assert row["origin"] == "trained"
        assert 0 < float(row["channel_precision_3x3"]) <= 1
    assert found.analysis.names == tuple(spec.name for spec in specs)
    assert (out / "report.html").read_text().endswith(", ".join(found.analysis.names))
    assert (out / "figures" / "accuracy.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [answer.name for answer in found.answers] == [specs[0].name, None]  # as accurate: which is first
    assert (out / "answers.csv").read_text().splitlines()[1].startswith(f"max_macs=1000000000,{specs[0].name},")
    # Another study in the folder
    with pytest.raises(ValueError, match=r"holds another study \(study.recipe: the folder has"):
        study(digits, specs, **options | {"recipe": dataclasses.replace(recipe, epochs=3)})
    (out / "dataset.json").unlink()  # as an older study's folder
    study(digits, specs, **options)
    assert (out / "dataset.json").is_file()
    assert not (out / "answers.csv").exists()  # nothing was asked


def test_nets_of_a_zoo_are_taken_with_a_latency_measured_here(stub, digits, spec, recipe, zoo, tmp_path, monkeypatch):
    monkeypatch.setattr("factorizenet_tf.plots.write_figures", lambda *arguments: None)
    (card,) = fnet.zoo.list(precision="int8", zoo_dir=zoo)
    options = {"recipe": recipe, "verbose": False}
    slow = dataclasses.replace(card, latency_ms=1e6)
    with monkeypatch.context() as patch:
        patch.setattr(module.zoo_module, "list", lambda **options: [slow])
        found = study(digits, [spec], out=tmp_path / "zoo", zoo_dir=zoo, **options)
    assert stub.calls == [card.spec]
    row = found.rows[0]
    assert (row["origin"], row["macs"], row["ram_bytes"]) == ("zoo", card.macs, card.ram_bytes)
    assert row["test_tflite"] == card.accuracy
    assert 0 < row["latency_ms"] < 1e3
    assert found.analysis.names == (spec.name,)
    monkeypatch.setenv("FACTORIZENET_ZOO", str(zoo))
    assert study(digits, [spec], out=tmp_path / "default", **options).rows[0]["origin"] == "zoo"
    found = study(digits, [spec], out=tmp_path / "all", train_all=True, **options)
    assert found.rows[0]["origin"] == "trained"


def test_bad_arguments_are_refused_before_anything_is_written(digits, spec, recipe, tmp_path, monkeypatch):
    options = {"out": tmp_path / "study", "recipe": recipe}
    with pytest.raises(ValueError, match="no levels"):
        study(digits, [], **options)
    with pytest.raises(ValueError, match="is given twice"):
        study(digits, [spec, spec], **options)
    with pytest.raises(TypeError, match="unexpected keyword argument 'max_flops'"):
        study(digits, [spec], **options, requirements={"max_flops": 1})
    with pytest.raises(ValueError, match="min_accuracy is 90"):
        study(digits, [spec], **options, requirements={"min_accuracy": 90})
    with pytest.raises(ValueError, match="qat_epochs is 0"):
        study(digits, [spec], **options | {"recipe": fnet.recipe_for("digits", qat_epochs=0)})
    with pytest.raises(ValueError, match="differs from"):
        study(digits, [spec, dataclasses.replace(spec, level=0, width=16)], **options)
    monkeypatch.setitem(sys.modules, "tflite_micro", None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError, match=r"needs tflite_micro: pip install 'factorizenet_tf\[micro\]'"):
        study(digits, [spec], **options, requirements={"max_ram_bytes": 1})
    assert not options["out"].exists()


@pytest.mark.slow
def test_the_simulated_accuracies_are_those_of_the_tflite_files(digits, tmp_path):
    specs = [fnet.ModelSpec(level, width=8, input_shape=digits.image_shape, stages=((1, 2),)) for level in (0, 3)]
    recipe = fnet.recipe_for("digits", epochs=2, qat_epochs=1, batch_size=128, calibration_images=32)
    found = study(digits, specs, out=tmp_path / "study", recipe=recipe, verbose=False)
    simulated = found.analysis.output.set_index(["net", "precision"])["accuracy"]
    for row, spec in zip(found.rows, specs):
        metrics = json.loads((found.folder / "runs" / spec.name / "metrics.json").read_text())
        assert row["test_tflite"] == metrics["accuracy"]["test"]["tflite"]
        for file, precision in (("ptq_per_channel", "per_channel W8A8"), ("qat", "qat W8A8"), ("float", "float")):
            # the simulation calibrates on more images than the recipe: a few images may differ
            assert abs(simulated[row["name"], precision] - row[f"validation_{file}"]) <= 4 / len(digits.validation)
