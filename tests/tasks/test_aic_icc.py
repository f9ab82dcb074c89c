"""WenLan on AIC-ICC: its towers go on with the loss of pre-training, and the run is scored as any other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from intarsia.cli import main


def test_wenlan_goes_on_with_the_captions_of_a_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, lines, parts = np.random.default_rng(0), [], {"train": [], "validation": []}  # type: ignore[var-annotated]
    for i, part in enumerate(("train", "train", "validation", "validation")):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{i}.jpg")
        parts[part].append({"url": "", "image_id": f"{i}.jpg", "caption": [f"{i}个人在跑步。"] * 2})
        lines.append(json.dumps({"key": str(i), "image": f"{i}.jpg", "captions": ["图"]}))
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    for part, said in parts.items():
        (tmp_path / f"caption_{part}_annotations_20170902.json").write_text(json.dumps(said))
    run, where = str(tmp_path / "run"), ["--data", str(tmp_path), "--regions", str(tmp_path)]
    main(
        [
            "pretrain",
            "wenlan",
            "--size",
            "tiny",
            "--benchmark",
            "aic-icc",
            *where,
            "--out",
            run,
            "--schedule.steps",
            "1",
        ]
        + ["--config.image-size", "64", "--workers", "0", "--device", "cpu", "--vocab", "gb2312"]
    )
    main(["score", run, "--benchmark", "aic-icc", *where])
    numbers = json.loads((tmp_path / "run/score-val.json").read_text())["numbers"]
    assert numbers["text R@10"] == numbers["image R@10"] == 1, "two pictures"
    with pytest.raises(SystemExit):
        main(["finetune", "wenlan", "retrieval", *where, "--out", str(tmp_path / "other")])
    assert "its towers go on with their own loss: `intarsia pretrain --benchmark`" in capsys.readouterr().err
