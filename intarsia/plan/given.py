"""What a plan is told: how large samples are, and what the GPUs can do."""

from __future__ import annotations

from dataclasses import dataclass

from intarsia.errors import BadInput

GIB = 2**30


@dataclass(frozen=True)
class Size:
    """How large a sample is."""

    words: int = 20
    """Words of a text."""
    regions: int = 36
    """Regions, patches or clips beside it; no more patches than the system has cells."""
    width: int = 640
    """Pixels of a picture, for systems that read them."""
    height: int = 480

    def __post_init__(self) -> None:
        for name in ("words", "regions", "width", "height"):
            if getattr(self, name) < 1:
                raise BadInput(f"--sample.{name} {getattr(self, name)}: must be at least 1")


@dataclass(frozen=True)
class Room:
    """What the GPUs can do. The defaults are those of an H100 with 80 GB; nothing here is measured."""

    memory: float = 80.0
    """GiB a GPU has."""
    reserve: float = 6.0
    """GiB of it that are left to the CUDA context, communication buffers, kernels' workspaces and holes in the allocator."""
    tflops: float | None = None
    """Peak TFLOP/s of matrix products; None = 989 in bf16 (dense), 67 in fp32 (no TF32), by the recipe's precision."""
    efficiency: float = 0.4
    """Share of the peak that a step reaches."""
    bandwidth: float = 450.0
    """GB/s that a GPU sends to others in its machine, one way (NVLink)."""
    network: float = 50.0
    """GB/s that a GPU sends to other machines (400 Gb/s)."""
    machine: int = 8
    """GPUs in a machine."""

    def __post_init__(self) -> None:
        for name in ("memory", "efficiency", "bandwidth", "network", "machine"):
            if not getattr(self, name) > 0:
                raise BadInput(f"--gpu.{name} {getattr(self, name):g}: must be above 0")
        if self.tflops is not None and not self.tflops > 0:
            raise BadInput(f"--gpu.tflops {self.tflops:g}: must be above 0")
        if not 0 <= self.reserve < self.memory:
            raise BadInput(
                f"--gpu.reserve {self.reserve:g}: must be at least 0 and less than --gpu.memory {self.memory:g}"
            )

    def peak(self, precision: str) -> float:
        """FLOP/s of matrix products."""
        return 1e12 * (self.tflops or (989.0 if precision == "bf16" else 67.0))

    def speed(self, gpus: int) -> float:
        """Bytes a second that a GPU sends: those of the slower link where there is more than one machine."""
        return 1e9 * (self.bandwidth if gpus <= self.machine else min(self.bandwidth, self.network))

    @property
    def usable(self) -> float:
        """Bytes."""
        return (self.memory - self.reserve) * GIB
