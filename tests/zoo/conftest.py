import json
import shutil

import pytest

import factorizenet_tf as fnet


@pytest.fixture
def copy(zoo, tmp_path):
    """A copy of the session's zoo that a test may change."""
    return shutil.copytree(zoo, tmp_path / "zoo")


@pytest.fixture
def changed(copy):
    """The copy, with fields of its float (0) or int8 (1) entry changed."""

    def change(number, **fields):
        index = json.loads((copy / "index.json").read_text())
        index["models"][number] |= fields
        (copy / "index.json").write_text(json.dumps(index))
        return copy

    return change


@pytest.fixture(scope="session")
def cards(zoo):
    """The session's zoo: a float and an int8 card."""
    return fnet.zoo.list(zoo_dir=zoo)
