"""Chat and instruction data: rows of messages to packed rows of tokens, of which the answers are learned."""
