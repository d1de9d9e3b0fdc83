"""Check: a library against the oracle, which shares nothing with it."""
