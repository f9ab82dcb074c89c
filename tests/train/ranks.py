"""Two processes of one world, as torchrun starts them."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path

import torch

from intarsia.train.parallel import enter_world


def _enter(rank: int, port: int, work: Callable[[int, Path], None], out: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with enter_world("cpu"):
        work(rank, out)


def two_processes(work: Callable[[int, Path], None], out: Path) -> Path:
    """Calls a function of a module with its rank and a folder, in two processes that talk by gloo; both must end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["toy", "intarsia.train"])
    processes = [server.Process(target=_enter, args=(rank, port, work, out)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return out
