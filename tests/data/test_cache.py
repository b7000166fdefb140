import dataclasses
import errno
import shutil
import threading
import time

import numpy as np
import pytest
from PIL import Image

import factorizenet_tf as fnet
from factorizenet_tf.data import cache, folder, images


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """A folder of 40 images, and no cache yet."""
    monkeypatch.setenv("FACTORIZENET_CACHE", str(tmp_path / "cache"))
    random = np.random.default_rng(0)
    for i in range(40):
        (tmp_path / "pets" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(random.integers(0, 256, (6, 6, 3)).astype(np.uint8))
        image.save(tmp_path / "pets" / "ab"[i % 2] / f"{i}.png")
    return tmp_path / "pets"


@pytest.fixture
def reads(monkeypatch):
    """How often images were decoded."""
    counted, decode = [], folder.decoded
    monkeypatch.setattr(folder, "decoded", lambda *arguments: counted.append(1) or decode(*arguments))
    return counted


def cached(pets):
    return next((pets.parent / "cache" / "data").glob("*/images.bin"))


def test_a_folder_is_decoded_once_mapped_and_decoded_again_when_a_file_changes(pets, reads):
    first, again = fnet.load_dataset(pets), fnet.load_dataset(pets)
    assert len(reads) == 1
    assert first.sha256 == again.sha256 == cache.content_hash(again.splits.values())
    assert not again.train.images.flags.owndata
    assert not again.train.images.flags.writeable
    assert type(again.train.images) is np.ndarray
    assert fnet.load_dataset(pets, input_shape=(3, 3, 3)).image_shape == (3, 3, 3)
    Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(pets / "a" / "0.png")
    assert fnet.load_dataset(pets).sha256 != first.sha256
    assert len(reads) == 3


@pytest.mark.parametrize("damage", ["cut", "flipped", "no fields", "bad fields"])
def test_a_damaged_cache_is_made_anew_and_a_copied_one_is_good(pets, reads, damage):
    first = fnet.load_dataset(pets)
    file = cached(pets)
    copied = file.read_bytes()
    if damage in ("cut", "flipped"):
        file.write_bytes(copied[:-1] if damage == "cut" else bytes([copied[0] ^ 1]) + copied[1:])
    elif damage == "no fields":
        file.with_name("fields.json").unlink()
    else:
        file.with_name("fields.json").write_text("{}")
    with pytest.warns(RuntimeWarning, match="are damaged; they are made anew"):
        assert fnet.load_dataset(pets).sha256 == first.sha256
    assert len(reads) == 2
    cached(pets).touch()
    fnet.load_dataset(pets)
    assert len(reads) == 2


def test_a_cache_that_cannot_be_written_is_said_and_small_sets_stay_in_memory(pets, monkeypatch):
    first = fnet.load_dataset(pets)
    shutil.rmtree(pets.parent / "cache")
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.warns(RuntimeWarning, match=r"written \(No space left on device\); the images are kept in memory"):
        data = fnet.load_dataset(pets)
    assert data.sha256 == first.sha256
    assert not list((pets.parent / "cache" / "data").glob("*/"))
    monkeypatch.setattr(cache, "MAX_BYTES_IN_MEMORY", 40 * 6 * 6 * 3 - 1)
    with pytest.raises(
        OSError, match=r"No space left.*images take 0\.0 GiB; set FACTORIZENET_CACHE to .*, or delete .*data"
    ) as caught:
        fnet.load_dataset(pets)
    assert caught.value.errno is None
    monkeypatch.undo()
    assert errno.ENOSPC in cache.UNWRITABLE
    monkeypatch.setenv("FACTORIZENET_CACHE", "/proc/nope")  # a folder that cannot be made
    monkeypatch.setattr(cache, "MAX_BYTES_IN_MEMORY", 2**20)
    with pytest.warns(RuntimeWarning, match=r"written \(No such file .*in memory: set FACTORIZENET_CACHE to [\w ]*$"):
        assert fnet.load_dataset(pets).sha256 == first.sha256


def test_two_at_once_decode_once(pets, reads, monkeypatch):
    decode = folder.decoded
    monkeypatch.setattr(folder, "decoded", lambda *arguments: time.sleep(0.2) or decode(*arguments))
    hashes = []
    threads = [threading.Thread(target=lambda: hashes.append(fnet.load_dataset(pets).sha256)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(hashes)) == 1
    assert len(reads) == 1


@pytest.mark.parametrize("cores", [1, 3])
def test_many_chunks_are_decoded_on_any_number_of_cores_to_the_same_images_in_order(pets, monkeypatch, cores):
    first = fnet.load_dataset(pets)
    shutil.rmtree(pets.parent / "cache")
    monkeypatch.setattr("joblib.cpu_count", lambda: cores)
    monkeypatch.setattr("factorizenet_tf.data.images.CHUNK", 3)  # more of them than may wait
    assert fnet.load_dataset(pets).sha256 == first.sha256


def test_no_more_is_decoded_ahead_of_what_is_taken_than_two_chunks_a_core(pets, monkeypatch):
    begun, decode = [], images._decode
    monkeypatch.setattr(images, "_decode", lambda paths, *how: begun.append(len(paths)) or decode(paths, *how))
    monkeypatch.setattr("joblib.cpu_count", lambda: 1)
    monkeypatch.setattr(images, "CHUNK", 2)
    taken = images.decoded([str(path) for path in pets.rglob("*.png")], (6, 6, 3), "stretch")
    next(taken)
    time.sleep(0.1)
    assert sum(begun) <= 2 * 3
    taken.close()


def test_a_replaced_split_has_a_hash_of_its_own(pets):
    data = fnet.load_dataset(pets)
    fewer = dataclasses.replace(data, train=fnet.Split(data.train.images[:3], data.train.labels[:3]))
    assert fewer.sha256 != data.sha256
