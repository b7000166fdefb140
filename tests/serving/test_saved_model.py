import json
import sys

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from serving_contract import check_contract
from tensorflow_serving.apis import prediction_log_pb2

from factorizenet_tf.loading import Source
from factorizenet_tf.serving import saved_model
from factorizenet_tf.serving.saved_model import BATCH_SIZES, WARM_UP_FILE, export

REFUSALS = (tf.errors.InvalidArgumentError, TypeError, ValueError)


@pytest.fixture
def ask(loaded):
    def ask(signature, values, precision="int8"):
        function = loaded[precision][signature]
        (key,) = function.structured_input_signature[1]
        answer = {name: value.numpy() for name, value in function(**{key: tf.constant(values)}).items()}
        return answer | {"class_name": np.char.decode(answer["class_name"].astype(bytes))}

    return ask


def test_versions_lie_where_the_server_looks_for_them(int8, floating, folder, run):
    assert int8.folder == folder / f"{run.spec.name}-int8" / "1"
    assert floating.folder == folder / f"{run.spec.name}-float" / "3"
    assert (int8.version, floating.version) == (1, 3)
    assert int8.size_bytes == sum(f.stat().st_size for f in int8.folder.rglob("*") if f.is_file())
    assert (int8.folder / "model.tflite").stat().st_size == int8.tflite_bytes
    assert not (floating.folder / "model.tflite").exists()
    assert not list(folder.glob(".aside*"))
    for made in (int8, floating):
        assert b"XlaMustCompile" not in (made.folder / "saved_model.pb").read_bytes()


@pytest.mark.parametrize("precision", ["int8", "float"])
def test_the_contract_is_kept_with_the_models_own_numbers(precision, ask, models, digits):
    images = digits.test.images[:40]
    logits = check_contract(lambda signature, values: ask(signature, values, precision), images, REFUSALS)
    model = models.qat if precision == "int8" else models.float
    difference = np.abs(logits - model(images / np.float32(255), training=False))
    # Of the fake-quantized net a rounding tie may fall otherwise where a processor sums in another order.
    step = models.int8.output_quantization[0] if precision == "int8" else 0
    assert difference.max() <= 1e-4 + 3 * step
    assert np.median(difference) <= 1e-4


def test_images_of_another_shape_are_an_invalid_argument_to_a_session_of_cpp_too(int8):
    # As TensorFlow Serving runs it: a callable, which compares no shape with the placeholder's.
    from tensorflow.core.protobuf import config_pb2

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signature = tf.compat.v1.saved_model.load(session, ["serve"], str(int8.folder)).signature_def["serving_default"]
        call = session._make_callable_from_options(
            config_pb2.CallableOptions(feed=[signature.inputs["image"].name], fetch=[signature.outputs["logits"].name])
        )
        assert call(np.zeros((2, 16, 16, 1), np.uint8))[0].shape == (2, 10)
        for shape in [(1, 24, 16, 1), (1, 16, 16, 3), (16, 16, 1), (1, 1, 16, 16, 1), (256,)]:
            with pytest.raises(tf.errors.InvalidArgumentError, match="is not compatible with expected shape"):
                call(np.zeros(shape, np.uint8))


def test_labels_metadata_and_a_warm_up_request_of_each_batch_size_lie_beside_the_graph(int8, floating, loaded, digits):
    for made in (int8, floating):
        assert (made.folder / "assets" / "labels.txt").read_text().split() == list(digits.class_names)
        fields = json.loads((made.folder / "assets" / "metadata.json").read_text())
        assert fields["input"] == {"name": "image", "dtype": "uint8", "shape": [None, 16, 16, 1]}
        assert (fields["version"], fields["precision"]) == (made.version, made.precision)
        sizes = []
        for record in tf.data.TFRecordDataset(str(made.folder / WARM_UP_FILE)).as_numpy_iterator():
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            assert (request.model_spec.name, request.model_spec.signature_name) == (made.name, "serving_default")
            inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
            sizes.append(len(loaded[made.precision]["serving_default"](**inputs)["logits"]))
        assert tuple(sizes) == BATCH_SIZES


def test_the_tflite_beside_takes_the_warm_up_too_and_gives_the_int8_nets_logits(int8, models, digits):
    interpreter = Interpreter(str(int8.folder / "model.tflite"))
    signature = {"inputs": ["image"], "outputs": ["logits", "probabilities"]}
    assert interpreter.get_signature_list() == {"serving_default": signature}
    images = digits.test.images[:16]
    given = interpreter.get_signature_runner("serving_default")(image=images)
    np.testing.assert_array_equal(given["logits"], models.int8.predict(images))
    np.testing.assert_allclose(given["probabilities"].sum(1), 1, atol=1e-5)
    names = [detail["op_name"] for detail in interpreter._get_ops_details()]
    assert names.count("DEQUANTIZE") == 1


# Versions


@pytest.fixture
def quick(run, models, tmp_path, monkeypatch):
    """Exports a version whose files are few and quickly written, by the exporter's own steps."""

    def write(folder, *described):
        (folder / "saved_model.pb").write_bytes(b"graph")

    monkeypatch.setattr(saved_model, "_write_version", write)
    monkeypatch.setattr(Source, "model", lambda source: models.float)
    own = {"precision": "float", "name": "net"}
    return lambda **options: export(run.folder, tmp_path / "models", **own | options)


@pytest.fixture
def unloaded(monkeypatch):
    """No net is loaded: what is refused is refused before that."""
    monkeypatch.delattr(Source, "model")


def test_versions_rise_and_the_configuration_names_the_model_once(quick, tmp_path, request):
    folder = tmp_path / "models"
    assert [quick(version=version).version for version in (None, None, np.int64(7), None)] == [1, 2, 7, 8]
    assert (folder / "models.config").read_text().count('"/models/net"') == 1
    request.getfixturevalue("unloaded")
    for version in (8, 3):
        with pytest.raises(ValueError, match=f"version {version} of net is not above the newest, 8; give at least 9"):
            quick(version=version)
    for version in (0, 1.0, True, "9"):
        with pytest.raises(ValueError, match="it must be an integer of at least 1"):
            quick(version=version)
    (folder / "models.config").write_text("models: mine")
    with pytest.raises(ValueError, match=r"no models\.config that can be added to"):
        quick()
    assert sorted(path.name for path in (folder / "net").iterdir()) == ["1", "2", "7", "8"]


def test_a_failed_export_leaves_nothing_that_a_server_would_see(quick, tmp_path, monkeypatch):
    quick()
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))

    def fail(folder, *described):
        (folder / "saved_model.pb").write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(saved_model, "_write_version", fail)
    with pytest.raises(OSError, match="the disk is full"):
        quick()
    with pytest.raises(ValueError, match="3 labels for 10 classes"):
        quick(labels=["a", "b", "c"])
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_a_version_that_another_export_took_meanwhile_is_not_written_over(quick, tmp_path, monkeypatch):
    theirs = tmp_path / "models" / "net" / "1" / "saved_model.pb"

    def write_and_lose(folder, *described):
        theirs.parent.mkdir()
        theirs.write_bytes(b"theirs")

    monkeypatch.setattr(saved_model, "_write_version", write_and_lose)
    with pytest.raises(FileExistsError, match="was written by another export meanwhile; export again"):
        quick()
    assert theirs.read_bytes() == b"theirs"


def test_a_name_that_cannot_be_an_address_and_a_folder_in_use_are_refused_before_any_work(quick, unloaded, tmp_path):
    for name in ("a/b", "../net", "", "a b", ".hidden", "ü", "-x"):
        with pytest.raises(ValueError, match="cannot be served; use letters"):
            quick(name=name)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "models" / "net").mkdir(parents=True)
    (tmp_path / "models" / "net" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds thesis\.tex and not only versions"):
        quick()
    assert [path.name for path in (tmp_path / "models" / "net").iterdir()] == ["thesis.tex"]


def test_the_command_exports_versions_and_refuses_before_any_work(
    quick, run, tmp_path, monkeypatch, prints_json, succeeds, fails, request
):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "models.config").write_text("model_config_list {}")
    named = ["export", run.folder, "--serving", tmp_path / "models", "--precision", "float", "--name", "net"]
    (row,) = prints_json(*named)
    assert row.keys() == {"folder", "name", "version", "precision", "size_bytes", "tflite_bytes"}
    assert (row["name"], row["version"], row["precision"], row["tflite_bytes"]) == ("net", 1, "float", None)
    printed = succeeds(*named, "--version", 5)
    assert ("size bytes" in printed, "tflite bytes" in printed) == (True, False)
    request.getfixturevalue("unloaded")
    tflite = ["--tflite", tmp_path / "net.tflite"]
    assert "is not above the newest, 5" in fails(*named, *tflite, "--version", 4)
    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)
    assert "needs tensorflow_serving: pip install 'factorizenet_tf[serve]'" in fails(*named, *tflite, code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
