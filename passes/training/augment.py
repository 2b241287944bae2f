"""Small random shifts, turns and zooms of images: more training data from the same.

Each sample is resampled once, bilinearly; what comes from outside repeats the border. Only the seed, the epoch and the sample's
place in it decide what happens to it, so a resumed run sees what an unbroken one would have.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from gatewright.errors import UsageError
from gatewright.frontend.edit import Array
from gatewright.frontend.model import Model

from .options import Training

Augment = Callable[[dict[str, Array], np.random.Generator], dict[str, Array]]


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

    def augment(feeds: dict[str, Array], random: np.random.Generator) -> dict[str, Array]:
        raw = feeds[info.name]
        x = torch.from_numpy(raw.astype(np.float32)).reshape(-1, *shape)
        x = x.permute(0, 3, 1, 2) if last else x
        y = functional.grid_sample(x, _grid(x, options, random), mode="bilinear", padding_mode="border", align_corners=False)
        moved = (y.permute(0, 2, 3, 1) if last else y).reshape(raw.shape).numpy()
        return {info.name: moved.astype(raw.dtype) if raw.dtype.kind == "f" else np.rint(moved).astype(raw.dtype)}

    return augment


def _grid(x: torch.Tensor, options: Training, random: np.random.Generator) -> torch.Tensor:
    """Where each pixel comes from: [samples, height, width, (x, y)] in −1 … 1."""
    samples, _, height, width = x.shape
    angle = np.deg2rad(random.uniform(-options.rotate, options.rotate, samples))
    size = 1 + random.uniform(-options.zoom, options.zoom, samples)
    across, down = (2 * random.uniform(-options.shift, options.shift, samples) / n for n in (width, height))
    c, s = np.cos(angle) / size, np.sin(angle) / size
    ratio = height / width
    matrix = np.stack([np.stack([c, -s * ratio, across], -1), np.stack([s / ratio, c, down], -1)], 1)
    grid: torch.Tensor = functional.affine_grid(torch.from_numpy(matrix.astype(np.float32)), list(x.shape), align_corners=False)
    return grid
