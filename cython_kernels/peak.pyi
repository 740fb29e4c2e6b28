"""A compiled module; its functions are documented in peak.pyx."""

from typing import Any

def __getattr__(name: str) -> Any: ...
