import json
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from google.protobuf import text_format
from serving_contract import check_contract
from tensorflow_serving.apis import prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from factorizenet_tf.cli import main
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


@pytest.mark.parametrize("shape", [(1, 24, 16, 1), (1, 16, 16, 3), (16, 16, 1), (1, 1, 16, 16, 1), (256,)])
def test_images_of_another_shape_are_an_invalid_argument_to_a_session_of_cpp_too(shape, int8):
    # As TensorFlow Serving runs it: a callable, which compares no shape with the placeholder's.
    from tensorflow.core.protobuf import config_pb2

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        signature = tf.compat.v1.saved_model.load(session, ["serve"], str(int8.folder)).signature_def["serving_default"]
        fetched = [signature.outputs[name].name for name in ("class_id", "logits")]
        call = session._make_callable_from_options(
            config_pb2.CallableOptions(feed=[signature.inputs["image"].name], fetch=fetched)
        )
        assert call(np.zeros((2, 16, 16, 1), np.uint8))[1].shape == (2, 10)
        with pytest.raises(tf.errors.InvalidArgumentError, match="is not compatible with expected shape"):
            call(np.zeros(shape, np.uint8))


def test_assets_have_labels_and_metadata(int8, digits):
    assert (int8.folder / "assets" / "labels.txt").read_text().split() == list(digits.class_names)
    fields = json.loads((int8.folder / "assets" / "metadata.json").read_text())
    assert fields["input"] == {"name": "image", "dtype": "uint8", "shape": [None, 16, 16, 1]}
    assert (fields["version"], fields["precision"], fields["labels"]) == (1, "int8", list(digits.class_names))


def test_warm_up_requests_replay_one_for_each_allowed_batch_size(int8, floating, loaded):

    for made in (int8, floating):
        records = list(tf.data.TFRecordDataset(str(made.folder / WARM_UP_FILE)).as_numpy_iterator())
        sizes = []
        for record in records:
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            assert (request.model_spec.name, request.model_spec.signature_name) == (made.name, "serving_default")
            inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
            given = loaded[made.precision][request.model_spec.signature_name](**inputs)
            sizes.append(given["logits"].shape[0])
        assert tuple(sizes) == BATCH_SIZES


def test_the_tflite_beside_takes_the_warm_up_too_and_gives_the_int8_nets_logits(int8, models, digits):
    interpreter = Interpreter(str(int8.folder / "model.tflite"))
    assert interpreter.get_signature_list() == {
        "serving_default": {"inputs": ["image"], "outputs": ["logits", "probabilities"]}
    }
    images = digits.test.images[:16]
    given = interpreter.get_signature_runner("serving_default")(image=images)
    np.testing.assert_array_equal(given["logits"], models.int8.predict(images))
    np.testing.assert_allclose(given["probabilities"].sum(1), 1, atol=1e-5)
    names = [detail["op_name"] for detail in interpreter._get_ops_details()]
    assert names.count("DEQUANTIZE") == 1


# Versions


@pytest.fixture
def quick(run, tmp_path, monkeypatch):
    """Exports a version whose files are few and quickly written, by the exporter's own steps."""

    def write(net, made, version):
        made.mkdir()
        (made / "saved_model.pb").write_bytes(b"graph")
        (made / WARM_UP_FILE).parent.mkdir()
        (made / WARM_UP_FILE).write_bytes(b"warm")

    monkeypatch.setattr(saved_model, "_write_version", write)
    return lambda **options: export(run.folder, tmp_path / "models", precision="float", name="net", **options)


def test_versions_rise_and_the_configuration_names_the_model_once(quick, tmp_path):
    folder = tmp_path / "models"
    assert [quick(version=version).version for version in (None, None, 7, None)] == [1, 2, 7, 8]
    for version in (8, 3, 7):
        with pytest.raises(ValueError, match=f"version {version} of net is not above the newest, 8; give at least 9"):
            quick(version=version)
    for version in (0, -1, 1.0, True, "9"):
        with pytest.raises(ValueError, match="it must be an integer of at least 1"):
            quick(version=version)
    assert sorted(path.name for path in (folder / "net").iterdir()) == ["1", "2", "7", "8"]
    text = (folder / "models.config").read_text()
    (model,) = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("net", "/models/net", "tensorflow")


def test_a_configuration_that_cannot_be_added_to_is_refused_before_the_work(quick, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "models.config").write_text("models: mine")
    with pytest.raises(ValueError, match=r"no models\.config that can be added to"):
        quick()
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["models.config"]
    assert (tmp_path / "models" / "models.config").read_text() == "models: mine"


def test_a_failed_export_leaves_nothing_that_a_server_would_see(quick, tmp_path, monkeypatch):
    quick()
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))

    def fail(net, made, version):
        made.mkdir()
        (made / "saved_model.pb").write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(saved_model, "_write_version", fail)
    with pytest.raises(OSError, match="the disk is full"):
        quick()
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_a_version_that_another_export_took_meanwhile_is_not_written_over(quick, tmp_path, monkeypatch):
    write = saved_model._write_version

    def write_and_lose(net, made, version):
        write(net, made, version)
        (tmp_path / "models" / "net" / str(version)).mkdir(parents=True)
        (tmp_path / "models" / "net" / str(version) / "saved_model.pb").write_bytes(b"theirs")

    monkeypatch.setattr(saved_model, "_write_version", write_and_lose)
    with pytest.raises(FileExistsError, match="was written by another export meanwhile"):
        quick()
    assert (tmp_path / "models" / "net" / "1" / "saved_model.pb").read_bytes() == b"theirs"


@pytest.mark.parametrize("name", ["a/b", "../net", "", "a b", ".hidden", "ü", "-x"])
def test_names_that_cannot_be_a_folder_or_an_address_are_refused(name, run, tmp_path):
    with pytest.raises(ValueError, match="cannot be served; use letters"):
        export(run.folder, tmp_path, name=name or " ", precision="float")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_refused(quick, tmp_path):
    (tmp_path / "models" / "net").mkdir(parents=True)
    (tmp_path / "models" / "net" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds thesis\.tex and not only versions"):
        quick()
    assert [path.name for path in (tmp_path / "models" / "net").iterdir()] == ["thesis.tex"]
    shutil.rmtree(tmp_path / "models")
    (tmp_path / "models").write_text("")
    with pytest.raises(OSError, match="models"):
        quick()


def test_sources_and_labels_that_do_not_fit_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"is a \.tflite.* no Keras model"):
        export(run.folder / "model.tflite", tmp_path)
    with pytest.raises(FileNotFoundError, match="none"):
        export(tmp_path / "none", tmp_path)
    with pytest.raises(ValueError, match="3 labels for 10 classes"):
        export(run.folder, tmp_path, precision="float", labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="is a float model; an int8 one is needed"):
        export(run.folder / "float.h5", tmp_path, precision="int8")
    with pytest.raises(ValueError, match="precision is 'int4'"):
        export(run.folder, tmp_path, precision="int4")
    assert list(tmp_path.iterdir()) == []


def test_the_command_exports_versions(quick, run, tmp_path, capsys):
    arguments = ["export", str(run.folder), "--serving", str(tmp_path / "models"), "--precision", "float"]
    arguments += ["--name", "net"]
    assert main([*arguments, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row.keys() == {"folder", "name", "version", "precision", "size_bytes", "tflite_bytes"}
    assert (row["name"], row["version"], row["precision"], row["tflite_bytes"]) == ("net", 1, "float", None)
    assert main([*arguments, "--version", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["version"] == 5
    assert main([*arguments, "--version", "4"]) == 2
    assert "is not above the newest, 5" in capsys.readouterr().err


def test_a_missing_package_is_named_before_the_work(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_serving", None)
    for name in [name for name in sys.modules if name.startswith("tensorflow_serving.")]:
        monkeypatch.delitem(sys.modules, name)
    arguments = [
        "export",
        str(run.folder),
        "--tflite",
        str(tmp_path / "a.tflite"),
        "--serving",
        str(tmp_path / "models"),
    ]
    assert main(arguments) == 1
    assert "needs tensorflow_serving: pip install 'factorizenet_tf[serve]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
