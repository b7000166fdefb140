import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import factorizenet_tf as fnet

TINY = "tiny-imagenet-200"


def picture(random, size, ending):
    content = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (8, 8, 3)).astype(np.uint8)).resize(size).save(content, ending)
    return content.getvalue()


def tiny_imagenet(random):
    """Of each class three training images and a validation one, in the layout of the makers' archive."""
    wnids = [f"n{100 + i:08d}" for i in range(200)]
    words = [f"thing {i}, item" for i in range(198)] + ["crane", "crane, a bird"]
    content = {f"{TINY}/words.txt": "".join(f"{w}\t{word}\n" for w, word in zip(wnids, words))}
    rows = [f"val_{i}.JPEG\t{wnid}\t0\t0\t9\t9\n" for i, wnid in enumerate(wnids)]
    content[f"{TINY}/val/val_annotations.txt"] = "".join(rows)
    for i, wnid in enumerate(wnids):
        paths = [f"train/{wnid}/images/{wnid}_{j}.JPEG" for j in range(3)]
        for path in (*paths, f"val/images/val_{i}.JPEG"):
            content[f"{TINY}/{path}"] = picture(random, (64, 64), "JPEG")
        content[f"{TINY}/train/{wnid}/{wnid}_boxes.txt"] = ""
    content[f"{TINY}/test/images/test_0.JPEG"] = picture(random, (64, 64), "JPEG")
    return {f"{TINY}.zip": content}


def gtsrb(random):
    """Of each class two images of the tracks 0 and 5 and a test one, of several sizes, in the makers' layout."""
    training, test, rows = {}, {}, ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in range(43):
        size = (15 + label, 16 + label)
        for name in ("00000_00000", "00000_00001", "00005_00000", "00005_00001"):
            training[f"GTSRB/Final_Training/Images/{label:05d}/{name}.ppm"] = picture(random, size, "PPM")
        training[f"GTSRB/Final_Training/Images/{label:05d}/GT-{label:05d}.csv"] = "Filename;...\n"
        test[f"GTSRB/Final_Test/Images/{label:05d}.ppm"] = picture(random, size, "PPM")
        rows.append(f"{label:05d}.ppm;{size[0]};{size[1]};1;1;9;9;{42 - label}")
    test["GTSRB/Final_Test/Images/GT-final_test.test.csv"] = "Filename;...\n"
    truth = {"GT-final_test.csv": "\r\n".join(rows)}
    names = ("GTSRB_Final_Training_Images.zip", "GTSRB_Final_Test_Images.zip", "GTSRB_Final_Test_GT.zip")
    return dict(zip(names, (training, test, truth)))


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Stand-ins of the makers' archives, drawn here."""
    folder, paths = tmp_path_factory.mktemp("archives"), {}
    for name, draw in (("tiny_imagenet", tiny_imagenet), ("gtsrb", gtsrb)):
        for archive, content in draw(np.random.default_rng(0)).items():
            with zipfile.ZipFile(folder / archive, "w") as file:
                for path, data in content.items():
                    file.writestr(path, data)
            paths.setdefault(name, []).append(folder / archive)
    return paths


@pytest.fixture(scope="module")
def prepared(archives, tmp_path_factory):
    from factorizenet_tf.data.named import prepare

    folder = tmp_path_factory.mktemp("sets")
    return {name: (folder / name, prepare(name, paths, folder / name))[0] for name, paths in archives.items()}


def test_tiny_imagenet_has_its_first_words_as_classes_and_the_official_validation_images_as_test(prepared, monkeypatch):
    monkeypatch.setenv("FACTORIZENET_TINY_IMAGENET", str(prepared["tiny_imagenet"]))
    data = fnet.load_dataset("tiny_imagenet")
    assert data.title == "Tiny ImageNet (official validation images as test)"
    assert data.image_shape == (64, 64, 3)
    assert {"thing_0", "thing_197", "crane_n00000298", "crane_n00000299"} < set(data.class_names)
    assert [np.bincount(split.labels).tolist() for split in data.splits.values()] == [[2] * 200, [1] * 200, [1] * 200]
    own = data.class_names.index("thing_7")
    path = prepared["tiny_imagenet"] / "test" / "thing_7" / "val_7.JPEG"
    images = data.test.images[data.test.labels == own]
    np.testing.assert_array_equal(images, np.asarray(Image.open(path))[None])


def test_gtsrb_has_its_signs_by_name_whole_tracks_for_validation_and_is_not_mirrored(prepared, monkeypatch):
    monkeypatch.setenv("FACTORIZENET_GTSRB", str(prepared["gtsrb"]))
    data = fnet.load_dataset("gtsrb", input_shape=(16, 16, 3))
    assert data.title == "GTSRB"
    signs = ["speed limit 20", "stop", "end of no passing for vehicles over 3.5 t"]
    assert [data.class_names[i] for i in (0, 14, 42)] == signs
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 86, "validation": 86, "test": 43}
    track = sorted((prepared["gtsrb"] / "validation" / "00007").iterdir())
    assert [path.name for path in track] == ["00005_00000.ppm", "00005_00001.ppm"]
    assert (prepared["gtsrb"] / "test" / "00042" / "00000.ppm").is_file()  # by the truth's table
    assert not fnet.recipe_for("gtsrb").flip
    assert fnet.recipe_for("tiny_imagenet").flip
    with pytest.raises(ValueError, match="gtsrb is no folder, so group_by= would have no effect"):
        fnet.load_dataset("gtsrb", input_shape=(16, 16, 3), group_by="1")


def test_copies_of_another_size_are_said_in_the_title(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    for split in ("train", "validation", "test"):
        for label in range(43):
            (tmp_path / split / f"{label:05d}").mkdir(parents=True)
            (tmp_path / split / f"{label:05d}" / "0.ppm").write_bytes(picture(random, (8, 9), "PPM"))
    monkeypatch.setenv("FACTORIZENET_GTSRB", str(tmp_path))
    assert fnet.load_dataset("gtsrb").title == "GTSRB, copies of 8x9"


def test_a_set_that_is_not_here_and_a_folder_of_something_else_say_what_to_do(tmp_path, monkeypatch, prepared, fails):
    monkeypatch.delenv("FACTORIZENET_GTSRB", raising=False)
    line = fails("train", "--dataset", "gtsrb", "--size", 16, "--out", tmp_path / "run")
    assert "FACTORIZENET_GTSRB is not set; set it to the folder of gtsrb: `factorizenet prepare gtsrb GTSRB_Fin" in line
    monkeypatch.setenv("FACTORIZENET_GTSRB", str(prepared["tiny_imagenet"]))
    with pytest.raises(ValueError, match="of 200 train classes, not 43; `factorizenet prepare gtsrb"):
        fnet.load_dataset("gtsrb")
    monkeypatch.setenv("FACTORIZENET_GTSRB", str(tmp_path))
    with pytest.raises(ValueError, match="of 0 train classes"):
        fnet.load_dataset("gtsrb")
    line = fails("train", "--dataset", "gtsrb", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert "--data-dir is where TFDS keeps its data" in line


def test_a_folder_called_like_a_set_is_a_folder_until_the_set_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gtsrb").mkdir()
    monkeypatch.delenv("FACTORIZENET_GTSRB", raising=False)
    assert fnet.data.is_folder("gtsrb")
    monkeypatch.setenv("FACTORIZENET_GTSRB", "/elsewhere")
    assert not fnet.data.is_folder("gtsrb")


def test_the_command_says_what_it_wrote_and_of_bad_archives_leaves_nothing(archives, tmp_path, succeeds, fails):
    out = tmp_path / "signs"
    printed = succeeds("prepare", "gtsrb", *archives["gtsrb"], "--out", out)
    assert re.fullmatch(rf"86 train images, .*43 test images\nexport FACTORIZENET_GTSRB={out}\n", printed)
    assert "is there already" in fails("prepare", "gtsrb", *archives["gtsrb"], "--out", out)
    training, test, truth = archives["gtsrb"]
    other = tmp_path / "other"
    for given, said in (
        ((training, truth), "Test_GT.zip: test images"),
        ((training, test), "Test_Images.zip: GT-final_test.csv"),
        (archives["tiny_imagenet"], "needs GTSRB_Final_Training_Images.zip, "),
        ((training, test, Path(__file__)), "File is not a zip file"),
    ):
        assert said in fails("prepare", "gtsrb", *given, "--out", other)
    said = fails("prepare", "mnist", training, "--out", other)
    assert "name is 'mnist'; sets that come as archives are tiny_imagenet, gtsrb" in said
    assert [path.name for path in tmp_path.iterdir()] == ["signs"]
