import csv
import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest

import factorizenet_tf as fnet
from factorizenet_tf.analysis import study as module
from factorizenet_tf.analysis.study import choose_level, study


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
def test_the_choose_level_under_a_requirement(requirement, value, name):
    answer = choose_level(ROWS, requirement, value)
    assert answer.name == name
    assert answer.requirement == f"{requirement}={value:g}" if isinstance(value, float) else f"{requirement}={value}"
    if name is None:
        assert "no level" in answer.why


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
    return made


def test_a_stopped_study_goes_on_and_writes_everything(stub, digits, spec, recipe, run, tmp_path):
    specs = [dataclasses.replace(spec, level=0), spec]
    out, stub.stop_at = tmp_path / "study", 2
    options = {"out": out, "recipe": recipe, "train_all": True, "verbose": False}
    with pytest.raises(KeyboardInterrupt):
        study(digits, specs, **options)
    assert (out / "study.csv").read_text().count("\n") == 2
    (out / "analyses" / spec.name).mkdir()
    (out / "analyses" / spec.name / "nets.csv").write_text("half")
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
    assert (out / "report.html").stat().st_size > 800_000
    assert (out / "figures" / "accuracy.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = (out / "study.md").read_text()
    assert all(f"| {spec.name} |" in page for spec in specs)
    assert [answer.name for answer in found.answers] == [specs[0].name, None]  # as accurate: which is first
    assert f"Under `max_macs=1000000000`: {specs[0].name}" in page
    # Another study in the folder
    with pytest.raises(ValueError, match=r"holds another study \(study.recipe: the folder has"):
        study(digits, specs, **options | {"recipe": dataclasses.replace(recipe, epochs=3)})
    images = digits.test.images.copy()
    images[0, 0, 0, 0] ^= 1
    other = dataclasses.replace(digits, test=fnet.Split(images, digits.test.labels))
    with pytest.raises(ValueError, match=r"holds another study \(dataset.sha256: the folder has"):
        study(other, specs, **options)
    with pytest.raises(ValueError, match="holds other files"):
        study(digits, specs, **options | {"out": out / "analyses"})
    (out / "dataset.json").unlink()  # as an older study's folder
    study(digits, specs, **options)
    assert (out / "dataset.json").is_file()


def test_nets_of_a_zoo_are_taken_with_a_latency_measured_here(stub, digits, spec, recipe, zoo, tmp_path, monkeypatch):
    (card,) = fnet.zoo.list(precision="int8", zoo_dir=zoo)
    options = {"recipe": recipe, "verbose": False}
    found = study(digits, [spec], out=tmp_path / "zoo", zoo_dir=zoo, **options)
    assert stub.calls == [card.spec]
    row = found.rows[0]
    assert (row["origin"], row["macs"], row["ram_bytes"]) == ("zoo", card.macs, card.ram_bytes)
    assert row["test_tflite"] == card.accuracy
    assert found.analysis.names == (spec.name,)
    monkeypatch.setenv("FACTORIZENET_ZOO", str(zoo))
    assert study(digits, [spec], out=tmp_path / "default", **options).rows[0]["origin"] == "zoo"
    found = study(digits, [spec], out=tmp_path / "all", train_all=True, **options)
    assert found.rows[0]["origin"] == "trained"
    slow = module._published_row(dataclasses.replace(card, latency_ms=1e6))
    assert 0 < slow["latency_ms"] < 1e3


def test_bad_arguments_are_refused_before_anything_is_written(digits, spec, recipe, tmp_path, monkeypatch):
    out = tmp_path / "study"
    with pytest.raises(ValueError, match="no levels"):
        study(digits, [], out=out, recipe=recipe)
    with pytest.raises(ValueError, match="is given twice"):
        study(digits, [spec, spec], out=out, recipe=recipe)
    with pytest.raises(ValueError, match="unknown requirements max_flops"):
        study(digits, [spec], out=out, recipe=recipe, requirements={"max_flops": 1})
    with pytest.raises(ValueError, match="min_accuracy is 90"):
        study(digits, [spec], out=out, recipe=recipe, requirements={"min_accuracy": 90})
    with pytest.raises(ValueError, match="qat_epochs is 0"):
        study(digits, [spec], out=out, recipe=fnet.recipe_for("digits", qat_epochs=0))
    with pytest.raises(ValueError, match="differs from"):
        study(digits, [spec, dataclasses.replace(spec, level=0, width=16)], out=out, recipe=recipe)
    for module_name, extra, requirements in (
        ("vl_convert", "report", {}),
        ("tflite_micro", "micro", {"max_ram_bytes": 1}),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module_name, None)  # as if it were not installed
            with pytest.raises(
                ModuleNotFoundError, match=rf"needs {module_name}: pip install 'factorizenet_tf\[{extra}\]'"
            ):
                study(digits, [spec], out=out, recipe=recipe, requirements=requirements)
    assert not out.exists()


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
