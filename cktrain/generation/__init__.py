"""Text out of a model: reading with a key/value cache, choosing tokens, and what ends a text."""
