import sys

import pytest

from factorizenet_tf.tflite.micro import arena_bytes


def test_the_arena_holds_at_least_the_largest_pair_of_tensors(models, capfd):
    arena = arena_bytes(models.int8._content)
    assert 16 * 16 * 8 + 16 * 16 <= arena < 60_000  # the stem's output and input, and the interpreter's own structures
    assert capfd.readouterr().err == ""


def test_what_is_no_model_is_refused(capfd):
    with pytest.raises(ValueError, match="cannot run the model"):
        arena_bytes(b"no model at all, but long enough")


def test_without_tflite_micro_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tflite_micro.python.tflite_micro", None)
    with pytest.raises(ModuleNotFoundError, match=r"factorizenet_tf\[micro\]"):
        arena_bytes(b"")
