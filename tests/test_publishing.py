import dataclasses
import json
import os
import shutil
from types import SimpleNamespace

import pytest

import factorizenet_tf as fnet
from factorizenet_tf import publishing
from factorizenet_tf.publishing import measure_latencies, training_command

FLOAT, INT8 = "fnet-l1-x0.5-float", "fnet-l1-x0.5-int8"


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def copy(zoo, tmp_path):
    return shutil.copytree(zoo, tmp_path / "zoo")


@pytest.fixture
def quick(monkeypatch):
    """Latency of made-up numbers; the real one is measured once, for the session's zoo."""
    fields = dict.fromkeys(("latency_ms", "latency_ratio", "latency_2_threads_ms", "latency_2_threads_ratio"), 1.5) | {
        "latency_machine": "a machine"
    }
    monkeypatch.setattr(publishing, "_latencies", lambda found, spec: [fields for _ in found])


def test_a_published_run_has_the_runs_numbers(zoo, run):
    for name, key in ((FLOAT, "float"), (INT8, "tflite")):
        card = fnet.zoo.card(name, zoo=zoo)
        assert card.spec == run.spec
        assert card.accuracy == run.metrics["accuracy"]["test"][key]
        assert card.validation_accuracy == run.metrics["accuracy"]["validation"][key]
        assert card.accuracies == run.metrics["accuracy"]
        assert (card.macs, card.params) == (fnet.count_macs(run.spec), run.metrics["params"])
    assert fnet.zoo.card(FLOAT, zoo=zoo).ram_bytes is None
    card = fnet.zoo.card(INT8, zoo=zoo)
    assert card.size_bytes == (run.folder / "model.tflite").stat().st_size
    assert 2_000 < card.ram_bytes < 60_000
    assert 0.1 < card.latency_ratio < 3
    assert 0.001 < card.latency_ms < 10
    assert (card.input_scale, card.input_zero_point) == (pytest.approx(1 / 255), -128)
    log = (zoo / card.file("history").path).read_text()
    assert log == (run.folder / "history.csv").read_text()


def test_names_that_are_taken_are_replaced_only_when_asked(copy, run, quick):
    before = contents(copy)
    with pytest.raises(FileExistsError, match=f"{FLOAT}, {INT8} already; publish with replace"):
        fnet.zoo.publish(run, zoo=copy, verbose=False)
    assert contents(copy) == before
    fnet.zoo.publish(run, zoo=copy, replace=True, verbose=False)
    assert fnet.zoo.names(zoo=copy) == (FLOAT, INT8)
    assert fnet.zoo.card(INT8, zoo=copy).latency_ms == 1.5
    assert len(list((copy / "models").iterdir())) == 1


def test_a_publication_that_fails_leaves_the_zoo_as_it_was(copy, run, quick, monkeypatch):
    before = contents(copy)

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    for step in ("_write_files", "_write_index"):
        with monkeypatch.context() as patched:
            patched.setattr(publishing, step, fail)
            with pytest.raises(OSError, match="No space"):
                fnet.zoo.publish(run, zoo=copy, replace=True, verbose=False)
        index = contents(copy)["index.json"]
        assert index == before["index.json"]
        assert before.items() <= contents(copy).items()
        assert fnet.zoo.load(INT8, "tflite", zoo=copy).num_classes == 10


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_told_before_any_work(copy, run):
    copy.chmod(0o555)
    try:
        with pytest.raises(PermissionError):
            fnet.zoo.publish(run, zoo=copy, replace=True, verbose=False)
    finally:
        copy.chmod(0o755)


def test_a_folder_that_cannot_be_made_is_told(tmp_path, run):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        fnet.zoo.publish(run, zoo=tmp_path / "file" / "zoo", verbose=False)


def test_a_run_without_qat_or_metrics_is_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no finished run"):
        fnet.zoo.publish(tmp_path, zoo=tmp_path / "zoo")
    metrics = json.loads(json.dumps(run.metrics))
    del metrics["accuracy"]["test"]["qat"]
    with pytest.raises(ValueError, match="has no QAT phase"):
        fnet.zoo.publish(dataclasses.replace(run, metrics=metrics), zoo=tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_latencies_are_measured_for_all_in_one_run(copy, quick):
    cards = measure_latencies(copy, verbose=False)
    assert [card.latency_ms for card in cards] == [None, 1.5]
    assert fnet.zoo.list(zoo=copy) == cards
    assert "1.50" in (copy / "README.md").read_text()


def test_the_command_of_a_card_trains_the_same_run(run):
    dataset = {"name": "digits"}
    built = {}
    fnet_alike = SimpleNamespace(
        ModelSpec=fnet.ModelSpec,
        recipe_for=fnet.recipe_for,
        load_dataset=lambda name, input_shape: (name, input_shape),
        train=lambda spec, data, **options: built.update(spec=spec, data=data, **options),
    )
    exec(training_command(run, dataset), {"fnet": fnet_alike})
    assert (built["spec"], built["recipe"], built["data"]) == (run.spec, run.recipe, ("digits", (16, 16, 1)))
    recipe = fnet.recipe_for("digits", epochs=6, qat_epochs=2)
    assert training_command(dataclasses.replace(run, recipe=recipe), dataset) == (
        "factorizenet train --level 1 --width 8 --stages 1x2,2x2 --dataset digits --size 16 --channels 1 --epochs 6 "
        "--qat-epochs 2 --out runs/fnet-l1-x0.5"
    )
    baseline = dataclasses.replace(run, spec=fnet.baselines.ResNet8(), recipe=fnet.Recipe(seed=3))
    assert training_command(baseline, {"name": "cifar10"}) == (
        "factorizenet train --baseline resnet8 --dataset cifar10 --seed 3 --out runs/baseline-resnet8"
    )
    tuned = dataclasses.replace(run, recipe=recipe, metrics={"initial": "fnet-l2-float"})
    assert training_command(tuned, dataset).startswith("factorizenet train --from fnet-l2-float --dataset digits")
