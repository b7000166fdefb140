from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import factorizenet_tf as fnet
from factorizenet_tf.loading import export_saved_model, export_tflite


@pytest.mark.parametrize("source", [".", "float.h5", "qat.h5"])
def test_a_saved_model_gives_the_models_logits_without_xla(run, models, digits, source, tmp_path):
    written = export_saved_model(run.folder / source, tmp_path / "sm")
    assert written == sum(file.stat().st_size for file in (tmp_path / "sm").rglob("*") if file.is_file())
    assert [path.name for path in tmp_path.iterdir()] == ["sm"]
    served = tf.saved_model.load(str(tmp_path / "sm")).signatures["serving_default"]
    images = tf.constant(digits.test.images[:9] / np.float32(255))
    model = models.qat if source == "qat.h5" else models.float
    np.testing.assert_allclose(served(image=images)["logits"], model(images, training=False), atol=1e-4)
    assert b"XlaMustCompile" not in (tmp_path / "sm" / "saved_model.pb").read_bytes()


def test_nothing_is_written_over(run, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="is there already"):
        export_saved_model(run.folder, tmp_path / "there")
    with pytest.raises(FileExistsError, match="is there already"):
        export_tflite(run.folder, tmp_path / "there")


def test_sources_that_cannot_be_exported_are_refused(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at"):
        export_saved_model(tmp_path / "none", tmp_path / "sm")
    with pytest.raises(ValueError, match=r"is a \.tflite"):
        export_saved_model(run.folder / "model.tflite", tmp_path / "sm")
    (tmp_path / "bad.tflite").write_bytes(b"x")
    with pytest.raises(ValueError, match="damaged"):
        export_tflite(tmp_path / "bad.tflite", tmp_path / "copy.tflite")
    assert not (tmp_path / "copy.tflite").exists()


def test_grouped_convolutions_of_ones_own_model_are_exported_without_xla_which_saving_it_would_keep(models, tmp_path):
    stock = tf_keras.models.clone_model(models.float)
    stock.save(tmp_path / "own.keras")
    tf.saved_model.save(stock, str(tmp_path / "stock"))
    assert b"XlaMustCompile" in (tmp_path / "stock" / "saved_model.pb").read_bytes()
    export_saved_model(tmp_path / "own.keras", tmp_path / "sm")
    assert b"XlaMustCompile" not in (tmp_path / "sm" / "saved_model.pb").read_bytes()


def test_an_exported_folder_takes_any_batch_and_has_the_named_signature(run, tmp_path):
    export_saved_model(run.folder, tmp_path / "sm")
    served = tf.saved_model.load(str(tmp_path / "sm")).signatures["serving_default"]
    image = served.structured_input_signature[1]["image"]
    assert (image.shape.as_list(), image.dtype) == ([None, 16, 16, 1], tf.float32)
    for batch in (1, 3):
        assert served(image=tf.zeros((batch, 16, 16, 1)))["logits"].shape == (batch, 10)


def test_a_save_that_fails_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def fail(module, folder, signatures):
        Path(folder).mkdir()
        raise OSError("the disk is full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="the disk is full"):
        export_saved_model(run.folder, tmp_path / "sm")
    assert list(tmp_path.iterdir()) == []


def test_qat_weights_export_to_what_the_run_has_and_float_ones_are_refused(run, digits, tmp_path):
    written = export_tflite(run.folder / "qat.h5", tmp_path / "qat.tflite")
    assert written.size_bytes == (tmp_path / "qat.tflite").stat().st_size
    again = fnet.Int8Model(tmp_path / "qat.tflite")
    expected = run.int8_model().predict_quantized(digits.test.images)
    np.testing.assert_array_equal(again.predict_quantized(digits.test.images), expected)
    with pytest.raises(ValueError, match=r"is a float model; `factorizenet quantize` makes it int8"):
        export_tflite(run.folder / "float.h5", tmp_path / "float.tflite")
    assert not (tmp_path / "float.tflite").exists()


def test_an_option_without_its_target_is_refused(run, tmp_path, capsys):
    from factorizenet_tf.cli import main

    command = ["export", str(run.folder), "--saved-model", str(tmp_path / "sm")]
    for option in (["--lower", "fastest"], ["--io", "uint8"], ["--latencies", "t.json"]):
        assert main([*command, *option]) == 2
        assert "are of the .tflite; give --tflite FILE" in capsys.readouterr().err
    for option in (["--version", "2"], ["--name", "x"], ["--precision", "float"]):
        assert main([*command, *option]) == 2
        assert "are of TensorFlow Serving; give --serving FOLDER" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
