"""What a run tells: a bar or lines on the error stream, `metrics.jsonl`, TensorBoard. The first process tells, the others are silent.

    {"step": 100, "loss": {"mlm": 6.3, "itm": 0.7}, "epoch": 0, "lr": 5e-05, "norm": 1.2,
     "pairs_per_second": 310.0, "rows_per_second": 15000.0, "seconds": 210.0}
    {"step": 100, "valid": {"mlm": 6.4, "itm": 0.7}}

`step` counts the optimizer steps done; the numbers of a training line are means over the steps since the line before it,
save `seconds`: the time trained so far, with that of earlier parts of the run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from intarsia.data.formats.files import write_whole
from intarsia.errors import BadInput, needs_extra


class Log:
    """The telling of one run; a context manager.

    Args:
        out: the run folder.
        steps: optimizer steps in all.
        start: steps done before; lines of `metrics.jsonl` beyond them, of a run that was cut off, are taken out: they come again.
        speak: False = does nothing at all (processes other than the first).
        tensorboard: write TensorBoard files, too.

    Raises:
        BadInput: the files cannot be written, or TensorBoard is wanted and not installed.
    """

    def __init__(self, out: Path, steps: int, start: int = 0, *, speak: bool = True, tensorboard: bool = True) -> None:
        self.path, self.speak = out / "metrics.jsonl", speak
        self._console = Console(stderr=True)
        self._lines: IO[str] | None = None
        self._board: Any = None
        self._bar: Progress | None = None
        if not speak:
            return
        self._open(start)
        if tensorboard:
            self._board = _board(out / "tensorboard", start)
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[told]}"),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("steps", total=steps, completed=start, told="")
            self._bar.start()

    def _open(self, start: int) -> None:
        try:
            if self.path.exists():
                lines = self.path.read_text(encoding="utf-8").splitlines()
                with write_whole(self.path) as temporary:
                    temporary.write_text(
                        "".join(line + "\n" for line in lines if _step(line) <= start), encoding="utf-8"
                    )
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lines = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  # closed in __exit__
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be written: {error}") from None

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._board is not None:
            self._board.close()
        if self._lines is not None:
            self._lines.close()

    def step(self, done: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def say(self, text: str) -> None:
        """A line for the reader, on the error stream."""
        if self.speak:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def write(self, kind: str, step: int, losses: dict[str, float], **numbers: float) -> None:
        """One line of metrics.

        Args:
            kind: "loss" (training) or "valid" (held out).
            step: optimizer steps done.
            losses: by name.
            numbers: everything else.
        """
        if not self.speak or self._lines is None:
            return
        try:
            self._lines.write(json.dumps({"step": step, kind: losses, **numbers}) + "\n")
            self._lines.flush()
            os.fsync(self._lines.fileno())
        except OSError as error:
            raise BadInput(f"{self.path}: cannot be written: {error}") from None
        if self._board is not None:
            for name, value in {**{f"{kind}/{name}": value for name, value in losses.items()}, **numbers}.items():
                self._board.add_scalar(name, value, step)
        told = "  ".join(
            f"{name} {value:.4g}"
            for name, value in {**losses, **numbers}.items()
            if name not in ("lr", "norm", "epoch", "seconds")
        )
        if self._bar is not None and kind == "loss":
            self._bar.update(self._task, told=told)
        else:
            self.say(f"step {step}, {kind}: {told}")


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # cut off in the middle of a line


def _board(folder: Path, start: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise needs_extra("tensorboard", "tensorboard") from None
    return SummaryWriter(str(folder), purge_step=start + 1)
