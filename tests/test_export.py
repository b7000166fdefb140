import numpy as np
import pytest
import tensorflow as tf

from factorizenet_tf.export import export_saved_model, export_tflite


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
