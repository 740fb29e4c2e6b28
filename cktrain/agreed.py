"""Errors that all ranks have agreed on: each raises the same one, and rank 0 alone says it."""

from __future__ import annotations


class AgreedError(Exception):
    """All ranks raise it, with the same text. An error of any other kind is said by the rank that has it."""
