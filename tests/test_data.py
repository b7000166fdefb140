import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import factorizenet_tf as fnet
from factorizenet_tf import data
from factorizenet_tf.data import check_images


def keys(split):
    return {image.tobytes() for image in split.images}


def test_digits_are_split_for_good(digits):
    sizes = len(digits.train), len(digits.validation), len(digits.test)
    assert sum(sizes) == 1797
    assert sizes[2] == round(0.2 * 1797)
    assert sizes[1] == round(0.1 * (1797 - sizes[2]))
    assert digits.image_shape == (16, 16, 1)
    assert digits.class_names == tuple("0123456789")
    again = fnet.load_dataset("digits", input_shape=(16, 16, 1))
    for name in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(digits, name).images, getattr(again, name).images)
        assert getattr(digits, name).images.dtype == np.uint8
        assert getattr(digits, name).labels.dtype == np.int32


def test_splits_share_no_image(noise):
    images, labels = noise(50, (4, 4, 3)), np.arange(50) % 3
    split = fnet.load_dataset((images, labels))
    sets = [keys(split.train), keys(split.validation), keys(split.test)]
    assert sum(map(len, sets)) == len(set.union(*sets)) == 50
    order = {image.tobytes(): label for image, label in zip(images, labels)}
    assert all(order[i.tobytes()] == y for i, y in zip(split.train.images, split.train.labels))


def test_validation_is_at_most_5000_images():
    images = np.zeros((60_000, 1, 1, 1), np.uint8)
    split = fnet.load_dataset(((images, np.arange(60_000) % 2), (images[:7], np.arange(7) % 2)))
    assert (len(split.train), len(split.validation), len(split.test)) == (55_000, 5_000, 7)


def write_images(root, classes=("cat", "dog"), count=6, size=(9, 7)):
    random = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def test_a_folder_of_class_folders_is_read(tmp_path):
    write_images(tmp_path / "pets")
    split = fnet.load_dataset(tmp_path / "pets", input_shape=(8, 8, 3))
    assert split.class_names == ("cat", "dog")
    assert split.image_shape == (8, 8, 3)
    assert len(split.train) + len(split.validation) + len(split.test) == 12
    assert fnet.load_dataset(tmp_path / "pets").image_shape == (7, 9, 3)
    assert fnet.load_dataset(str(tmp_path / "pets"), input_shape=(8, 8, 1)).image_shape == (8, 8, 1)


def test_an_empty_folder_and_an_empty_class_are_named(tmp_path):
    with pytest.raises(ValueError, match="has 0 class folders"):
        fnet.load_dataset(tmp_path)
    write_images(tmp_path)
    (tmp_path / "emu").mkdir()
    with pytest.raises(ValueError, match=r"emu has no images"):
        fnet.load_dataset(tmp_path)


def test_a_broken_or_half_read_image_is_named(tmp_path):
    write_images(tmp_path, size=(64, 64))
    broken = tmp_path / "cat" / "0.jpg"
    Image.open(tmp_path / "cat" / "0.png").save(broken)
    for content, reason in ((b"no image", "its first bytes"), (broken.read_bytes()[:1000], "truncated")):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=rf"cat/0\.jpg is broken .*{reason}"):
            fnet.load_dataset(tmp_path)


def test_a_folder_with_train_and_test_keeps_them_apart_and_their_classes_alike(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", count=2)
    split = fnet.load_dataset(tmp_path)
    assert len(split.test) == 4
    assert len(split.train) + len(split.validation) == 12
    (tmp_path / "test" / "emu").mkdir()
    with pytest.raises(ValueError, match="test has the classes emu"):
        fnet.load_dataset(tmp_path)


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 2), (0, 16, 3)])
def test_an_input_shape_that_images_cannot_have_is_refused(shape):
    with pytest.raises(ValueError, match=r"input_shape is .*\(height, width, channels\)"):
        fnet.load_dataset("digits", input_shape=shape)


@pytest.mark.parametrize(
    ("colour", "size", "shape", "expected"),
    [
        ([90], (4, 4), (4, 4, 3), 90),
        ([255, 0, 0], (4, 4), (4, 4, 1), 76),  # 0.299 * 255
        ([200, 200, 200], (5, 9), (16, 16, 3), 200),
    ],
)
def test_grey_becomes_rgb_rgb_grey_and_a_flat_image_stays_flat_at_another_size(colour, size, shape, expected):
    images = np.broadcast_to(np.array(colour, np.uint8), (8, *size, len(colour)))
    resized = fnet.load_dataset((images, np.arange(8) % 2), input_shape=shape).train.images
    assert resized.shape[1:] == shape
    assert (resized == expected).all()


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), TypeError, "float32; it must be uint8 .*multiply"),
        (np.zeros((2, 4, 4, 3), np.int64), TypeError, r"int64; it must be uint8 .*images.astype\(np.uint8\)"),
        (np.zeros((2, 4, 4, 3), np.int8), TypeError, r"int8; it must be uint8 .*images.view\(np.uint8\) \^ 128"),
        (np.zeros((2, 4, 4, 3), np.uint16), TypeError, "uint16; it must be uint8 .*images >> 8"),
        (np.zeros((2, 4, 4, 3), bool), TypeError, r"bool; it must be uint8 .*images.astype\(np.uint8\) \* 255"),
        ([[1]], TypeError, "is a list"),
        (np.zeros((4, 4, 3), np.uint8), ValueError, r"for one image images\[None\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), ValueError, "is empty"),
        (np.zeros((2, 5, 4, 3), np.uint8), ValueError, r"\(5, 4, 3\).* the model takes \(4, 4, 3\): resize them"),
        (np.zeros((2, 3, 4, 4), np.uint8), ValueError, r"transpose them: images.transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 4, 4, 1), np.uint8), ValueError, r"convert them: np.repeat\(images, 3, -1\)"),
    ],
)
def test_images_of_another_type_rank_or_size_are_refused(images, error, message):
    with pytest.raises(error, match=message):
        check_images(images, (4, 4, 3))


def test_what_a_message_tells_to_do_makes_the_images_fit():
    grey = np.arange(32, dtype=np.uint8).reshape(2, 4, 4)
    with pytest.raises(ValueError, match=r"add the axis: images\[\.\.\., None\]"):
        check_images(grey, (4, 4, 1))
    with pytest.raises(ValueError, match=r"convert them: PIL's convert\('L'\)"):
        check_images(np.repeat(grey[..., None], 3, -1), (4, 4, 1))
    assert check_images(np.repeat(grey[..., None], 3, -1), (4, 4, 3)).shape == (2, 4, 4, 3)
    assert check_images(grey.repeat(3, 0).reshape(2, 3, 4, 4).transpose(0, 2, 3, 1), (4, 4, 3)).shape == (2, 4, 4, 3)
    int8 = (grey.astype(np.int16) - 128).astype(np.int8)
    np.testing.assert_array_equal(int8.view(np.uint8) ^ 128, grey)


@pytest.mark.parametrize(
    ("labels", "message"),
    [(np.zeros(8), "float64"), (np.zeros(7, int), r"\(7,\); 8 images"), (np.full(8, -1), "a label is -1")],
)
def test_labels_that_do_not_fit_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        fnet.load_dataset((np.zeros((8, 4, 4, 3), np.uint8), labels))
    with pytest.raises(ValueError, match="three splits need at least 4"):
        fnet.load_dataset((np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 1])))


def test_an_unknown_name_and_a_missing_folder_are_refused():
    with pytest.raises(ValueError, match="no data set 'cifar11'; there are digits, a folder"):
        fnet.load_dataset("cifar11")
    with pytest.raises(FileNotFoundError, match="no folder"):
        fnet.load_dataset("./nowhere/at-all")


def test_a_set_that_is_not_on_disk_says_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="run `tfds build mnist`"):
        fnet.load_dataset("mnist", data_dir=tmp_path, download=False)
    monkeypatch.setattr(data, "_is_offline", lambda: True)
    with pytest.raises(FileNotFoundError, match="there is no network; run `tfds build mnist`"):
        fnet.load_dataset("mnist", data_dir=tmp_path)


def test_a_tfds_set_on_disk_is_read_without_a_network_but_none_too_large_for_the_memory(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    tfds.testing.DummyMnist(data_dir=tmp_path).download_and_prepare()  # TFDS's own, of MNIST's form
    monkeypatch.setattr(data, "_is_offline", lambda: True)
    own = fnet.load_dataset("dummy_mnist", data_dir=tmp_path)
    assert own.image_shape == (28, 28, 1)
    assert (len(own.train), len(own.validation), len(own.test)) == (18, 2, 20)
    assert own.class_names == tuple("0123456789")
    resized = fnet.load_dataset("dummy_mnist", input_shape=(32, 32, 3), data_dir=tmp_path)
    assert resized.image_shape == (32, 32, 3)
    np.testing.assert_array_equal(resized.test.labels, own.test.labels)
    monkeypatch.setattr(data, "MAX_BYTES", 40 * 28 * 28 - 1)
    with pytest.raises(ValueError, match=r"'dummy_mnist' at \(28, 28, 1\) would take .* use a smaller input_shape"):
        fnet.load_dataset("dummy_mnist", data_dir=tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path(os.environ.get("TFDS_DATA_DIR", "."), "cifar10").is_dir(), reason="TFDS_DATA_DIR has no cifar10"
)
def test_cifar10_is_whole_and_named_as_it_is():
    split = fnet.load_dataset("cifar10")
    assert (len(split.train), len(split.validation), len(split.test)) == (45_000, 5_000, 10_000)
    assert split.image_shape == (32, 32, 3)
    assert split.class_names[:2] == ("airplane", "automobile")
    assert split.title in ("CIFAR-10", "CIFAR-10 (JPEG)")
    assert np.bincount(split.test.labels).tolist() == [1000] * 10
