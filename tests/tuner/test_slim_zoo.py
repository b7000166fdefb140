import runpy
import shutil
from pathlib import Path

import pytest

import factorizenet_tf as fnet
from factorizenet_tf.tflite.slim import slim
from factorizenet_tf.zoo import publishing, store
from factorizenet_tf.zoo.cards import index_to_json

SCRIPT = Path(__file__).parents[2] / "tuner" / "slim_zoo.py"
FLOAT, INT8 = "fnet-l6-float", "fnet-l6-int8"


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A zoo folder with the first version of one published net, as it was converted."""
    fields = {"latency_ms": 1.5, "latency_ratio": 1.5, "latency_machine": "a machine"}
    monkeypatch.setattr(publishing, "_latencies", lambda found, spec: [fields for _ in found])
    source, folder = store.FolderStore(store.bundled_zoo()), tmp_path / "zoo"
    cards = [card for card in source.cards() if card.reference in (f"{FLOAT}@1", f"{INT8}@1")]
    for path in {Path(file.path).parent for card in cards for file in card.files}:
        shutil.copytree(source.folder / path, folder / path)
    (folder / "index.json").write_text(index_to_json(fnet.zoo.Cards(cards)))
    return folder


def test_the_next_version_is_slim_and_all_else_is_the_card_before(old):
    script = runpy.run_path(str(SCRIPT))
    script["main"]([str(old)])
    one, two = (fnet.zoo.card(f"{INT8}@{version}", zoo_dir=old) for version in (1, 2))
    content = fnet.zoo.load(one.reference, "path", zoo_dir=old).read_bytes()
    found = fnet.zoo.load(two.reference, "path", zoo_dir=old)
    assert found.read_bytes() == slim(content)
    assert two.size_bytes == found.stat().st_size < one.size_bytes == len(content)
    assert (two.ram_bytes, two.accuracies, two.operators) == (one.ram_bytes, one.accuracies, one.operators)
    assert two.file("weights") == one.file("weights")
    assert fnet.zoo.card(FLOAT, zoo_dir=old).version == 2
    index = (old / "index.json").read_text()
    script["main"]([str(old)])  # there is nothing left to do
    assert (old / "index.json").read_text() == index
    with pytest.raises(ValueError, match="XNNPACK gives other outputs"):
        script["check_equal"]("a net", content, fnet.zoo.load("baseline-resnet8-int8", "path").read_bytes())
