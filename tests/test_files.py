import errno
import os

import numpy as np
import pytest
import tensorflow as tf

from factorizenet_tf.checkpoint import read_checkpoint, write_checkpoint
from factorizenet_tf.files import write_bytes, written_aside


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_written_whole_with_the_usual_rights(tmp_path):
    write_bytes(tmp_path / "new" / "a.bin", b"abc")
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"abc"
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "new" / "a.bin").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    write_bytes(path, b"old")

    def fail_half_way():
        with written_aside(path) as aside:
            aside.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_checkpoint_gives_back_what_it_was_given(tmp_path):
    variables = [tf.Variable([1.5, 2.0]), tf.Variable(3, dtype=tf.int64)]
    history = [{"phase": "float", "epoch": 1, "loss": 0.5}]
    write_checkpoint(tmp_path / "c.npz", phase="float", epoch=1, history=history, variables=variables)
    checkpoint = read_checkpoint(tmp_path / "c.npz")
    assert (checkpoint.phase, checkpoint.epoch, checkpoint.history) == ("float", 1, history)
    others = [tf.Variable([0.0, 0.0]), tf.Variable(0, dtype=tf.int64)]
    checkpoint.restore(others)
    assert others[0].numpy().tolist() == [1.5, 2.0]
    assert others[1].numpy() == 3
    with pytest.raises(ValueError, match="another model or optimizer"):
        checkpoint.restore(others[:1])


def test_a_truncated_or_damaged_checkpoint_says_what_to_do(tmp_path):
    path = tmp_path / "c.npz"
    write_checkpoint(path, phase="float", epoch=1, history=[], variables=[tf.Variable(np.zeros(5000, np.float32))])
    whole = path.read_bytes()
    for content in (
        whole[:100],
        whole[: len(whole) // 2],
        whole[:-10],
        b"",
        b"nonsense",
        whole[:9000] + b"\xff" * 50 + whole[9050:],
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"c\.npz is damaged .* delete it"):
            read_checkpoint(path)
