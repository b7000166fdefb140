from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from factorizenet_tf.cli import main
from factorizenet_tf.loading import resolve
from factorizenet_tf.models import convert
from factorizenet_tf.models.convert import write_saved_model
from factorizenet_tf.tflite.export import export_tflite


@pytest.mark.parametrize("kind", ["float", "qat", "own"])
def test_a_saved_model_gives_the_models_logits_without_xla_to_any_batch(models, digits, kind, tmp_path):
    model = tf_keras.models.clone_model(models.float) if kind == "own" else getattr(models, kind)
    written = write_saved_model(model, tmp_path / "sm")
    assert written == sum(file.stat().st_size for file in (tmp_path / "sm").rglob("*") if file.is_file())
    assert [path.name for path in tmp_path.iterdir()] == ["sm"]
    served = tf.saved_model.load(str(tmp_path / "sm")).signatures["serving_default"]
    image = served.structured_input_signature[1]["image"]
    assert (image.shape.as_list(), image.dtype) == ([None, 16, 16, 1], tf.float32)
    for batch in (1, 9):
        images = tf.constant(digits.test.images[:batch] / np.float32(255))
        np.testing.assert_allclose(served(image=images)["logits"], model(images, training=False), atol=1e-4)
    assert b"XlaMustCompile" not in (tmp_path / "sm" / "saved_model.pb").read_bytes()


def test_a_save_that_fails_leaves_nothing_behind_and_nothing_is_written_over(models, run, tmp_path, monkeypatch):
    def fail(module, folder, signatures):
        (Path(folder) / "assets").mkdir()
        raise OSError("the disk is full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_saved_model(models.float, tmp_path / "sm")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileExistsError, match="is there already; choose another name or remove it"):
        write_saved_model(models.float, tmp_path)
    with pytest.raises(FileExistsError, match="is there already; choose another name or remove it"):
        export_tflite(resolve(run).tflite(), tmp_path, name="net")


def test_qat_weights_without_their_run_are_converted(run, models, tmp_path, monkeypatch):
    (tmp_path / "qat.h5").write_bytes((run.folder / "qat.h5").read_bytes())
    monkeypatch.setattr(convert, "to_tflite", lambda model, labels, **options: (model.get_weights(), labels))
    weights, labels = resolve(tmp_path / "qat.h5").tflite()
    assert labels is None
    for ours, expected in zip(weights, models.qat.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_an_option_without_its_target_is_refused(run, tmp_path, capsys):
    command = ["export", str(run.folder), "--saved-model", str(tmp_path / "sm")]
    for option in (["--regroup", "fastest"], ["--io", "uint8"], ["--latencies", "t.json"]):
        assert main([*command, *option]) == 2
        assert f"without --tflite FILE no .tflite is written, so {option[0]} would" in capsys.readouterr().err
    for option in (["--version", "2"], ["--name", "x"], ["--precision", "float"]):
        assert main([*command, *option]) == 2
        assert f"without --serving FOLDER no version is written, so {option[0]} would" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
