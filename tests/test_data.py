import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import factorizenet_tf as fnet
from factorizenet_tf import data
from factorizenet_tf.data import check_images

HAS_CIFAR10 = (Path(os.environ.get("TFDS_DATA_DIR", "")) / "cifar10").is_dir() and "TFDS_DATA_DIR" in os.environ
cifar10 = pytest.mark.skipif(not HAS_CIFAR10, reason="TFDS_DATA_DIR has no cifar10")


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


def test_a_folder_with_train_and_test_keeps_them_apart(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", count=2)
    split = fnet.load_dataset(tmp_path)
    assert len(split.test) == 4
    assert len(split.train) + len(split.validation) == 12


def test_an_empty_folder_and_an_empty_class_are_named(tmp_path):
    with pytest.raises(ValueError, match="has 0 class folders"):
        fnet.load_dataset(tmp_path)
    write_images(tmp_path)
    (tmp_path / "emu").mkdir()
    with pytest.raises(ValueError, match=r"emu has no images"):
        fnet.load_dataset(tmp_path)


def test_a_broken_image_is_named(tmp_path):
    write_images(tmp_path)
    broken = tmp_path / "dog" / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"dog/3\.png is broken"):
        fnet.load_dataset(tmp_path)
    broken.write_text("no image")
    with pytest.raises(ValueError, match=r"dog/3\.png is broken"):
        fnet.load_dataset(tmp_path)


def test_a_half_read_jpeg_is_named_too(tmp_path):
    write_images(tmp_path, size=(64, 64))
    whole = tmp_path / "whole.jpg"
    Image.open(tmp_path / "cat" / "0.png").save(whole)
    (tmp_path / "cat" / "half.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"cat/half\.jpg is broken .*truncated"):
        fnet.load_dataset(tmp_path)


def test_of_an_image_of_16_bits_the_upper_8_count(tmp_path):
    write_images(tmp_path, size=(9, 7))
    for name in ("cat", "dog"):
        for file in (tmp_path / name).iterdir():
            Image.fromarray(np.full((7, 9), 40_000, np.uint16)).save(file)
    assert (fnet.load_dataset(tmp_path).train.images == 156).all()  # 40,000 / 256


def test_a_class_that_only_the_test_folder_has_is_named(tmp_path):
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", classes=("cat", "dog", "emu"))
    with pytest.raises(ValueError, match="test has the classes emu"):
        fnet.load_dataset(tmp_path)


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 2), (0, 16, 3)])
def test_an_input_shape_that_images_cannot_have_is_refused(shape):
    with pytest.raises(ValueError, match=r"input_shape is .*\(height, width, channels\)"):
        fnet.load_dataset("digits", input_shape=shape)


def test_grey_becomes_rgb_and_rgb_grey():
    grey = np.full((8, 4, 4, 1), 90, np.uint8)
    labels = np.arange(8) % 2
    rgb = fnet.load_dataset((grey, labels), input_shape=(4, 4, 3)).train.images
    assert (rgb == 90).all()
    red = np.zeros((8, 4, 4, 3), np.uint8)
    red[..., 0] = 255
    assert (fnet.load_dataset((red, labels), input_shape=(4, 4, 1)).train.images == 76).all()  # 0.299 * 255


def test_resizing_keeps_a_flat_image_flat():
    flat = np.full((8, 5, 9, 3), 200, np.uint8)
    resized = fnet.load_dataset((flat, np.arange(8) % 2), input_shape=(16, 16, 3)).train.images
    assert resized.shape[1:] == (16, 16, 3)
    assert (resized == 200).all()


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


def test_too_few_images_for_three_splits_are_refused():
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


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
    """TFDS's own test set of MNIST's form, prepared without a network."""
    import tensorflow_datasets as tfds

    folder = tmp_path_factory.mktemp("tfds")
    tfds.testing.DummyMnist(data_dir=folder).download_and_prepare()
    return folder


def test_a_tfds_set_on_disk_is_read_without_a_network(tfds_folder, monkeypatch):
    monkeypatch.setattr(data, "_is_offline", lambda: True)
    own = fnet.load_dataset("dummy_mnist", data_dir=tfds_folder)
    assert own.image_shape == (28, 28, 1)
    assert (len(own.train), len(own.validation), len(own.test)) == (18, 2, 20)
    assert own.class_names == tuple("0123456789")
    resized = fnet.load_dataset("dummy_mnist", input_shape=(32, 32, 3), data_dir=tfds_folder)
    assert resized.image_shape == (32, 32, 3)
    np.testing.assert_array_equal(resized.test.labels, own.test.labels)


def test_a_set_too_large_for_the_memory_is_refused_before_it_is_read(tfds_folder, monkeypatch):
    monkeypatch.setattr(data, "MAX_BYTES", 40 * 28 * 28 - 1)
    with pytest.raises(ValueError, match=r"'dummy_mnist' at \(28, 28, 1\) would take .* use a smaller input_shape"):
        fnet.load_dataset("dummy_mnist", data_dir=tfds_folder)


@cifar10
def test_cifar10_is_whole_and_named_as_it_is():
    split = fnet.load_dataset("cifar10")
    assert (len(split.train), len(split.validation), len(split.test)) == (45_000, 5_000, 10_000)
    assert split.image_shape == (32, 32, 3)
    assert split.class_names[:2] == ("airplane", "automobile")
    assert split.title in ("CIFAR-10", "CIFAR-10 (JPEG)")
    assert np.bincount(split.test.labels).tolist() == [1000] * 10
