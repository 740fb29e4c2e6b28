"""A compiled module; its functions are documented in _verbs_native.pyx."""

from typing import Any

def __getattr__(name: str) -> Any: ...
