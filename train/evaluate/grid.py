"""A picture of generated clips: a row of frames each, its caption below, so that a person can look."""
# Shapes: T frames, H W height and width

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from PIL import Image

    from train.evaluate.suite import Shown

N_FRAMES = 9  # of a clip, evenly spread
SCALE = 2
LINE = 14  # pixels for a caption


def grid(shown: Sequence[Shown]) -> Image.Image:
    """Generated frames above, true frames below where there are any, then "part: caption". Needs at least one clip."""
    from PIL import Image, ImageDraw

    if not shown:
        raise ValueError("there are no clips to draw")
    height, width = shown[0].frames.shape[1:3]
    lines = [1 if clip.true is None else 2 for clip in shown]
    rows = [SCALE * height * n + LINE for n in lines]
    sheet = Image.new("RGB", (SCALE * width * N_FRAMES, sum(rows)), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for clip, high in zip(shown, rows):
        for line, frames in enumerate([clip.frames] if clip.true is None else [clip.frames, clip.true]):
            at = torch.linspace(0, len(frames) - 1, N_FRAMES).round().long()
            strip = torch.cat(list(frames[at]), dim=1)  # (H, N_FRAMES * W, 3)
            image = Image.fromarray(strip.numpy()).resize((SCALE * width * N_FRAMES, SCALE * height), 0)
            sheet.paste(image, (0, top + line * SCALE * height))
        pen.text((3, top + high - LINE + 1), f"{clip.part}: {clip.caption}", fill="black")
        top += high
    return sheet


def save_grid(shown: Sequence[Shown], path: Path) -> None:
    """Write the picture in the format its suffix names."""
    grid(shown).save(path)
