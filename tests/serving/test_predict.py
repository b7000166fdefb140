import numpy as np
import pytest
from serving_contract import encoded


def test_each_file_gets_its_most_probable_classes_first(run, models, digits, tmp_path, prints_json, succeeds):
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for path, image in zip(files, digits.test.images):
        path.write_bytes(encoded(image))
    rows = prints_json("predict", *files, "--model", run.folder, "--top", 2)
    assert [row["file"] for row in rows] == [str(file) for file in files for _ in range(2)]
    logits = models.int8.predict(digits.test.images[:3])
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert [row["class_id"] for row in rows[::2]] == logits.argmax(1).tolist()
    assert [row["class"] for row in rows[::2]] == [str(number) for number in logits.argmax(1)]
    given = np.reshape([row["probability"] for row in rows], (3, 2))
    np.testing.assert_allclose(given, np.sort(probabilities)[:, :-3:-1], atol=1e-4)
    table = succeeds("predict", files[0], "--model", run.folder / "model.tflite", "--top", 99)
    assert table.count(str(files[0])) == 10


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (__file__, ["--top", 0], "--top is 0; it must be at least 1"),
        (__file__, [], "test_predict.py is broken or no PNG"),
        ("none.png", [], "no image file none.png"),
        (".", [], ". is a folder; give its image files one by one, e.g. *.png"),
    ],
)
def test_what_cannot_be_is_one_line(image, options, message, run, fails):
    assert message in fails("predict", image, "--model", run.folder, *options)
