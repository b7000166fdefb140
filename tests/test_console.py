"""What commands print, and what they look for before they start."""

import sys

import pytest

from factorizenet_tf.console import require_extra


def test_a_missing_extra_is_named_with_its_remedy_and_nothing_is_imported(monkeypatch):
    require_extra("json", "xml.dom", extra="report", what="drawing figures")
    monkeypatch.setitem(sys.modules, "json", None)  # as if it were not installed
    with pytest.raises(ModuleNotFoundError) as found:
        require_extra("json", "no_such_module.part", "xml", extra="report", what="drawing figures")
    assert str(found.value) == (
        "drawing figures needs json and no_such_module.part: pip install 'factorizenet_tf[report]'"
    )
    assert found.value.name == "json"
