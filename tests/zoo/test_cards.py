import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import factorizenet_tf as fnet
from factorizenet_tf.zoo.cards import Card, Cards, index_from_json, index_to_json
from factorizenet_tf.zoo.pages import card_page
from factorizenet_tf.zoo.store import bundled_zoo


@pytest.fixture(scope="module")
def index(zoo):
    return json.loads((zoo / "index.json").read_text())


def with_field(index, field, value):
    """The index's text with another value in a field of its second entry."""
    return json.dumps(index | {"models": [index["models"][0], index["models"][1] | {field: value}]})


def parsed(text):
    """The cards of an index, or none and the message."""
    try:
        return index_from_json(text, "here"), ""
    except ValueError as error:
        return (), str(error)


def test_a_card_knows_level_and_width_from_its_spec_and_a_baseline_has_none(cards):
    assert (cards[0].level, cards[0].level_text, cards[0].width) == (1, "1", 8)
    mixed = dataclasses.replace(cards[0], spec=fnet.ModelSpec((0, 2, 2)))
    assert (mixed.level_text, mixed.row()["level"]) == ("0.2.2", "0.2.2")
    baseline = dataclasses.replace(cards[0], spec=fnet.baselines.ResNet8())
    assert (baseline.level, baseline.width, baseline.row()["level"]) == (None, None, None)


def test_cards_print_as_a_table_which_names_zoos_where_there_are_several(cards, zoo):
    assert sum("fnet-1x2.2x2-l1-x0.5-" in line for line in repr(cards).splitlines()) == 2
    assert str(zoo) not in repr(cards)
    assert {row["zoo"] for row in map(Card.row, cards)} == {str(zoo)}
    assert "elsewhere" in repr(Cards([*cards, dataclasses.replace(cards[0], zoo="elsewhere")]))
    assert repr(Cards()) == "no models"


def test_an_unknown_name_offers_the_nearest_or_what_there_is(cards):
    for among, name, message in (
        (
            Cards(dataclasses.replace(cards[0], name=f"a{i}") for i in range(11)),
            "zzz",
            "list` shows the 11 that there are",
        ),
        (cards, "FNET-1X2.2X2-L1-X0.5-INT9", r"no model 'FNET-.*' in the zoo; did you mean '\S+-x0\.5-int8'"),
        (cards, "zzz", r"there are fnet-1x2\.2x2-l1-x0\.5-float, fnet-1x2"),
        (cards, "fnet-1x2.2x2-l1-x0.5-int8@7", r"no version '7'; there are fnet-1x2\.2x2-l1-x0\.5-int8@1"),
        (Cards(), "zzz", "this zoo is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            among.find(name)


def test_cards_survive_the_index_with_what_older_entries_have(cards):
    assert index_from_json(index_to_json(cards), "here") == cards
    assert "zoo" not in json.loads(index_to_json(cards))["models"][0]
    text = (bundled_zoo() / "index.json").read_text()
    assert "latency_2_threads_ms" in text
    assert index_to_json(index_from_json(text, "here")) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON .*; restore it"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is no index"),
        ('{"format": 1}', "is no index"),
        ('{"format": 2, "models": []}', "has format 2; this version reads 1: update"),
        ('{"format": true, "models": []}', "has format True"),
        ('{"format": 1, "models": [3]}', "it is 3, not an object"),
        ('{"format": 1, "models": [{"name": "a"}]}', "the entry 'a' is damaged: the field version is missing"),
        ('{"format": 1, "models": [NaN]}', "NaN is no JSON number"),
    ],
)
def test_what_is_no_index_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        index_from_json(text, "here")


FILE = {"role": "weights", "path": "a.h5", "sha256": 64 * "0", "size_bytes": 1}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "../up", "must be of a-z"),
        ("precision", "int4", "precision is 'int4': .*'float' or 'int8'"),
        ("macs", True, "macs is True"),
        ("accuracy", 80.5, "accuracy is 80.5: .*less than or equal to 1"),
        ("accuracies", {"test": {"float": 2}}, "the field accuracies.validation is missing"),
        ("recipe", {"epochs": -1}, "epochs is -1; it must be an int"),
        ("recipe", {"epoch": 1}, "not a recipe"),
        ("class_names", ["a"], "1 class names, its spec 10 classes"),
        ("spec", {"family": "factorizenet", "level": 99, "width": 16}, "not a spec"),
        ("ram_bytes", None, "an int8 model needs agreement, ram_bytes"),
        ("files", [FILE], "no file of the role history, tflite"),
        ("files", [FILE | {"sha256": "0" * 63}], "files.0.sha256 is '000"),
        *(
            ("files", [FILE | {"path": path}], "is not below the zoo's folder")
            for path in ("/etc/passwd", "models/../../a.h5", "a//b", "C:\\a", "", ".", "models/.x", "a/b/")
        ),
    ],
)
def test_a_damaged_field_is_named(index, field, value, message):
    with pytest.raises(ValueError, match=f"here: the entry '.*' is damaged: .*{message}.*; restore it"):
        index_from_json(with_field(index, field, value), "here")


def test_a_name_twice_is_refused(index):
    with pytest.raises(ValueError, match="more than once; keep one"):
        index_from_json(json.dumps(index | {"models": 2 * index["models"]}), "here")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(field=st.sampled_from([field.name for field in dataclasses.fields(Card)]), value=JSON)
def test_any_value_in_any_field_gives_a_card_that_can_be_shown_or_a_clear_error(index, field, value):
    cards, message = parsed(with_field(index, field, value))
    assert len(cards) == 2 or message.startswith("here")
    for card in cards:
        assert card.name in card_page(card)
        assert card.name in repr(Cards([card])).replace("\n", "")
