from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.loading import resolve
from factorizenet_tf.models.convert import write_saved_model
from factorizenet_tf.tflite.export import export_tflite


@pytest.mark.parametrize("precision", ["float", "qat"])
def test_a_saved_model_gives_the_models_logits_without_xla_to_any_batch(models, digits, precision, tmp_path):
    model = getattr(models, precision)
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


def test_grouped_convolutions_of_ones_own_model_are_exported_without_xla_which_saving_it_would_keep(models, tmp_path):
    stock = tf_keras.models.clone_model(models.float)
    stock.save(tmp_path / "own.keras")
    tf.saved_model.save(stock, str(tmp_path / "stock"))
    assert b"XlaMustCompile" in (tmp_path / "stock" / "saved_model.pb").read_bytes()
    write_saved_model(resolve(tmp_path / "own.keras").model(), tmp_path / "sm")
    assert b"XlaMustCompile" not in (tmp_path / "sm" / "saved_model.pb").read_bytes()


def test_a_save_that_fails_leaves_nothing_behind(models, tmp_path, monkeypatch):
    def fail(module, folder, signatures):
        Path(folder).mkdir()
        raise OSError("the disk is full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_saved_model(models.float, tmp_path / "sm")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(run, models, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="is there already"):
        write_saved_model(models.float, tmp_path / "there")
    with pytest.raises(FileExistsError, match="is there already"):
        export_tflite(resolve(run).tflite(), tmp_path / "there", name="net")
    for option in ("--tflite", "--saved-model", "--micro"):
        assert main(["export", str(run.folder), option, str(tmp_path / "there")]) == 2
        assert "there is there already; choose another name or remove it" in capsys.readouterr().err


def test_qat_weights_without_their_run_are_converted_to_what_the_run_has(run, digits, tmp_path):
    (tmp_path / "qat.h5").write_bytes((run.folder / "qat.h5").read_bytes())
    content = resolve(tmp_path / "qat.h5").tflite()
    expected = run.int8_model().predict_quantized(digits.test.images)
    np.testing.assert_array_equal(fnet.Int8Model(content).predict_quantized(digits.test.images), expected)


def test_an_option_without_its_target_is_refused(run, tmp_path, capsys):
    command = ["export", str(run.folder), "--saved-model", str(tmp_path / "sm")]
    for option in (["--regroup", "fastest"], ["--io", "uint8"], ["--latencies", "t.json"]):
        assert main([*command, *option]) == 2
        assert "are of the .tflite; give --tflite FILE" in capsys.readouterr().err
    for option in (["--version", "2"], ["--name", "x"], ["--precision", "float"]):
        assert main([*command, *option]) == 2
        assert "are of TensorFlow Serving; give --serving FOLDER" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
