import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import factorizenet_tf as fnet
from factorizenet_tf.data import check_images, read_image
from factorizenet_tf.data import tfds as tfds_sets


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


def test_splits_share_no_image_and_validation_is_at_most_5000(noise):
    images, labels = noise(50, (4, 4, 3)), np.arange(50) % 3
    split = fnet.load_dataset((images, labels))
    found = [part.images[i].tobytes() for part in (split.train, split.validation, split.test) for i in range(len(part))]
    assert sorted(found) == sorted(image.tobytes() for image in images)
    numbers = {image.tobytes(): label for image, label in zip(images, labels)}
    assert [numbers[image.tobytes()] for image in split.train.images] == split.train.labels.tolist()
    images = np.zeros((60_000, 1, 1, 1), np.uint8)
    split = fnet.load_dataset(((images, np.arange(60_000) % 2), (images[:7], np.arange(7) % 2)))
    assert (len(split.train), len(split.validation), len(split.test)) == (55_000, 5_000, 7)


def write_images(root, classes=("cat", "dog"), count=6, size=(9, 7), seed=0):
    random = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")


def test_a_folder_of_class_folders_is_read_and_a_train_and_a_test_one_kept_apart(tmp_path):
    with pytest.raises(ValueError, match="has 0 class folders"):
        fnet.load_dataset(tmp_path)
    write_images(tmp_path / "train")
    write_images(tmp_path / "test", count=2, seed=1)
    split = fnet.load_dataset(tmp_path)
    assert (split.class_names, split.image_shape) == (("cat", "dog"), (7, 9, 3))
    assert (len(split.test), len(split.train) + len(split.validation)) == (4, 12)
    assert fnet.load_dataset(str(tmp_path), input_shape=(8, 8, 1)).image_shape == (8, 8, 1)
    (tmp_path / "test" / "emu").mkdir()
    with pytest.raises(ValueError, match="test has the classes emu"):
        fnet.load_dataset(tmp_path)
    (tmp_path / "train" / "emu").mkdir()
    with pytest.raises(ValueError, match="emu has no images"):
        fnet.load_dataset(tmp_path)


EIGHT = np.zeros((8, 4, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("source", "shape", "message"),
    [
        *(("digits", shape, r"input_shape is .*\(height, width, ch") for shape in ((16, 16), (16, 16, 2), (0, 16, 3))),
        ((EIGHT, np.zeros(8)), None, r"labels are float64 \(8,\); .*: labels\.astype\(int\)"),
        ((EIGHT, np.zeros(8, bool)), None, r"labels are bool .*: labels\.astype\(int\)"),
        ((EIGHT, np.array(["cat", "dog"] * 4)), None, r"labels are <U3 .*np\.unique\(.*, and class_names=names"),
        ((EIGHT, np.eye(8)), None, r"labels are float64 \(8, 8\); .*one-hot labels labels\.argmax\(1\)"),
        (
            (EIGHT, np.full(8, 2**63, np.uint64)),
            None,
            r"labels are uint64 .* below 2\*\*63: .*unique",
        ),
        ((EIGHT, np.zeros(7, int)), None, r"\(7,\); 8 images"),
        ((EIGHT, np.zeros(8, int)), None, "arrays has 1 class, 0; a classifier needs at least 2"),
        ((EIGHT[..., [0, 1, 2, 2]], np.arange(8) % 2), None, r"\(4, 4, 4\) .*1 or 3 channels .*images\[\.\.\., :3\]"),
        ((EIGHT[..., :2], np.arange(8) % 2), (4, 4, 3), r"images\[\.\.\., :1\]"),
        ((EIGHT.transpose(0, 3, 1, 2), np.arange(8) % 2), None, r"come last: images\.transpose\(0, 2, 3, 1\)"),
        ((EIGHT[:2], np.array([0, 1])), None, "three splits need at least 4"),
        ("cifar11", None, "no folder or data set 'cifar11'; there are digits, tiny_imagenet, gtsrb, a folder"),
        ("./nowhere/at-all", None, "no folder"),
    ],
)
def test_what_cannot_be_loaded_is_refused(source, shape, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        fnet.load_dataset(source, input_shape=shape)


def test_validation_arrays_are_used_and_class_names_kept(noise):
    images, labels = noise(12, (4, 4, 3)), np.arange(12) % 3
    three = {"train": (images, labels), "validation": (images[:5], labels[:5]), "test": (images[:4], labels[:4])}
    data = fnet.load_dataset(three, class_names=("röt", "green tea", "b"))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 12, "validation": 5, "test": 4}
    assert data.class_names == ("röt", "green tea", "b")
    np.testing.assert_array_equal(data.validation.images, images[:5])
    assert fnet.load_dataset({**three, "test": None}).test is None
    with pytest.raises(ValueError, match="a label is 2, class_names has 2 names"):
        fnet.load_dataset(three, class_names=("a", "b"))
    with pytest.raises(ValueError, match="a label is -1, class_names has 4 names"):
        fnet.load_dataset((images, labels - 1), class_names="abcd")
    with pytest.raises(ValueError, match="digits is not arrays, so class_names= would have no effect"):
        fnet.load_dataset("digits", class_names=("a",))
    with pytest.raises(ValueError, match="arrays has the splits train, val; give train"):
        fnet.load_dataset({"train": (images, labels), "val": (images, labels)})


def test_labels_that_are_no_counting_numbers_are_mapped_and_stay_as_class_names(noise):
    values = np.array([7, 2**40, 3])
    data = fnet.load_dataset((noise(12, (4, 4, 3)), values[np.arange(12) % 3]))
    assert data.class_names == ("3", "7", str(2**40))
    assert set(data.train.labels.tolist()) == {0, 1, 2}
    assert fnet.load_dataset((EIGHT, np.arange(8) % 2 - 1)).class_names == ("-1", "0")
    column = (np.arange(8) % 2)[:, None].astype(np.uint8)  # as Keras's CIFAR-10 has them
    assert fnet.load_dataset([EIGHT, column]).sha256 == fnet.load_dataset((EIGHT, column[:, 0])).sha256
    large = 2**60 + np.arange(8) % 2  # one number as float64
    mixed = fnet.load_dataset(((EIGHT, large.astype(np.uint64)), (EIGHT, large)))
    assert mixed.class_names == (str(2**60), str(2**60 + 1))
    names, numbers = np.unique(["dog", "cat"] * 4, return_inverse=True)
    assert fnet.load_dataset((EIGHT, numbers), class_names=names).class_names == ("cat", "dog")
    with pytest.raises(ValueError, match="no training image has the label 9, others have"):
        fnet.load_dataset(((EIGHT, np.arange(8) % 2), (EIGHT, np.full(8, 9))))


@pytest.mark.parametrize("batch", [None, 5])
def test_a_tf_dataset_is_read_batched_or_not(noise, batch):
    import tensorflow as tf

    images, labels = noise(12, (4, 4, 3)), np.arange(12) % 3
    stream = tf.data.Dataset.from_tensor_slices((images, labels))
    stream = stream if batch is None else stream.batch(batch)
    assert fnet.load_dataset(stream).sha256 == fnet.load_dataset((images, labels)).sha256
    assert fnet.load_dataset({"train": stream, "validation": stream}).test is None
    floats = stream.map(lambda image, label: (tf.cast(image, tf.float32), label))
    assert fnet.load_dataset(floats).sha256 == fnet.load_dataset(stream).sha256
    for scale, offset, pixels in (
        (1, 0.5, "x"),
        (1 / 255, 0, "255 * x"),
        (2 / 255, -1, "127.5 * x + 127.5"),
        (0, 1, "255 * x"),
    ):
        scaled = floats.map(lambda image, label, scale=scale, offset=offset: (scale * image + offset, label))
        remedy = f".map(lambda x, y: (tf.cast(tf.round({pixels}), tf.uint8), y)), and class_names="
        with pytest.raises(TypeError, match=r"float32; it must be uint8.*" + re.escape(remedy)):
            fnet.load_dataset(scaled)
    for other in (stream.map(lambda image, label: image), stream.map(lambda image, label: (image, {"a": label}))):
        with pytest.raises(ValueError, match=r"must be \(image, label\)"):
            fnet.load_dataset(other)
    with pytest.raises(ValueError, match=r"has no end; leave out \.repeat\(\)"):
        fnet.load_dataset(stream.repeat())
    for both in ((stream, stream), [stream, stream]):
        with pytest.raises(ValueError, match=r'name their splits: \{"train": \.\.\., "validation": \.\.\.\}'):
            fnet.load_dataset(both)


def test_keras_reader_of_folders_gives_images_and_class_names(tmp_path):
    from factorizenet_tf._keras import keras

    write_images(tmp_path)
    read = keras.utils.image_dataset_from_directory(tmp_path, image_size=(7, 9), shuffle=False)
    data = fnet.load_dataset({"train": read, "validation": read})
    assert (data.class_names, data.image_shape) == (("cat", "dog"), (7, 9, 3))
    np.testing.assert_array_equal(data.validation.images[0], read_image(tmp_path / "cat" / "0.png"))
    resized = keras.utils.image_dataset_from_directory(tmp_path, image_size=(5, 5))
    with pytest.raises(TypeError, match=r"tf\.cast\(tf\.round\(x\), tf\.uint8\)"):
        fnet.load_dataset(resized)


@pytest.mark.parametrize("batch", [None, 1])
def test_a_tf_dataset_of_images_of_several_sizes_needs_one(batch):
    import tensorflow as tf

    def images():
        for i in range(12):
            yield np.full((4 + i % 2, 4, 3), i, np.uint8), i % 3

    spec = tf.TensorSpec((None, None, 3), tf.uint8), tf.TensorSpec((), tf.int64)
    stream = tf.data.Dataset.from_generator(images, output_signature=spec)
    stream = stream if batch is None else stream.batch(batch)
    with pytest.raises(ValueError, match=r"have 2 sizes, such as \(4, 4, 3\) and \(5, 4, 3\); give input_shape="):
        fnet.load_dataset(stream)
    data = fnet.load_dataset(stream, input_shape=(6, 6, 1))
    found = sorted(image[0, 0, 0] for split in data.splits.values() for image in split.images)
    assert (data.image_shape, found) == ((6, 6, 1), list(range(12)))


def test_a_tfds_name_may_have_a_config_and_a_version(tmp_path):
    import tensorflow_datasets as tfds

    class Shapes(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.2.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="small"), tfds.core.BuilderConfig(name="large"))

        def _info(self):
            side = 4 if self.builder_config.name == "small" else 6
            features = {"image": tfds.features.Image(shape=(side, side, 3))}
            features["label"] = tfds.features.ClassLabel(num_classes=2)
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            shape = self.info.features["image"].shape
            for i in range(20):
                yield i, {"image": np.full(shape, i, np.uint8), "label": i % 2}

    for config in ("small", "large"):
        Shapes(config=config, data_dir=tmp_path).download_and_prepare()
    for name, side in (("shapes/large", 6), ("shapes/small:1.2.0", 4)):
        data = fnet.load_dataset(name, data_dir=tmp_path, download=False)
        assert (data.name, data.image_shape) == (name, (side, side, 3))
        assert sorted(image[0, 0, 0] for split in data.splits.values() for image in split.images) == list(range(20))
    with pytest.raises(ValueError, match="shapes/huge"):
        fnet.load_dataset("shapes/huge", data_dir=tmp_path, download=False)


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
    ("images", "channels", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), 3, "float32; it must be uint8 .*times 255"),
        (np.zeros((2, 4, 4, 3), np.int64), 3, r"int64; it must be uint8 .*images.astype\(np.uint8\)"),
        (np.zeros((2, 4, 4, 3), np.int8), 3, r"int8; it must be uint8 .*images.view\(np.uint8\) \^ 128"),
        (np.zeros((2, 4, 4, 3), np.uint16), 3, "uint16; it must be uint8 .*images >> 8"),
        (np.zeros((2, 4, 4, 3), bool), 3, r"bool; it must be uint8 .*images.astype\(np.uint8\) \* 255"),
        ([[1]], 3, "is a list"),
        (EIGHT[0], 3, r"for one image images\[None\], for n grey ones images\[\.\.\., None\]"),
        (EIGHT[:0], 3, "is empty"),
        (np.zeros((2, 5, 4, 3), np.uint8), 3, r"\(5, 4, 3\).* the model takes \(4, 4, 3\): resize them"),
        (np.zeros((2, 3, 4, 4), np.uint8), 3, r"transpose them: images.transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 4, 4, 1), np.uint8), 3, r"convert them: np.repeat\(images, 3, -1\)"),
        (EIGHT, 1, r"convert them: PIL's convert\('L'\)"),
        (EIGHT[..., 0], 1, r"add the axis: images\[\.\.\., None\]"),
    ],
)
def test_images_of_another_type_rank_or_size_are_refused_with_what_makes_them_fit(images, channels, message):
    with pytest.raises((TypeError, ValueError), match=message):
        check_images(images, (4, 4, channels))


def test_a_set_that_is_not_on_disk_says_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="run `tfds build mnist`"):
        fnet.load_dataset("mnist", data_dir=tmp_path, download=False)
    monkeypatch.setattr(tfds_sets, "_is_offline", lambda: True)
    with pytest.raises(FileNotFoundError, match="there is no network; run `tfds build mnist`"):
        fnet.load_dataset("mnist", data_dir=tmp_path)


def test_a_tfds_set_on_disk_is_read_without_a_network_once(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    tfds.testing.DummyMnist(data_dir=tmp_path).download_and_prepare()  # TFDS's own, of MNIST's form
    monkeypatch.setattr(tfds_sets, "_is_offline", lambda: True)
    own = fnet.load_dataset("dummy_mnist", data_dir=tmp_path)
    assert own.image_shape == (28, 28, 1)
    assert (len(own.train), len(own.validation), len(own.test)) == (18, 2, 20)
    assert own.class_names == tuple("0123456789")
    resized = fnet.load_dataset("dummy_mnist", input_shape=(32, 32, 3), data_dir=tmp_path)
    assert resized.image_shape == (32, 32, 3)
    np.testing.assert_array_equal(resized.test.labels, own.test.labels)


@pytest.mark.parametrize(
    ("splits", "found"),
    [
        ({"train": 20, "validation": 6, "test": 8}, {"train": 20, "validation": 6, "test": 8}),
        ({"train": 20, "validation": 6}, {"train": 18, "validation": 2, "test": 6}),
        ({"train": 20}, {"train": 14, "validation": 2, "test": 4}),
    ],
)
def test_a_tfds_sets_own_splits_are_used(splits, found, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():  # found by its files

        class Marked(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=2),
                }
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

            def _split_generators(self, _):
                return {name: self._generate_examples(name) for name in splits}

            def _generate_examples(self, name):
                for i in range(splits[name]):
                    yield f"{name}{i}", {"image": np.full((8, 8, 1), len(name), np.uint8), "label": i % 2}

    Marked(data_dir=tmp_path).download_and_prepare()
    data = fnet.load_dataset("marked", data_dir=tmp_path)
    assert {name: len(split) for name, split in data.splits.items()} == found
    marks = {name: np.unique(split.images).tolist() for name, split in data.splits.items()}
    of = {name: name if name in splits and (name != "validation" or "test" in splits) else "train" for name in found}
    of |= {} if "test" in splits or "validation" not in splits else {"test": "validation"}
    assert marks == {name: [len(source)] for name, source in of.items()}


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
