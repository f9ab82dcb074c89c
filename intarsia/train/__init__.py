"""Training: the loop, its optimizer, processes, checkpoints and telling. It is handed a system and knows none by name."""

from intarsia.train.loop import Outcome, Pace, pretrain

__all__ = ["Outcome", "Pace", "pretrain"]
