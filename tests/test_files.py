import errno
import os

import numpy as np
import pytest
import tensorflow as tf

from factorizenet_tf.files import atomic_folder, atomic_write, remove_partial_files, write_bytes
from factorizenet_tf.models.weights import save_weights
from factorizenet_tf.training.loop import read_checkpoint, write_checkpoint


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_is_written_whole_with_the_usual_rights_and_what_a_killed_process_left_is_removed(tmp_path):
    folder = tmp_path / "new"
    write_bytes(folder / "a.bin", b"abc")
    assert (folder / "a.bin").read_bytes() == b"abc"
    (folder / ".own").write_text("")
    assert (folder / "a.bin").stat().st_mode == (folder / ".own").stat().st_mode
    killed = atomic_write(folder / "b.bin")
    killed.__enter__().write_bytes(b"half")
    assert len(os.listdir(folder)) == 3
    remove_partial_files(folder)
    assert sorted(os.listdir(folder)) == [".own", "a.bin"]


@pytest.mark.parametrize("call", ["fsync", "replace", "nothing"])
def test_a_full_disk_or_an_error_leaves_the_old_files_and_nothing_else(tmp_path, monkeypatch, models, spec, call):
    def write(name):
        with atomic_write(tmp_path / name) as partial:
            partial.write_bytes(name.encode())
            if call == "nothing":
                full_disk()

    writers = {
        "a.bin": write,
        "float.h5": lambda name: save_weights(models.float, tmp_path / name, spec=spec, precision="float"),
        "c.npz": lambda name: write_checkpoint(tmp_path / name, phase="float", epoch=1, history=[], variables=[]),
    }
    for name in writers:
        (tmp_path / name).write_text("old")
    monkeypatch.setattr(os, call, full_disk, raising=False)
    for name, writer in list(writers.items())[: 1 if call == "nothing" else None]:
        with pytest.raises(OSError, match="No space left"):
            writer(name)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(writers, "old")


def test_an_error_names_the_file_that_was_asked_for():
    with pytest.raises(OSError, match=r"'/proc/net\.tflite'"):  # where nobody can make a file
        write_bytes("/proc/net.tflite", b"abc")


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    def write(name, fail=False):
        with atomic_folder(tmp_path / "new" / name) as partial:
            (partial / "a").write_text("a")
            assert os.listdir(tmp_path / "new") != [name]
            if fail:
                raise RuntimeError

    write("one")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "new" / "one" / "a").read_text() == "a"
    assert (tmp_path / "new" / "one").stat().st_mode == (tmp_path / "plain").stat().st_mode
    with pytest.raises(FileExistsError, match="one is there already; choose another name or remove it"):
        write("one")
    with pytest.raises(RuntimeError):
        write("two", fail=True)
    assert os.listdir(tmp_path / "new") == ["one"]
    with atomic_folder(tmp_path / "new" / "three", within=tmp_path):
        assert os.listdir(tmp_path / "new") == ["one"]
    assert sorted(os.listdir(tmp_path / "new")) == ["one", "three"]


def test_a_checkpoint_gives_back_what_it_was_given_and_a_cut_or_changed_one_is_harmless_or_reported(tmp_path):
    path, history = tmp_path / "c.npz", [{"phase": "float", "epoch": 1, "loss": 0.5}]
    variables = [tf.Variable(np.arange(8, dtype=np.float32)), tf.Variable(3, dtype=tf.int64)]
    write_checkpoint(path, phase="float", epoch=1, history=history, variables=variables)
    others = [tf.Variable(np.zeros(8, np.float32)), tf.Variable(0, dtype=tf.int64)]

    def check(checkpoint):
        checkpoint.restore(others)
        assert (checkpoint.phase, checkpoint.epoch, checkpoint.history) == ("float", 1, history)
        assert (others[0].numpy().tolist(), others[1].numpy()) == (list(range(8)), 3)

    check(read_checkpoint(path))
    with pytest.raises(ValueError, match="another model or optimizer"):
        read_checkpoint(path).restore(others[:1])
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[:100], whole[: len(whole) // 2], whole[:-10]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"c\.npz is damaged .* delete it"):
            read_checkpoint(path)
    reported = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            check(read_checkpoint(path))
        except ValueError:
            reported += 1
    assert len(whole) // 2 < reported < len(whole)
