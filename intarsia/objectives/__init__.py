"""Objectives: each file says what is hidden (numpy, in the loader's workers) and how it is scored (torch, on the device). No parameters here."""
