"""Small random shifts, turns and zooms of images: more training data from the same.

Each sample is resampled once, bilinearly; what comes from outside repeats the border. Only the seed, the epoch and the sample's
place in it decide what happens to it, so a resumed run sees what an unbroken one would have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from gatewright.errors import UsageError
from gatewright.frontend.edit import Array
from gatewright.frontend.model import Model

from .options import Training


@dataclass(frozen=True)
class Augment:
    """``draw`` says what happens to each sample of a batch, calling it makes it happen to some of them."""

    options: Training
    name: str
    """Of the input that is the image."""
    image: tuple[int, ...]
    """A sample as an image: channels, height, width; or height, width, channels where ``last``."""
    last: bool

    def draw(self, samples: int, random: np.random.Generator) -> Array:
        """Degrees, zoom, pixels across and pixels down, [4, samples]."""
        o = self.options
        return np.stack([random.uniform(-limit, limit, samples) for limit in (o.rotate, o.zoom, o.shift, o.shift)])

    def __call__(self, feeds: dict[str, Array], draws: Array) -> dict[str, Array]:
        raw = feeds[self.name]
        x = torch.from_numpy(raw.astype(np.float32)).reshape(-1, *self.image)
        x = x.permute(0, 3, 1, 2) if self.last else x
        y = functional.grid_sample(x, _grid(x, draws), mode="bilinear", padding_mode="border", align_corners=False)
        moved = (y.permute(0, 2, 3, 1) if self.last else y).reshape(raw.shape).numpy()
        return {self.name: moved.astype(raw.dtype) if raw.dtype.kind == "f" else np.rint(moved).astype(raw.dtype)}


def augmentation(options: Training, model: Model) -> Augment | None:
    """What ``options`` ask for, or None. Raises UsageError where an input is no image."""
    if not (options.shift or options.rotate or options.zoom):
        return None
    if len(model.inputs) != 1:
        raise UsageError(f"shift, rotate and zoom take a model with one input, {model.name} has {len(model.inputs)}")
    (info,) = model.inputs
    shape = options.image or info.shape[1:]
    if len(shape) != 3 or int(np.prod(shape)) != int(np.prod(info.shape[1:])):
        raise UsageError(f"input {info.name!r} takes samples of shape {list(info.shape[1:])}, which is no image", hint="image=1|28|28")
    # Channels are the axis that looks like them; NCHW where both do.
    last = not options.image and shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4)
    return Augment(options, info.name, shape, last)


def _grid(x: torch.Tensor, draws: Array) -> torch.Tensor:
    """Where each pixel comes from: [samples, height, width, (x, y)] in −1 … 1."""
    height, width = x.shape[2:]
    degrees, zoom, across, down = draws
    angle, size = np.deg2rad(degrees), 1 + zoom
    across, down = 2 * across / width, 2 * down / height
    c, s = np.cos(angle) / size, np.sin(angle) / size
    ratio = height / width
    matrix = np.stack([np.stack([c, -s * ratio, across], -1), np.stack([s / ratio, c, down], -1)], 1)
    grid: torch.Tensor = functional.affine_grid(torch.from_numpy(matrix.astype(np.float32)), list(x.shape), align_corners=False)
    return grid
