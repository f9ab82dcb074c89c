"""Training: one loop, its optimizer, how ranks share the work, what is saved, what is logged. Knows no system by name."""
