"""Errors that tell more than Python's own, all with one base."""

from __future__ import annotations

from collections.abc import Mapping


class HvpoptError(Exception):
    """The base of hvpopt's own errors, each of which is one of Python's kinds as well."""


class BadPartError(HvpoptError, FloatingPointError):
    """Parts of a sum are not finite; the sum without them may be.

    Args:
        message: A sentence.
        parts: Why each of these parts is bad, by the name that ``Objective.without``
            takes; empty where the sum must not go on without them.

    Attributes:
        parts: As given.
    """

    def __init__(self, message: str, parts: Mapping[str, str]) -> None:
        super().__init__(message)
        self.parts = dict(parts)

    def within(self, name: str) -> None:
        """Name the parts as those of a term of a larger sum, ``"name: part"``."""
        self.parts = {f"{name}: {part}": why for part, why in self.parts.items()}
