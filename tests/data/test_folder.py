import io
import json
import os
import shutil
from base64 import b64encode

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import factorizenet_tf as fnet
from factorizenet_tf.data import read_image
from factorizenet_tf.data.split import cut_by_class
from factorizenet_tf.serving import saved_model
from factorizenet_tf.serving.server import images_of
from factorizenet_tf.tflite.export import with_metadata

BLACK = np.zeros((4, 4, 3), np.uint8)


@pytest.fixture
def draw():
    """Write images of their own content each: folders of classes, by number of images."""
    random = np.random.default_rng(0)

    def draw_images(root, size=(4, 4), ending="png", **counts):
        for name, count in counts.items():
            (root / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image = Image.fromarray(random.integers(0, 256, (*size, 3)).astype(np.uint8))
                image.save(root / name / f"{i}.{ending}")
        return root

    return draw_images


def sizes(data):
    return {name: len(split) for name, split in data.splits.items()}


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("train", "val", "test"), {"train": 6, "validation": 4, "test": 2}),
        (("Training", "VALID", "Testing"), {"train": 6, "validation": 4, "test": 2}),
        (("train", "validation"), {"train": 6, "validation": 4}),
        (("train", "dev"), {"train": 6, "validation": 4}),
        (("train", "Eval", "test"), {"train": 6, "validation": 4, "test": 2}),
        (("train",), {"train": 2, "validation": 2, "test": 2}),
    ],
)
def test_splits_have_the_usual_names_in_any_case_and_a_test_split_that_is_not_there_is_not_invented(
    draw, tmp_path, names, found
):
    for name, count in zip(names, (3, 2, 1)):
        draw(tmp_path / name, a=count, b=count)
    data = fnet.load_dataset(tmp_path)
    assert sizes(data) == found
    assert (data.test is None) == ("test" not in found)


def test_a_folder_of_nothing_but_splits_and_two_of_one_split_are_refused(draw, tmp_path):
    draw(tmp_path / "val", a=1, b=1)
    draw(tmp_path / "test", a=1, b=1)
    with pytest.raises(ValueError, match="has only the folders test, val: names of splits, none of training"):
        fnet.load_dataset(tmp_path)
    draw(tmp_path / "train", a=1, b=1)
    draw(tmp_path / "training", a=1, b=1)
    with pytest.raises(ValueError, match="has two folders for train"):
        fnet.load_dataset(tmp_path)


def test_a_folder_beside_train_that_is_no_split_and_a_class_without_a_folder_are_refused(draw, tmp_path):
    root = draw(tmp_path / "set" / "train", a=5, b=5).parent
    draw(root, unlabelled=2)
    refused = "has 2 class folders, and unlabelled beside it is no split's name; rename it val or test, or move it"
    with pytest.raises(ValueError, match=refused):
        fnet.load_dataset(root)
    draw(root / "holdout", a=1)
    with pytest.raises(ValueError, match="and holdout beside it is no split's name"):
        fnet.load_dataset(root)
    shutil.rmtree(root / "holdout")
    (root / "unlabelled").rename(tmp_path / "elsewhere")
    draw(root / "val", a=2)
    with pytest.raises(ValueError, match=r"set/val has no folder for the class b, which .*set/train has; add one"):
        fnet.load_dataset(root)
    shutil.rmtree(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"has 1 class folders; .*at least 2; did you mean .*/set\?"):
        fnet.load_dataset(tmp_path)
    draw(tmp_path, train=3, car=3, plane=3)  # classes, one of trains
    assert fnet.load_dataset(tmp_path, input_shape=(4, 4, 3)).class_names == ("car", "plane", "set", "train")


def test_hidden_files_are_no_images_what_is_left_out_is_counted_and_links_are_followed_but_no_loops(draw, tmp_path):
    root = draw(tmp_path / "pets", **{"süße katze": 5, "dog": 5})
    for name in (".DS_Store", "._0.png", "Thumbs.db", "notes.txt", "clip.gif", "README"):
        (root / "dog" / name).write_bytes(b"")
    draw(root, **{".hidden": 2, "__MACOSX": 2})
    draw(tmp_path, elsewhere=4)
    (root / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "dog" / "loop").symlink_to(root)
    (root / "dog" / "gone.png").symlink_to(tmp_path / "nothing")
    (root / "all").symlink_to(".")
    (root / "above").symlink_to(tmp_path)
    said = r"pets: 7 files are left out: 1 \.gif, 1 \.txt, 1 dead links, 3 links to a folder above, 1 without ending"
    with pytest.warns(RuntimeWarning, match=said):
        data = fnet.load_dataset(root)
    assert data.class_names == ("dog", "süße katze")
    assert sum(sizes(data).values()) == 14


def test_of_each_class_the_same_share_is_cut(draw, tmp_path):
    data = fnet.load_dataset(draw(tmp_path, a=50, b=10, c=3))
    assert np.bincount(data.test.labels).tolist() == [10, 2, 1]
    assert np.bincount(data.validation.labels).tolist() == [4, 1, 1]
    again = fnet.load_dataset(tmp_path)
    assert again.sha256 == data.sha256
    assert data.train.labels.tolist() != sorted(data.train.labels.tolist())


def test_groups_stay_uncut():
    labels, groups = np.repeat([0, 1, 2], 300), np.repeat(np.arange(90), 10)
    cuts = cut_by_class(labels, groups, "tracks", has_test=False)
    for name, share in (("test", 60), ("validation", 20)):
        assert np.bincount(labels[cuts[name]]).tolist() == pytest.approx([share] * 3, abs=10)
    parts = [set(groups[cut].tolist()) for cut in cuts.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 90


def test_a_pattern_on_file_names_makes_the_groups_and_one_that_matches_nothing_is_refused(draw, tmp_path):
    for camera in range(6):
        for name in "ab":
            draw(tmp_path / name, **{f"cam{camera}": 3})
    data = fnet.load_dataset(tmp_path, group_by=r"cam(\d)")
    assert all(count % 6 == 0 for count in sizes(data).values())
    assert data.reading == {"group_by": r"cam(\d)"}
    with pytest.raises(ValueError, match=r"group_by is 'lens' and matches none of 36 file names, e\.g\. a/cam0/0\.png"):
        fnet.load_dataset(tmp_path, group_by="lens")
    with pytest.raises(ValueError, match=r"group_by is '\(', no regular expression"):
        fnet.load_dataset(tmp_path, group_by="(")
    for one in ("png", ""):
        with pytest.raises(ValueError, match="has 36 images in 1 groups; the splits need more"):
            fnet.load_dataset(tmp_path, group_by=one)
    with pytest.warns(RuntimeWarning, match="does not match 30 files"):
        fnet.load_dataset(tmp_path, group_by="cam0")


@pytest.mark.parametrize("camera", [0, 2])
def test_a_class_of_which_groups_leave_no_training_image_is_refused_and_no_other_image_said(draw, tmp_path, camera):
    for number in range(4):
        draw(tmp_path, **{f"{name}/cam{number}": 3 for name in ("abc" if number == camera else "ab")})
    if camera == 2:  # is test's
        with pytest.raises(ValueError, match=r"has no training image of the class c: its 3 images .*smaller groups"):
            fnet.load_dataset(tmp_path, group_by=r"cam\d")
    else:
        with pytest.warns(RuntimeWarning, match="1 classes have training images alone: c$"):
            fnet.load_dataset(tmp_path, group_by=r"cam\d")


def test_images_of_several_sizes_need_one_and_those_of_one_size_after_exif_none(draw, tmp_path):
    draw(tmp_path, a=4, b=4)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((5, 4, 3), np.uint8)).save(tmp_path / "a" / "turned.jpg", exif=exif)
    with pytest.raises(ValueError, match=r"have 2 sizes: 4x4 \(8\), 5x4 \(1\); give the one .*--size"):
        fnet.load_dataset(tmp_path)
    assert fnet.load_dataset(tmp_path, input_shape=tuple(np.array([4, 4, 3]))).image_shape == (4, 4, 3)


def test_another_aspect_is_stretched_cropped_or_padded(tmp_path):
    wide = np.zeros((2, 6, 3), np.uint8)
    wide[:, 2:4] = 255  # white in the middle
    for i in range(8):
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        Image.fromarray(wide).save(tmp_path / str(i % 2) / f"{i}.png", dpi=(i + 1, 1))
    crop = fnet.load_dataset(tmp_path, input_shape=(2, 2, 3), resize="crop")
    assert (crop.train.images == 255).all()
    assert crop.reading == {"resize": "crop"}
    pad = fnet.load_dataset(tmp_path, input_shape=(6, 6, 1), resize="pad").train.images[0, ..., 0]
    np.testing.assert_array_equal(pad[2:4, 2:4], 255)
    assert pad.sum() == 4 * 255
    arrays = fnet.load_dataset((np.stack([wide] * 8), np.arange(8) % 2), input_shape=(2, 2, 3), resize="crop")
    assert (arrays.train.images == 255).all()
    with pytest.raises(ValueError, match="resize is 'fit'; it must be stretch, crop or pad"):
        fnet.load_dataset(tmp_path, resize="fit")


def test_a_broken_image_is_named_and_left_out_where_asked(draw, tmp_path):
    draw(tmp_path, a=9, b=9)
    (tmp_path / "a" / "3.png").write_bytes(b"\x89PNG")
    Image.fromarray(BLACK[:1, :1]).convert("CMYK").save(tmp_path / "b" / "one.jpg")
    with pytest.raises(ValueError, match=r"a/3\.png is broken .* leave out all such images \(1\): --skip-broken"):
        fnet.load_dataset(tmp_path, input_shape=(4, 4, 3))
    with pytest.warns(RuntimeWarning, match="1 files are left out: 1 broken or too large"):
        data = fnet.load_dataset(tmp_path, input_shape=(4, 4, 3), skip_broken=True)
    assert sum(sizes(data).values()) == 18
    for file in (tmp_path / "a").iterdir():
        file.write_bytes(b"")
    with pytest.raises(ValueError, match="of a class of which all images are broken"):
        fnet.load_dataset(tmp_path, input_shape=(4, 4, 3), skip_broken=True)


def test_the_same_image_in_two_splits_is_said(draw, tmp_path):
    for name in ("train", "test"):
        draw(tmp_path / name, a=4, b=4)
    os.link(tmp_path / "train" / "a" / "1.png", tmp_path / "test" / "b" / "copy.png")
    for _ in range(2):  # of a set in the cache, too
        with pytest.warns(RuntimeWarning, match=r"1 images are in two splits: .*b/copy\.png of test is "):
            fnet.load_dataset(tmp_path)


def test_a_nets_way_to_resize_is_in_its_file_and_read_from_there(digits, models, tmp_path, prints_json):
    content = fnet.to_tflite(models.qat, labels=digits.class_names, resize="crop")
    (tmp_path / "crop.tflite").write_bytes(export := with_metadata(content, name="crop"))
    assert fnet.Int8Model(export).resize == "crop"
    assert b"of another aspect: crop" in export
    assert fnet.to_tflite(models.qat, resize="stretch") == fnet.to_tflite(models.qat)
    image = np.zeros((16, 48), np.uint8)
    image[:, 16:32] = digits.test.images[0, ..., 0]
    Image.fromarray(image).save(tmp_path / "wide.png")
    found = prints_json("predict", tmp_path / "wide.png", "--model", tmp_path / "crop.tflite")
    expected = models.int8.predict(digits.test.images[:1])[0]
    assert found[0]["class_id"] == expected.argmax()
    file = {"b64": b64encode((tmp_path / "wide.png").read_bytes()).decode()}
    body = {"signature_name": "serving_bytes", "instances": [file]}
    (pixels,), _ = images_of(json.dumps(body).encode(), (16, 16, 1), "crop")
    np.testing.assert_array_equal(pixels, digits.test.images[0])
    with pytest.raises(ValueError, match="resize is 'fit'"):
        fnet.to_tflite(models.qat, resize="fit")


@pytest.mark.parametrize("resize", ["crop", "pad"])
@pytest.mark.parametrize("size", [(40, 61), (61, 40), (7, 16), (16, 16)])
def test_a_graph_for_tensorflow_serving_resizes_as_the_reader_does(models, resize, size, monkeypatch):
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    file, seen = io.BytesIO(), []
    Image.fromarray((2 * y + x).astype(np.uint8)).save(file, "PNG")
    content = file.getvalue()

    def net(image):
        seen.append(image)
        return [tf.zeros((1, 10))]

    monkeypatch.setattr(saved_model, "_with_constants", lambda model, image: net)
    module, _ = saved_model.serving_module(models.float, map(str, range(10)), resize)
    tf.config.run_functions_eagerly(True)
    try:
        module.classify_bytes(tf.constant([content]))
    finally:
        tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(seen[-1][0], read_image(content, (16, 16, 1), resize), atol=1)


def test_evaluate_reads_a_folder_as_the_training_did_and_takes_validation_where_there_is_no_test(
    run, models, digits, tmp_path, prints_json, succeeds, fails, monkeypatch
):
    images, labels = digits.validation.images[:60], digits.validation.labels[:60]
    for split in ("train", "val"):
        for i, (image, label) in enumerate(zip(images, labels)):
            wide = np.full((16, 48), 255 * (split == "val"), np.uint8)
            wide[:, 16:32] = image[..., 0]
            folder = tmp_path / "wide" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(wide).save(folder / f"{i}.png")
    copy = shutil.copytree(run.folder, tmp_path / "run")
    about = json.loads((copy / "dataset.json").read_text())
    about |= {"name": str(tmp_path / "wide"), "title": "wide", "reading": {"resize": "crop"}}
    (copy / "dataset.json").write_text(json.dumps(about))
    (row,) = prints_json("evaluate", copy)
    assert (row["split"], row["images"]) == ("validation", 60)
    assert row["accuracy"] == fnet.accuracy(models.int8, fnet.Split(images, labels))
    again = f"{tmp_path}/wide/"  # the same folder, written otherwise
    assert prints_json("evaluate", copy, "--dataset", again)[0]["accuracy"] == row["accuracy"]
    given = []
    monkeypatch.setattr("factorizenet_tf.training.train.train", lambda spec, data, **how: given.append(data) or run)
    succeeds("train", "--from", copy, "--dataset", again, "--out", tmp_path / "more")
    assert given[0].reading == {"resize": "crop"}
    for split in ("train", "val"):
        (tmp_path / "wide" / split / "8").rename(tmp_path / "wide" / split / "eight")
    with pytest.warns(RuntimeWarning, match=r"by number, and class 8 is '8' for .*, '9' in the data"):
        prints_json("evaluate", copy)
    (tmp_path / "wide").rename(tmp_path / "moved")
    for name in (str(tmp_path / "wide"), "wide"):
        (copy / "dataset.json").write_text(json.dumps(about | {"name": name}))
        said = f"{copy} was trained on the folder {name}, which is not here; give --dataset"
        assert said in fails("evaluate", copy)
        with pytest.raises(FileNotFoundError, match=said):
            fnet.analyze(copy)
    assert f"error: no folder {tmp_path}/wide" in fails("evaluate", copy, "--dataset", f"{tmp_path}/wide")
