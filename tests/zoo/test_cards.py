import dataclasses

import pytest

import factorizenet_tf as fnet
from factorizenet_tf.zoo.cards import Cards, find


@pytest.fixture(scope="module")
def cards(zoo):
    return fnet.zoo.list(zoo_dir=zoo)


def test_a_card_knows_level_and_width_from_its_spec_and_a_baseline_has_none(cards):
    assert (cards[0].level, cards[0].width) == (1, 8)
    baseline = dataclasses.replace(cards[0], spec=fnet.baselines.ResNet8())
    assert (baseline.level, baseline.width) == (None, None)


def test_cards_print_as_a_table_and_become_a_data_frame(cards):
    lines = repr(cards).splitlines()
    assert sum("fnet-l1-x0.5-" in line for line in lines) == 2
    frame = cards.to_pandas()
    assert list(frame["name"]) == [card.name for card in cards]
    assert frame["accuracy"][1] == cards[1].accuracy
    assert repr(Cards()) == "no models"


def test_an_unknown_name_offers_the_nearest(cards):
    with pytest.raises(ValueError, match=r"did you mean 'fnet-l1-x0\.5-int8'"):
        find(cards, "fnet-l1-x0.5-int9")
    with pytest.raises(ValueError, match=r"there are fnet-l1-x0\.5-float, fnet-l1"):
        find(cards, "zzz")
    with pytest.raises(ValueError, match="this zoo is empty"):
        find(Cards(), "fnet-l1-int8")


@pytest.mark.parametrize(
    "name", ["../fnet-l1-x0.5-int8", "https://example.com/fnet-l1-x0.5-int8", "fnet-l1-x0.5-int8/..", "", "a\0b"]
)
def test_paths_and_addresses_are_just_unknown_names(cards, name):
    with pytest.raises(ValueError, match="no model"):
        find(cards, name)
