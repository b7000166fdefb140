import json

import numpy as np
import pytest
from serving_contract import encoded

from factorizenet_tf.cli import main


@pytest.fixture
def files(digits, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, digits.test.images):
        path.write_bytes(encoded(image))
    return [str(path) for path in paths]


def test_each_file_gets_its_most_probable_classes_first(files, run, models, digits, capsys):
    assert main(["predict", *files, "--model", str(run.folder), "--top", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["file"] for row in rows] == [file for file in files for _ in range(2)]
    logits = models.int8.predict(digits.test.images[:3])
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert [row["class_id"] for row in rows[::2]] == logits.argmax(1).tolist()
    assert [row["class"] for row in rows[::2]] == [str(number) for number in logits.argmax(1)]
    given = np.reshape([row["probability"] for row in rows], (3, 2))
    np.testing.assert_allclose(given, np.sort(probabilities)[:, :-3:-1], atol=1e-4)
    assert main(["predict", files[0], "--model", str(run.folder / "model.tflite"), "--top", "99"]) == 0
    assert capsys.readouterr().out.count(files[0]) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{files}", "--model", "{run}", "--top", "0"], "--top is 0; it must be at least 1"),
        (["{files}", "--model", "{run}/none"], "run/none"),
        (["{files}", "--model", "fnet-l2-int8", "--zoo", "{run}"], "index.json"),
        (["none.png", "--model", "{run}"], "no image file none.png"),
        ([__file__, "--model", "{run}"], "test_predict.py is broken or no PNG"),
        ([".", "--model", "{run}/none"], ". is a folder; give its image files one by one, e.g. *.png"),
        (["{files}", "--model", "{run}/float.h5"], "is a float model"),
        (["{files}", "--model", "no-such-net"], "(a zoo of your own is looked into by --zoo, or by FACTORIZENET_ZOO"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message, files, run, capsys):
    arguments = [text.format(files=files[0], run=run.folder) for text in arguments]
    assert main(["predict", *arguments]) == 2
    assert message in capsys.readouterr().err
