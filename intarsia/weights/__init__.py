"""Weights: rules between the authors' key layouts and ours, and readers that never run code."""
