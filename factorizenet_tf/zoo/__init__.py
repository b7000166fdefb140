"""Pretrained models by name: list, choose, load, measure again, publish. `catalog` says where names are looked up."""

from .catalog import (
    Card,
    Cards,
    PublishedFile,
    best,
    card,
    evaluate,
    is_published,
    list,
    load,
    names,
    publish,
    verify,
)

__all__ = [
    "Card",
    "Cards",
    "PublishedFile",
    "best",
    "card",
    "evaluate",
    "is_published",
    "list",
    "load",
    "names",
    "publish",
    "verify",
]
