import dataclasses
import json
import shutil

import pytest

import factorizenet_tf as fnet
from factorizenet_tf.zoo.catalog import verify_all

FLOAT, INT8 = "fnet-1x2.2x2-l1-x0.5-float", "fnet-1x2.2x2-l1-x0.5-int8"


def failed(verification):
    return [check.what for check in verification.checks if check.passed is False]


@pytest.fixture
def changed(zoo, tmp_path):
    """A copy of the zoo with fields of the int8 card changed."""

    def make(**fields):
        copy = shutil.copytree(zoo, tmp_path / "zoo")
        index = json.loads((copy / "index.json").read_text())
        index["models"][1].update(fields)
        (copy / "index.json").write_text(json.dumps(index))
        return copy

    return make


def test_what_was_published_passes_every_check(zoo):
    results = verify_all([FLOAT, INT8], zoo_dir=zoo, verbose=False)
    assert [result.passed for result in results] == [True, True]
    whats = " ".join(check.what for check in results[1].checks)
    for what in ("hash", "MACs", "operators", "input scale", "arena", "agreement", "test accuracy, 359", "validation"):
        assert what in whats
    assert all(check.passed for result in results for check in result.checks)
    assert INT8 in repr(results[1])


@pytest.mark.parametrize(
    ("field", "value", "what"),
    [
        ("macs", 1, "MACs"),
        ("params", 1, "parameters"),
        ("size_bytes", 1, "size in bytes"),
        ("ram_bytes", 1, "TFLite Micro arena, bytes"),
        ("operators", ["CUSTOM"], "operators"),
        ("input_zero_point", 0, "input scale and zero point"),
    ],
)
def test_a_wrong_number_fails_its_check(changed, digits, field, value, what):
    assert failed(fnet.zoo.verify(INT8, dataset=digits, zoo_dir=changed(**{field: value}))) == [what]


def test_an_accuracy_or_agreement_out_of_its_band_fails(changed, zoo, digits):
    card = fnet.zoo.card(INT8, zoo_dir=zoo)
    accuracies = json.loads(json.dumps(card.accuracies))
    accuracies["test"]["tflite"] -= 0.01
    agreement = card.agreement | {"top1": 1.0}
    copy = changed(accuracies=accuracies)
    assert failed(fnet.zoo.verify(INT8, dataset=digits, zoo_dir=copy)) == ["test accuracy, 359 images"]
    lower = dataclasses.replace(digits, test=dataclasses.replace(digits.test, labels=(digits.test.labels + 1) % 10))
    assert "test accuracy, 359 images" in failed(fnet.zoo.verify(INT8, dataset=lower, zoo_dir=zoo))
    assert agreement["top1"] == 1.0


def test_a_damaged_file_fails_and_nothing_is_run(changed):
    copy = changed()
    path = copy / fnet.zoo.card(INT8, zoo_dir=copy).file("tflite").path
    path.write_bytes(path.read_bytes()[:-1])
    result = fnet.zoo.verify(INT8, zoo_dir=copy)
    assert len(failed(result)) == 1
    assert len(result.checks) == 4  # the files' own


def test_accuracy_is_skipped_where_the_data_is_another(zoo, digits):
    other = dataclasses.replace(digits, title="other digits")
    result = fnet.zoo.verify(INT8, dataset=other, zoo_dir=zoo)
    assert result.passed
    (check,) = [check for check in result.checks if check.passed is None]
    assert check.what == "accuracy"
    assert check.found == "the data here is other digits, the number is of digits"
