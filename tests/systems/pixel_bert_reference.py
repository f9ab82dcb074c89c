"""Pixel-BERT once more, slowly, from its description alone: one document at a time, one position at a time, plain functions of torch."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + 1e-12) * w[name + ".weight"] + w[name + ".bias"]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def batch_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    """By stored statistics."""
    scale = w[name + ".weight"] / torch.sqrt(w[name + ".running_var"] + 1e-5)
    return (x - w[name + ".running_mean"][:, None, None]) * scale[:, None, None] + w[name + ".bias"][:, None, None]


def cnn(w: Weights, pixels: Tensor, depths: tuple[int, ...]) -> Tensor:
    """(3, H, W) to (C, h, w), the last map of a ResNet with bottlenecks."""
    x = F.relu(batch_norm(w, "backbone.bn1", F.conv2d(pixels[None], w["backbone.conv1.weight"], None, 2, 3)[0]))
    x = F.max_pool2d(x[None], 3, 2, 1)[0]
    for layer, depth in enumerate(depths, 1):
        for block in range(depth):
            at = f"backbone.layer{layer}.{block}."
            stride = 2 if layer > 1 and block == 0 else 1
            y = F.relu(batch_norm(w, at + "bn1", F.conv2d(x[None], w[at + "conv1.weight"])[0]))
            y = F.relu(batch_norm(w, at + "bn2", F.conv2d(y[None], w[at + "conv2.weight"], None, stride, 1)[0]))
            y = batch_norm(w, at + "bn3", F.conv2d(y[None], w[at + "conv3.weight"])[0])
            if at + "downsample.0.weight" in w:
                x = batch_norm(
                    w, at + "downsample.1", F.conv2d(x[None], w[at + "downsample.0.weight"], None, stride)[0]
                )
            x = F.relu(x + y)
    return x


def pixel_rows(w: Weights, pixels: Tensor, room: tuple[int, int], depths: tuple[int, ...], kept: list[int]) -> Tensor:
    """The rows of a picture (3, H, W) that lies in a larger room filled up with 0; `kept` are positions of its own grid, row by row."""
    _, height, width = pixels.shape
    whole = torch.zeros(3, *room)
    whole[:, :height, :width] = pixels
    maps, rows = cnn(w, whole, depths), []
    for y in range(math.ceil(height / 64)):  # positions with any real pixel
        for x in range(math.ceil(width / 64)):
            four = maps[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten(1).max(1).values
            rows.append(linear(w, "pixel_proj", four) + w["pixel_type"])
    return torch.stack([rows[i] for i in kept])


def word_rows(w: Weights, ids: list[int]) -> Tensor:
    rows = [
        w["words.word.weight"][i] + w["words.position.weight"][p] + w["words.segment.weight"][0]
        for p, i in enumerate(ids)
    ]
    return norm(w, "words.norm", torch.stack(rows))


def bert(w: Weights, x: Tensor, layers: int, heads: int) -> Tensor:
    width = x.shape[1]
    size = width // heads
    for i in range(layers):
        at = f"encoder.layers.{i}."
        q, k, v = linear(w, at + "attention.qkv", x).split(width, 1)
        mixed = []
        for h in range(heads):
            cut = slice(h * size, (h + 1) * size)
            mixed.append(torch.softmax(q[:, cut] @ k[:, cut].T / math.sqrt(size), -1) @ v[:, cut])
        x = norm(w, at + "attention_norm", x + linear(w, at + "attention.out", torch.cat(mixed, 1)))
        x = norm(w, at + "norm", x + linear(w, at + "down", gelu(linear(w, at + "up", x))))
    return x


def document(w: Weights, config: Any, ids: list[int], pixels: Tensor, room: tuple[int, int], kept: list[int]) -> Tensor:
    """[CLS] words [SEP] pixels through the Transformer."""
    rows = torch.cat([word_rows(w, ids), pixel_rows(w, pixels, room, config.trunk.depths, kept)])
    return bert(w, rows, config.num_hidden_layers, config.num_attention_heads)


def word_loss(w: Weights, row: Tensor, label: int) -> Tensor:
    x = norm(w, "word_head.transform.norm", gelu(linear(w, "word_head.transform.dense", row)))
    logits = w["words.word.weight"] @ x + w["word_head.bias"]
    return logits.logsumexp(0) - logits[label]


def match_loss(w: Weights, first: Tensor, label: int) -> Tensor:
    probability = torch.sigmoid(linear(w, "match_head", first)[0])
    return -torch.log(probability if label else 1 - probability)
