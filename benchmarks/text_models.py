"""A trained network that reads words in images, and images of words to read.

It is EasyOCR's english_g2, its layers written down here from the names and shapes of its tensors and from its paper:
Shi et al., TPAMI 2017 (convolutions, two bidirectional LSTMs, CTC). The file is read with weights_only=True, which runs
nothing that is in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.records import ROOT

__all__ = ["CACHE", "Reader", "decoded", "reader", "rendered", "words_in"]

CACHE = Path(os.environ.get("ECKART_CACHE") or ROOT / ".cache")
MODELS = CACHE / "easyocr" / "models"
CHARACTERS = "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
HEIGHT = 64  # of an image of a word, in pixels


class _Sequence(nn.Module):
    def __init__(self, columns: int, hidden: int, rows: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(columns, hidden, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden, rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.linear(self.rnn(x)[0])
        return y


class Reader(nn.Module):
    """Images of words, (b, 1, 64, width), to scores of characters, (b, width / 4 - 1, 97); the first is "none"."""

    def __init__(self) -> None:
        super().__init__()
        relu, half, flat = nn.ReLU(), nn.MaxPool2d(2), nn.MaxPool2d((2, 1))

        def conv(c: int, o: int, bias: bool = True) -> nn.Conv2d:
            return nn.Conv2d(c, o, 3, padding=1, bias=bias)

        self.FeatureExtraction = nn.Module()
        self.FeatureExtraction.ConvNet = nn.Sequential(
            conv(1, 32), relu, half, conv(32, 64), relu, half, conv(64, 128), relu, conv(128, 128), relu, flat,
            conv(128, 256, False), nn.BatchNorm2d(256), relu, conv(256, 256, False), nn.BatchNorm2d(256), relu, flat,
            nn.Conv2d(256, 256, 2), relu,
        )  # fmt: skip
        self.SequenceModeling = nn.Sequential(_Sequence(256, 256, 256), _Sequence(256, 256, 256))
        self.Prediction = nn.Linear(256, len(CHARACTERS) + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = self.FeatureExtraction.ConvNet(x).mean(dim=2).transpose(1, 2)
        y: torch.Tensor = self.Prediction(self.SequenceModeling(columns))
        return y


def reader() -> Reader:
    """Return the trained network."""
    state = torch.load(MODELS / "english_g2.pth", map_location="cpu", weights_only=True)
    made = Reader()
    made.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    return made.eval()


def words_in(text: Path, count: int, seed: int) -> list[str]:
    """Return so many different words of a text, of 3 to 12 letters, drawn at random."""
    words = sorted(set(re.findall(r"\b[A-Za-z]{3,12}\b", text.read_text(encoding="utf-8"))))
    return [str(word) for word in np.random.default_rng(seed).choice(words, count, replace=False)]


def rendered(words: Sequence[str], *, noise: float, width: int, seed: int) -> torch.Tensor:
    """Return images of words, (count, 1, 64, width), in -1 … 1, in several fonts and sizes, with noise and blur.

    noise: standard deviation of what is added to grey values of 0 … 255.
    """
    from matplotlib import font_manager
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    draws = np.random.default_rng(seed)
    families = ("DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono")
    files = [
        font_manager.findfont(font_manager.FontProperties(family=family, weight=weight))
        for family in families
        for weight in ("normal", "bold")
    ]
    images = np.empty((len(words), 1, HEIGHT, width), np.float32)
    for i, word in enumerate(words):
        font = ImageFont.truetype(files[draws.integers(len(files))], int(draws.integers(28, 44)))
        light, dark = draws.integers(150, 256), draws.integers(0, 100)
        image = Image.new("L", (width, HEIGHT), int(light))
        left, top, right, bottom = font.getbbox(word)
        scale = min(1.0, (width - 8) / (right - left))
        if scale < 1:
            font = font.font_variant(size=int(font.size * scale))
            left, top, right, bottom = font.getbbox(word)
        ImageDraw.Draw(image).text((4 - left, (HEIGHT - (bottom - top)) / 2 - top), word, int(dark), font)
        image = image.filter(ImageFilter.GaussianBlur(float(draws.uniform(0.0, 1.5))))
        grey = np.asarray(image, np.float32).copy()
        end = min(width, 8 + right - left)  # where a detector would cut the word out; the rest is padding
        grey[:, :end] += draws.normal(0.0, noise, (HEIGHT, end))
        images[i, 0] = np.clip(grey, 0, 255) / 127.5 - 1
    return torch.from_numpy(images)


def decoded(scores: torch.Tensor) -> list[str]:
    """Return the words of scores, (b, places, 97): the likeliest character at each place, without repeats."""
    words = []
    for line in scores.argmax(dim=2).tolist():
        kept = [c for c, before in zip(line, [0, *line], strict=False) if c and c != before]
        words.append("".join(CHARACTERS[c - 1] for c in kept))
    return words
