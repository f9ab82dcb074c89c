"""What a run says while it runs: a progress bar, TensorBoard, and metrics.jsonl, one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard.writer import SummaryWriter

METRICS = "metrics.jsonl"


class Log:
    """Writes for the first rank; silent on the others.

    Args:
        out: folder of the run.
        steps: of the whole run.
        step: where it starts; later lines of an earlier, killed run are removed.
        speak: False on all ranks but the first.
    """

    def __init__(self, out: Path, steps: int, step: int, speak: bool) -> None:
        self.speak = speak
        if not speak:
            return
        path = out / METRICS
        kept = [x for x in _lines(path) if x.get("step", 0) <= step] if step else []
        path.write_text("".join(json.dumps(x) + "\n" for x in kept))
        self.file = path.open("a")
        self.board = SummaryWriter(str(out / "tensorboard"), purge_step=step)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[said]}"),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task("steps", total=steps, completed=step, said="")

    def __enter__(self) -> Log:
        if self.speak:
            self.bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.speak:
            self.bar.stop()
            self.file.close()
            self.board.close()

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self.speak:
            self.bar.update(self.task, completed=step)

    def write(self, step: int, **values: Any) -> None:
        """One line: numbers, or dicts of numbers by goal."""
        if not self.speak:
            return
        self.file.write(json.dumps({"step": step, **values}) + "\n")
        self.file.flush()
        for name, value in values.items():
            for key, number in value.items() if isinstance(value, dict) else (("", value),):
                self.board.add_scalar(f"{name}/{key}" if key else name, number, step)
        if "loss" in values:
            losses = " ".join(f"{k} {v:.3f}" for k, v in values["loss"].items())
            speed = f"{values['pairs_per_second']:,.0f} pairs/s {values['rows_per_second']:,.0f} tokens/s"
            self.bar.update(self.task, completed=step, said=f"{losses} | {speed}")


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break  # the line that a killed run was writing
    return found
