import copy
import dataclasses

import factorizenet_tf as fnet
from factorizenet_tf.zoo.cards import ACCURACIES
from factorizenet_tf.zoo.verification import verify_all

FLOAT, INT8 = "fnet-1x2.2x2-l1-x0.5-float", "fnet-1x2.2x2-l1-x0.5-int8"


def failed(verification):
    return [check.what for check in verification.checks if check.passed is False]


def test_what_was_published_passes_every_check(zoo):
    results = verify_all([FLOAT, INT8], zoo_dir=zoo, verbose=False)
    assert all(check.passed for result in results for check in result.checks)
    assert [result.passed for result in results] == [True, True]
    whats = " ".join(check.what for check in results[1].checks)
    for what in ("hash", "MACs", "operators", "input scale", "arena", "agreement", "test accuracy, 359", "validation"):
        assert what in whats
    assert INT8 in repr(results[1])
    assert f"{next(check.stated for check in results[1].checks if check.what == 'MACs'):,}" in repr(results[1])


def test_each_wrong_number_fails_its_check(changed, cards, digits, monkeypatch):
    measured = fnet.Agreement(top1=cards[1].agreement["top1"] - 0.006, within_1_lsb=1.0, largest_lsb=1, images=359)
    monkeypatch.setattr("factorizenet_tf.zoo.verification.agreement", lambda *arguments: measured)
    accuracies = copy.deepcopy(cards[1].accuracies)
    accuracies["test"]["tflite"] -= 0.01  # validation stays, so that one of the two fails
    wrong = {"macs": 1, "params": 1, "size_bytes": 1, "ram_bytes": 1, "operators": ["CUSTOM"], "input_zero_point": 0}
    zoo = changed(1, **wrong, accuracies=accuracies, top5=dict.fromkeys(accuracies, dict.fromkeys(ACCURACIES, 0.5)))
    costs = "MACs, parameters, size in bytes, operators, input scale and zero point, TFLite Micro arena, bytes"
    scores = "agreement with Keras, test accuracy, 359 images, test top-5 accuracy, 359 images"
    found = ", ".join(failed(fnet.zoo.verify(INT8, dataset=digits, zoo_dir=zoo)))
    assert found == f"{costs}, {scores}, validation top-5 accuracy, 144 images"


def test_accuracy_is_skipped_where_the_data_is_another(zoo, digits):
    result = fnet.zoo.verify(FLOAT, dataset=dataclasses.replace(digits, title="other digits"), zoo_dir=zoo)
    assert result.passed
    (check,) = [check for check in result.checks if check.passed is None]
    assert (check.what, check.found) == ("accuracy", "the data here is other digits, the number is of digits")
