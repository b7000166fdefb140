import dataclasses
import sys

import factorizenet_tf as fnet
from factorizenet_tf.plots import zoo_frontier
from factorizenet_tf.zoo.cards import Cards
from factorizenet_tf.zoo.pages import card_page, table_page, write_pages
from factorizenet_tf.zoo.store import bundled_zoo


def test_the_packages_own_pages_are_what_its_index_gives():
    folder = bundled_zoo()
    cards = fnet.zoo.list(all_versions=True, zoo_dir=folder)
    newest = cards.newest()
    table = table_page(newest, findings=(folder / "FINDINGS.md").is_file())
    assert (folder / "README.md").read_text() == table, "the table is of an older index; run write_pages"
    pages = {f"{card.name if card in newest else card.reference}.md": card_page(card) for card in cards}
    written = {path.name: path.read_text().partition("\n![confusion")[0] for path in (folder / "cards").glob("*.md")}
    assert written == pages


def test_the_table_says_how_many_images_its_accuracies_are_of(cards):
    images = cards[1].images
    line = f"Accuracy on {images['validation']:,} validation and {images['test']:,} test images."
    assert table_page(cards).count(line) == 2  # int8 and float
    other = dataclasses.replace(cards[1], images=images | {"validation": 9_000, "test": 10_000})
    assert "test images or 9,000 validation and 10,000 test images." in table_page(Cards([*cards, other]))
    assert "None is published yet" in table_page(Cards())


def test_a_page_says_what_its_card_says_and_nothing_of_what_it_does_not(cards):
    for fields, said, unsaid in (
        ({}, "The publisher states no licence. Published", "JPEG"),
        ({"spec": fnet.baselines.ResNet8()}, "MLPerf Tiny's ResNet-8", "of depth factorization"),
        ({"older": {"latency_2_threads_ms": 1.0}}, "with reference kernels", "2 threads"),
        ({"licence": "MIT"}, "Licence of the weights: MIT. Published", "states no licence"),
        ({"dataset": "CIFAR-10 (JPEG)"}, "compares only", "Licence of the weights"),
        ({"dataset_name": "tiny_imagenet"}, "no licence; the data's terms: ImageNet, of", "Licence of the weights"),
        ({"dataset_name": "gtsrb"}, "no licence. Published", "the data's terms"),
    ):
        page = card_page(dataclasses.replace(cards[1], **fields))
        assert said in page
        assert unsaid not in page


def test_a_page_has_recall_precision_and_confusions_of_each_class_where_the_card_has_them(cards):
    page = card_page(dataclasses.replace(cards[1], confusion=("3 1 0", "1 1 0", "0 0 0"), class_names=("a", "b", "c")))
    assert "On the 6 test images. Balanced accuracy, the mean recall of the classes:\n62.50 %." in page
    assert "| a | 4 | 75.00 % | 75.00 % |" in page
    assert "| c | 0 |  |  |" in page
    assert "| b | 1 | 1 | 0 |" in page
    many = [" ".join("8" if n == row else "2" if (row, n) == (0, 1) else "0" for n in range(21)) for row in range(21)]
    names = tuple(f"n{number}" for number in range(21))
    page = card_page(dataclasses.replace(cards[1], confusion=tuple(many), class_names=names))
    table = "| class | taken for | images | share |\n| --- | --- | --- | --- |\n| n0 | n1 | 2 | 20.00 % |\n"
    assert f"The most frequent mistakes:\n\n{table}" in page
    assert "## Classes" not in card_page(dataclasses.replace(cards[1], confusion=None))


def test_the_figure_has_the_frontier_of_the_nets_as_first_published_once_there_are_later_versions(cards, tmp_path):
    (first,) = [card for card in cards if card.precision == "int8"]
    later = dataclasses.replace(first, version=2, size_bytes=first.size_bytes // 2)
    texts = []
    for own in ([first], [first, later], [later]):
        zoo_frontier(own, tmp_path / "frontier.svg")
        texts.append((tmp_path / "frontier.svg").read_text())
    assert ["first generation" in text for text in texts] == [False, True, False]
    assert ["stroke-dasharray" in text for text in texts] == [False, True, False]


def test_pages_and_figure_of_models_that_left_are_removed(cards, copy, monkeypatch):
    first = (copy / "frontier.svg").read_bytes()
    assert first.startswith(b"<svg")
    (copy / "FINDINGS.md").touch()
    (copy / "cards" / "notes.md").touch()
    write_pages(copy, Cards(cards[1:]))
    stem = "fnet-1x2.2x2-l1-x0.5-int8"
    assert sorted(path.name for path in (copy / "cards").iterdir()) == [f"{stem}.md", f"{stem}.svg", "notes.md"]
    assert (copy / "frontier.svg").read_bytes() == first  # int8 models only, and the same bytes each time
    assert all(f"({name})" in (copy / "README.md").read_text() for name in ("FINDINGS.md", "frontier.svg"))
    many = [dataclasses.replace(card, class_names=tuple(f"n{n}" for n in range(101))) for card in cards]
    write_pages(copy, Cards(many))
    assert not [*(copy / "cards").glob("*.svg")]  # a matrix of so many classes is no figure
    write_pages(copy, cards)
    # Without Altair no older figure is left to contradict the table.
    monkeypatch.delitem(sys.modules, "factorizenet_tf.plots", raising=False)
    monkeypatch.setitem(sys.modules, "altair", None)
    write_pages(copy, cards)
    assert not [*copy.rglob("*.svg")]
    assert (copy / "README.md").read_text() == table_page(cards, figure=False, findings=True)
