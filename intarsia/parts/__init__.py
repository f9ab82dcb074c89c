"""Modules that two systems or more are built from."""
