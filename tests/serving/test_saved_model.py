import io
import json
import os
import shutil
import subprocess
import threading
import time
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from ai_edge_litert.interpreter import Interpreter
from factorizenet_tf.serving.config import (
    BATCH_SIZES,
    GRPC_PORT,
    REST_PORT,
    Labels,
    read_labels,
    set_labels,
    versions_in,
)
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from PIL import Image
from serving_contract import check_contract

import factorizenet_tf as fnet
from factorizenet_tf.cli import main
from factorizenet_tf.serving import config as serving_config
from factorizenet_tf.serving import saved_model as serving_export
from factorizenet_tf.serving.saved_model import WARM_UP_FILE, export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serving") / "models"


@pytest.fixture(scope="module")
def int8(run, folder):
    return export(run.folder, folder)


@pytest.fixture(scope="module")
def floating(run, folder, int8):
    return export(run.folder, folder, precision="float", version=3)


@pytest.fixture(scope="module")
def loaded(int8, floating):
    """Both versions as the server loads them, by precision."""
    return {e.precision: tf.saved_model.load(str(e.folder), tags=["serve"]).signatures for e in (int8, floating)}


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, kind)
    return file.getvalue()


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
def test_signatures_give_the_models_numbers_and_agree(precision, loaded, models, digits):
    images = digits.test.images[:40]
    signatures = loaded[precision]
    assert set(signatures) == {"serving_default", "serving_bytes"}
    given = signatures["serving_default"](image=tf.constant(images))
    assert {name: value.dtype.name for name, value in given.items()} == {
        "logits": "float32",
        "probabilities": "float32",
        "class_id": "int64",
        "class_name": "string",
    }
    model = models.qat if precision == "int8" else models.float
    difference = np.abs(given["logits"] - model(images / np.float32(255), training=False))
    if precision == "int8":  # a rounding tie may fall otherwise in another order of sums
        assert difference.max() <= 1.01 * models.int8.output_quantization[0]
        assert np.mean(difference > 1e-4) <= 0.03
    else:
        assert difference.max() <= 1e-4
    np.testing.assert_allclose(given["probabilities"].numpy().sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(given["probabilities"], tf.nn.softmax(given["logits"]), atol=1e-6)
    np.testing.assert_array_equal(given["class_id"], given["logits"].numpy().argmax(1))
    names = [digits.class_names[i].encode() for i in given["class_id"].numpy()]
    assert given["class_name"].numpy().tolist() == names
    strings = [encoded(image) for image in images]
    by_bytes = signatures["serving_bytes"](image_bytes=tf.constant(strings))
    for name in ("logits", "probabilities"):
        np.testing.assert_allclose(by_bytes[name], given[name], atol=1e-5)
    for name in ("class_id", "class_name"):
        np.testing.assert_array_equal(by_bytes[name], given[name])


def test_files_of_other_sizes_and_kinds_are_resized_as_training_images_are(loaded):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (8, 9, 3)).astype(np.uint8)
    large = np.kron(small, np.ones((7, 7, 1), np.uint8))
    signatures = loaded["float"]
    for kind in ("PNG", "JPEG"):
        content = encoded(large, kind)
        with Image.open(io.BytesIO(content)) as picture:
            expected = np.asarray(picture.convert("L").resize((16, 16), Image.Resampling.BILINEAR))[None, ..., None]
        by_bytes = signatures["serving_bytes"](image_bytes=tf.constant([content]))
        by_image = signatures["serving_default"](image=tf.constant(expected))
        np.testing.assert_allclose(by_bytes["probabilities"], by_image["probabilities"], atol=0.05)


def test_bytes_that_are_no_image_are_an_invalid_argument(loaded):
    for content in (b"", b"no image", encoded(np.zeros((16, 16), np.uint8))[:40]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            loaded["int8"]["serving_bytes"](image_bytes=tf.constant([content]))


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
    from tensorflow_serving.apis import prediction_log_pb2

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


def dynamic_messages():
    """TensorFlow Serving's BatchingParameters and MonitoringConfig, which tensorflow-serving-api leaves out."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="test_serving.proto", package="test_serving", syntax="proto3")
    file.dependency.append("google/protobuf/wrappers.proto")
    batching = file.message_type.add(name="BatchingParameters")
    names = ["max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"]
    for number, name in enumerate(names, 1):
        kind = {"type": field.TYPE_MESSAGE, "type_name": ".google.protobuf.Int64Value", "label": field.LABEL_OPTIONAL}
        batching.field.add(name=name, number=number, **kind)
    batching.field.add(name="allowed_batch_sizes", number=6, type=field.TYPE_INT64, label=field.LABEL_REPEATED)
    prometheus = file.message_type.add(name="PrometheusConfig")
    prometheus.field.add(name="enable", number=1, type=field.TYPE_BOOL, label=field.LABEL_OPTIONAL)
    prometheus.field.add(name="path", number=2, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    monitoring = file.message_type.add(name="MonitoringConfig")
    kind = {"type": field.TYPE_MESSAGE, "type_name": ".test_serving.PrometheusConfig", "label": field.LABEL_OPTIONAL}
    monitoring.field.add(name="prometheus_config", number=1, **kind)
    pool = descriptor_pool.DescriptorPool()
    wrappers = descriptor_pb2.FileDescriptorProto()
    from google.protobuf import wrappers_pb2

    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    pool.Add(wrappers)
    pool.Add(file)
    return [
        message_factory.GetMessageClass(pool.FindMessageTypeByName(f"test_serving.{name}"))
        for name in ("BatchingParameters", "MonitoringConfig")
    ]


def test_batching_and_monitoring_parse_as_the_servers_protos(floating, folder):
    batching_class, monitoring_class = dynamic_messages()
    batching = text_format.Parse((folder / "batching.config").read_text(), batching_class())
    assert tuple(batching.allowed_batch_sizes) == BATCH_SIZES
    assert batching.max_batch_size.value == BATCH_SIZES[-1]  # the server refuses any other
    assert batching.num_batch_threads.value == os.cpu_count()
    assert 0 < batching.batch_timeout_micros.value <= 10_000
    monitoring = text_format.Parse((folder / "monitoring.config").read_text(), monitoring_class())
    assert monitoring.prometheus_config.enable
    assert monitoring.prometheus_config.path == "/monitoring/prometheus/metrics"


def model_config(folder):
    from tensorflow_serving.config import model_server_config_pb2

    config = text_format.Parse((folder / "models.config").read_text(), model_server_config_pb2.ModelServerConfig())
    return {one.name: one for one in config.model_config_list.config}


def test_the_model_config_has_every_variant(int8, floating, folder):
    found = model_config(folder)
    assert set(found) == {int8.name, floating.name}
    for made in (int8, floating):
        one = found[made.name]
        assert one.base_path == f"/models/{made.name}"
        assert one.model_platform == "tensorflow"
        assert one.model_version_policy.WhichOneof("policy_choice") == "all"  # or no label in use could be moved
        assert dict(one.version_labels) == {"stable": made.version}


def test_the_compose_file_mounts_the_folder_and_names_files_that_are_there(floating, folder):
    service = yaml.safe_load((folder / "docker-compose.yml").read_text())["services"]["serving"]
    assert service["volumes"] == [".:/models:ro"]
    options = dict(argument.removeprefix("--").split("=") for argument in service["command"])
    assert options["allow_version_labels_for_unavailable_models"] == "true"  # of a version that loads
    for name in ("model_config_file", "batching_parameters_file", "monitoring_config_file"):
        assert (folder / options[name].removeprefix("/models/")).is_file()
    assert {f"{options[port]}:{options[port]}" for port in ("port", "rest_api_port")} == set(service["ports"])


def test_the_bare_command_reads_the_models_from_the_folder_itself(floating, folder, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tensorflow_model_server").write_text('#!/bin/sh\nfor a in "$@"; do echo "$a"; done\n')
    (tmp_path / "bin" / "tensorflow_model_server").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    command = [folder / "serve.sh", "--prefer_tflite_model=true"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    options = dict(line.removeprefix("--").split("=") for line in result.stdout.splitlines())
    assert options["prefer_tflite_model"] == "true"
    config = Path(options["model_config_file"]).read_text()
    assert f'base_path: "{folder}/{floating.name}"' in config
    assert Path(options["batching_parameters_file"]) == folder / "batching.config"


@pytest.mark.skipif(
    shutil.which("tensorflow_model_server") is None and "TF_SERVING_URL" not in os.environ,
    reason="no tensorflow_model_server on PATH and no TF_SERVING_URL of one that serves an exported model",
)
def test_a_real_server_keeps_the_contract(floating, folder):
    if "TF_SERVING_URL" in os.environ:
        urls = [os.environ[name] for name in ("TF_SERVING_URL", "TF_SERVING_GRPC_URL") if name in os.environ]
        check_contract(os.environ.get("TF_SERVING_MODEL", floating.name), *urls)
        return
    server = subprocess.Popen([folder / "serve.sh"])
    try:
        check_contract(floating.name, f"http://localhost:{REST_PORT}", f"grpc://localhost:{GRPC_PORT}")
    finally:
        server.terminate()
        server.wait(30)


# Versions


@pytest.fixture
def quick(run, tmp_path, monkeypatch):
    """Exports a version whose files are few and quickly written, by the exporter's own order of steps."""

    def write(net, made, version):
        made.mkdir()
        (made / "saved_model.pb").write_bytes(b"graph")
        (made / WARM_UP_FILE).parent.mkdir()
        (made / WARM_UP_FILE).write_bytes(b"warm")

    monkeypatch.setattr(serving_export, "_write_version", write)
    return lambda **options: export(run.folder, tmp_path / "models", precision="float", name="net", **options)


def test_versions_rise_and_labels_wait_to_be_promoted(quick, tmp_path):
    folder = tmp_path / "models"
    assert [quick(version=version).version for version in (None, None, 7, None)] == [1, 2, 7, 8]
    assert versions_in(folder / "net") == [1, 2, 7, 8]
    assert read_labels(folder) == {"net": Labels(1, 8)}
    for version in (8, 3, 7):
        with pytest.raises(ValueError, match=f"version {version} of net is not above the newest, 8; give at least 9"):
            quick(version=version)
    for version in (0, -1, 1.0, True, "9"):
        with pytest.raises(ValueError, match="it must be an integer of at least 1"):
            quick(version=version)
    assert versions_in(folder / "net") == [1, 2, 7, 8]


def test_a_canary_is_promoted_and_rolled_back(quick, tmp_path):
    folder = tmp_path / "models"
    for _ in range(3):
        quick()
    config = model_config(folder)["net"]
    assert dict(config.version_labels) == {"stable": 1, "canary": 3}
    assert config.model_version_policy.WhichOneof("policy_choice") == "all"
    assert set_labels(folder, "net", stable=3) == Labels(3)
    assert dict(model_config(folder)["net"].version_labels) == {"stable": 3}
    assert set_labels(folder, "net", stable=2, canary=3) == Labels(2, 3)
    assert set_labels(folder, "net", stable=3, canary=3) == Labels(3)
    assert quick().labels == Labels(3, 4)
    with pytest.raises(ValueError, match="net has no version 9; it has 1, 2, 3, 4"):
        set_labels(folder, "net", stable=9)
    with pytest.raises(FileNotFoundError, match=r"no model 'other' in .*; there are net"):
        set_labels(folder, "other", stable=1)


def test_exports_and_labels_at_once_lose_none(quick, run, tmp_path, monkeypatch):
    folder = tmp_path / "models"
    names = [f"net{i}" for i in range(4)]
    for _ in range(2):
        for name in names[:2]:
            export(run.folder, folder, precision="float", name=name)
    read = serving_config.read_labels

    def read_slowly(folder):
        found = read(folder)
        time.sleep(0.2)
        return found

    for module in (serving_config, serving_export):
        monkeypatch.setattr(module, "read_labels", read_slowly)
    with futures.ThreadPoolExecutor(4) as pool:
        given = [pool.submit(set_labels, folder, name, stable=2) for name in names[:2]]
        given += [pool.submit(export, run.folder, folder, precision="float", name=name) for name in names[2:]]
        for one in given:
            one.result()
    assert read(folder) == {"net0": Labels(2), "net1": Labels(2), "net2": Labels(1), "net3": Labels(1)}


def test_labels_of_a_folder_that_is_none_are_refused_and_make_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no models\.config in .*none; give a folder of"):
        set_labels(tmp_path / "none", "net", stable=1)
    assert not (tmp_path / "none").exists()


def test_a_failed_export_leaves_nothing_that_a_server_would_see(quick, tmp_path, monkeypatch):
    quick()
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))

    def fail(net, made, version):
        made.mkdir()
        (made / "saved_model.pb").write_bytes(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(serving_export, "_write_version", fail)
    with pytest.raises(OSError, match="the disk is full"):
        quick()
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_a_version_that_another_export_took_meanwhile_is_not_written_over(quick, tmp_path, monkeypatch):
    write = serving_export._write_version

    def write_and_lose(net, made, version):
        write(net, made, version)
        (tmp_path / "models" / "net" / str(version)).mkdir(parents=True)
        (tmp_path / "models" / "net" / str(version) / "saved_model.pb").write_bytes(b"theirs")

    monkeypatch.setattr(serving_export, "_write_version", write_and_lose)
    with pytest.raises(FileExistsError, match="was written by another export meanwhile"):
        quick()
    assert (tmp_path / "models" / "net" / "1" / "saved_model.pb").read_bytes() == b"theirs"


def test_a_polling_server_never_sees_half_a_version(run, tmp_path):
    folder = tmp_path / "models"
    stop, seen, broken = threading.Event(), set(), []
    wanted = ("saved_model.pb", "variables/variables.index", "assets/labels.txt", "assets/metadata.json", WARM_UP_FILE)

    def poll():
        while not stop.is_set():
            for version in versions_in(folder / "net"):
                missing = [name for name in wanted if not (folder / "net" / str(version) / name).is_file()]
                broken.extend(missing)
                if version not in seen and not missing:
                    tf.saved_model.load(str(folder / "net" / str(version)))
                    seen.add(version)

    reader = threading.Thread(target=poll)
    reader.start()
    try:
        for _ in range(2):
            export(run.folder, folder, precision="float", name="net")
    finally:
        stop.set()
        reader.join(60)
    assert seen >= {1}
    assert broken == []
    assert versions_in(folder / "net") == [1, 2]


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
    with pytest.raises(ValueError, match=r"is a \.tflite; a SavedModel is made from"):
        export(run.folder / "model.tflite", tmp_path)
    with pytest.raises(FileNotFoundError, match="no model at"):
        export(tmp_path / "none", tmp_path)
    with pytest.raises(ValueError, match="3 labels for 10 classes"):
        export(run.folder, tmp_path, precision="float", labels=["a", "b", "c"])
    with pytest.raises(ValueError, match="is float; it cannot be served as int8"):
        export(run.folder / "float.h5", tmp_path, precision="int8")
    with pytest.raises(ValueError, match="precision is 'int4'"):
        export(run.folder, tmp_path, precision="int4")
    assert list(tmp_path.iterdir()) == []


def test_the_command_exports_and_moves_labels(quick, run, tmp_path, capsys):
    arguments = [
        "export",
        str(run.folder),
        "--serving",
        str(tmp_path / "models"),
        "--precision",
        "float",
        "--name",
        "net",
    ]
    assert main([*arguments, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["name"], row["version"], row["stable"], row["canary"]) == ("net", 1, 1, None)
    assert main([*arguments, "--version", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["version"] == 5
    assert main([*arguments, "--version", "4"]) == 2
    assert "is not above the newest, 5" in capsys.readouterr().err
    assert main(["label", str(tmp_path / "models"), "net", "--stable", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"name": "net", "stable": 5, "canary": None}]
    assert read_labels(tmp_path / "models") == {"net": Labels(5)}
    assert main(["label", str(tmp_path / "models"), "net", "--stable", "6"]) == 2
    assert "has no version 6; it has 1, 5" in capsys.readouterr().err


def test_the_public_name_is_the_same_function():
    assert fnet.serving.export is export
