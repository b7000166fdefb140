"""Specs of other people's nets to compare with, trained by the same recipe."""

from .spec import ResNet8

__all__ = ["ResNet8"]
