"""Slow copies of modules. Source: He et al., MoCo (CVPR 2020), sec. 3.2."""

from __future__ import annotations

import copy

from torch import nn


def follower(module: nn.Module) -> nn.Module:
    """A copy whose parameters are buffers: it is saved, moved and resumed with the system, and is no business of optimizers, gradients or sharding.

    `objectives.contrast.follow` moves it.
    """
    twin = copy.deepcopy(module)
    for part in twin.modules():
        for name, value in list(part.named_parameters(recurse=False)):
            del part._parameters[name]
            part.register_buffer(name, value.detach())
    return twin
