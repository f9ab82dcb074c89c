"""Data: formats, order, decoding, checks, and the parts that package clients fetch."""
