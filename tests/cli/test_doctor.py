"""`factorizenet doctor`: what it says of a machine that lacks much."""

import importlib

import pytest

doctor = importlib.import_module("factorizenet_tf.cli.doctor")  # the package has the command under this name


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    for name in ("FACTORIZENET_ZOO", "TFDS_DATA_DIR", "FACTORIZENET_GTSRB", "TF_NUM_INTRAOP_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FACTORIZENET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    monkeypatch.setattr("factorizenet_tf.machine.cpu_name", lambda: "a processor, 2 cores, AVX-512 VNNI")
    monkeypatch.setattr("factorizenet_tf.models.native.has_native_gradient", lambda: True)
    monkeypatch.setattr(doctor, "LITTLE_GIB", 0)


def test_a_machine_that_has_all_is_told_so(prints_json, succeeds, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "file").write_bytes(bytes(3 * 2**20))
    printed = prints_json("doctor")
    found = printed["found"]
    assert (found["oneDNN"], found["cores allowed"]) == ("on", "2")
    assert found["threads"] == "TensorFlow one a core, LiteRT 1 unless told"
    assert "(default, not there, cifar10 is fetched when asked for" in found["TFDS_DATA_DIR"]
    assert {"python", "factorizenet_tf", "tensorflow", "keras-tuner", "extra report", "FACTORIZENET_GTSRB"} <= set(
        found
    )
    assert found["FACTORIZENET_CACHE"] == f"{tmp_path / 'cache'} (set, 3.0 MiB)"
    assert printed["advice"] == []
    assert "nothing is missing" in succeeds("doctor")


@pytest.mark.parametrize(
    ("name", "value", "advice"),
    [
        ("TFDS_DATA_DIR", "/nowhere/data", "TFDS_DATA_DIR is /nowhere/data, and there is no such folder: make it"),
        ("FACTORIZENET_ZOO", "/nowhere/zoo", "FACTORIZENET_ZOO is left out: no zoo in /nowhere/zoo"),
        ("joblib.cpu_count", 1, "one core: "),
        ("factorizenet_tf.machine.cpu_name", "a processor, 2 cores, AVX2", "no AVX-512 VNNI and no AMX: "),
        ("LITTLE_GIB", 10**9, "GiB of memory available: "),
        ("factorizenet_tf.models.native.has_native_gradient", False, "no native gradient for grouped convolutions: "),
    ],
)
def test_what_is_missing_or_slow_has_a_reason_and_a_remedy_and_fails_nothing(
    prints_json, monkeypatch, name, value, advice
):
    if name == "LITTLE_GIB":
        monkeypatch.setattr(doctor, name, value)
    elif name.isupper():
        monkeypatch.setenv(name, value)
    else:
        monkeypatch.setattr(name, lambda: value)
    (said,) = prints_json("doctor")["advice"]
    assert advice in said


def test_a_tensorflow_that_cannot_be_used_and_a_missing_extra_are_said(prints_json, monkeypatch):
    def fail():
        raise ImportError("no AVX\nhere")

    monkeypatch.setattr("factorizenet_tf.models.native.has_native_gradient", fail)
    monkeypatch.setattr(doctor, "EXTRAS", {"report": "altair no_such_module"})
    printed = prints_json("doctor")
    assert printed["advice"] == [
        "TensorFlow cannot be used (no AVX here): pip install factorizenet_tf in a new environment"
    ]
    assert printed["found"]["extra report"] == "without no_such_module: pip install 'factorizenet_tf[report]'"


def test_addresses_are_told_without_what_may_be_secret(prints_json, monkeypatch):
    monkeypatch.setenv("FACTORIZENET_ZOO", "http://me:secret@localhost:1/zoo?token=secret")
    printed = prints_json("doctor")
    assert printed["found"]["variables"].startswith("FACTORIZENET_ZOO=http://localhost:1/zoo")
    assert "secret" not in str(printed)
