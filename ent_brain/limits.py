"""The values that a setting may have, and what an error message suggests in place of others."""

import sys
from dataclasses import dataclass, fields
from typing import get_args

FINITE = sys.float_info.max
"""Highest value of numbers without an upper limit."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``lowest`` to ``highest``, or above ``lowest`` if it is ``excluded``.

    Example
    -------
    >>> Range(highest=1).remedy(1.5)
    'give a number from 0 to 1'
    >>> Range(excluded=True).remedy(2.5, whole=True)
    'give a whole number above 0'
    >>> Range().remedy(2.5)
    """

    lowest: float = 0
    highest: float = FINITE
    excluded: bool = False

    def remedy(self, value, whole=False):
        """Return what to give in place of a wrong value, or None if it is right."""
        is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        is_excluded = self.excluded and value == self.lowest
        if is_number and self.lowest <= value <= self.highest and not is_excluded:
            return None
        number = "give a whole number" if whole else "give a number"
        lowest = f" {'above' if self.excluded else 'from'} {self.lowest}"
        highest = f" to {self.highest}" if self.highest < FINITE else ""
        return number + ("" if self.lowest == -FINITE else lowest) + highest


@dataclass(frozen=True)
class Choices:
    """One of some values."""

    values: tuple

    def remedy(self, value):
        """As for ``Range``."""
        if repr(value) in map(repr, self.values):
            return None
        return "choose " + ", ".join(map(as_yaml, self.values))


def limits_of(settings):
    """Limits of each field of a dataclass: those in its ``Annotated`` type, or None (dict)."""
    return {field.name: next(iter(get_args(field.type)[1:]), None) for field in fields(settings)}


def as_yaml(value):
    """Write a value as a YAML does (str)."""
    return "null" if value is None else str(value)
