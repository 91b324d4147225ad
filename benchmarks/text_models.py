"""Trained networks that read text in images, and images of text to read: what the cases on convolutions share.

The recogniser and the detector are those of EasyOCR (english_g2, craft_mlt_25k), their layers written down here from
the names and shapes of their tensors and from the papers: Shi et al., TPAMI 2017 (convolutions, two bidirectional
LSTMs, CTC); Baek et al., CVPR 2019 (VGG-16 with batch norms, a U of further convolutions). Files are read with
weights_only=True, which runs nothing that is in them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.records import ROOT

__all__ = ["CACHE", "Detector", "Reader", "decoded", "detector", "reader", "rendered", "words_in"]

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


class _Up(nn.Module):
    def __init__(self, into: int, middle: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(into, middle, 1), nn.BatchNorm2d(middle), nn.ReLU(),
            nn.Conv2d(middle, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return y


class Detector(nn.Module):
    """Images, (b, 3, h, w), to maps of where characters are and what links them, (b, h / 2, w / 2, 2)."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(count):
                before = next((m.num_features for m in reversed(layers) if isinstance(m, nn.BatchNorm2d)), 3)
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        self.basenet = nn.Module()
        for number, (start, end) in enumerate(((0, 12), (12, 19), (19, 29), (29, 39)), start=1):
            part = nn.Sequential()
            for i in range(start, end):
                part.add_module(str(i), layers[i])
            self.basenet.add_module(f"slice{number}", part)
        self.basenet.slice5 = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
            nn.Conv2d(1024, 1024, 1),
        )
        self.upconv1, self.upconv2 = _Up(1536, 512, 256), _Up(768, 256, 128)
        self.upconv3, self.upconv4 = _Up(384, 128, 64), _Up(192, 64, 32)
        self.conv_cls = nn.Sequential(
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
            nn.Conv2d(32, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.Conv2d(16, 2, 1),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        sides = []
        for number in (1, 2, 3, 4):
            x = self.basenet.get_submodule(f"slice{number}")(x)
            sides.append(x)
        x = self.upconv1(torch.cat([self.basenet.slice5(x), x], dim=1))
        for up, side in zip((self.upconv2, self.upconv3, self.upconv4), reversed(sides[:3]), strict=True):
            x = nn.functional.interpolate(x, size=side.shape[2:], mode="bilinear", align_corners=False)
            x = up(torch.cat([x, side], dim=1))
        y: torch.Tensor = self.conv_cls(x).permute(0, 2, 3, 1)
        return y


def _loaded(module: nn.Module, file: str) -> Any:
    state = torch.load(MODELS / file, map_location="cpu", weights_only=True)
    module.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
    return module.eval()


def reader() -> Reader:
    made: Reader = _loaded(Reader(), "english_g2.pth")
    return made


def detector() -> Detector:
    made: Detector = _loaded(Detector(), "craft_mlt_25k.pth")
    return made


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
