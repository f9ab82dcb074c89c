"""Pixels to vectors: region extractors and the networks inside them."""

from intarsia.features.extractor import EXTRACTORS, Extractor, Found, open_extractor, reopen

__all__ = ["EXTRACTORS", "Extractor", "Found", "open_extractor", "reopen"]
