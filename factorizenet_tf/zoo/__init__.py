"""Pretrained models by name: list, choose, load, measure again, publish. `catalog` says where names are looked up."""

from .cards import Card, Cards, PublishedFile
from .catalog import best, card, evaluate, is_published, list, load, names, publish, verify

__all__ = ["Card", "Cards", "PublishedFile"]
__all__ += ["best", "card", "evaluate", "is_published", "list", "load", "names", "publish", "verify"]
