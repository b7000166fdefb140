import json
import subprocess
import sys

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
    first, second = rows[::2], rows[1::2]
    assert [row["class_id"] for row in first] == logits.argmax(1).tolist()
    assert [row["class"] for row in first] == [str(number) for number in logits.argmax(1)]
    np.testing.assert_allclose([row["probability"] for row in first], probabilities.max(1), atol=1e-4)
    np.testing.assert_allclose([row["probability"] for row in second], np.sort(probabilities)[:, -2], atol=1e-4)


def test_a_name_of_a_zoo_and_a_file_are_asked_and_shown_as_a_table(files, run, zoo, capsys):
    name = f"{run.spec.name}-int8"
    for model in ([str(run.folder / "model.tflite")], [name, "--zoo", str(zoo)]):
        assert main(["predict", files[0], "--model", *model, "--top", "99"]) == 0
        out = capsys.readouterr().out
        assert "probability" in out
        assert out.count(files[0]) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{files}", "--model", "{run}", "--top", "0"], "--top is 0; it must be at least 1"),
        (["{files}", "--model", "{run}/none"], "run/none"),
        (["none.png", "--model", "{run}"], "no image file none.png"),
        ([__file__, "--model", "{run}"], "test_predict.py is broken or no PNG"),
        (["{files}", "--model", "{run}/float.h5"], "float"),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message, files, run, capsys):
    arguments = [text.format(files=files[0], run=run.folder) for text in arguments]
    assert main(["predict", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_it_needs_neither_tensorflow_nor_a_network_nor_the_server(files, run):
    code = (
        "import socket, sys; socket.socket = None; from factorizenet_tf.cli import main; code = main(sys.argv[1:]); "
        "print(sorted({'tensorflow', 'tf_keras', 'fastapi', 'uvicorn', 'pandas'} & {*sys.modules})); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "predict", files[0], "--model", str(run.folder), "--top", "1"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"
