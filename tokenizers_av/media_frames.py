"""From decoded pictures of any size, shape and pixel format to (H, W, 3) uint8 of the size asked for."""
# Shapes: T frames, H W height and width

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FITS = ("crop", "pad", "stretch")
# Flags of the pixel format converter: bicubic (4), accurate rounding (0x40000), colour interpolated for every pixel
# (0x2000); without the last two a smooth picture comes back one level too dark and at 31 dB instead of 49.
TO_RGB = 0x42004
# BT.601, limited range: what players take small video to be
RGB_TO_YCBCR = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=np.float32
)
YCBCR_OFFSET = np.array([16, 128, 128], dtype=np.float32)
PILLOW_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # others may start programs, as PostScript does
Size = int | tuple[int, int]


def check_size(size: Size | None, fit: str) -> tuple[int, int] | None:
    """Validate a size (int for a square, or (H, W)) and a way to fit; returns (H, W)."""
    if fit not in FITS:
        raise ValueError(f"fit={fit!r}: expected one of {', '.join(FITS)}")
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(not isinstance(n, int) or n < 1 for n in pair):
        raise ValueError(f"size={size!r}: expected a number of pixels or (height, width), each at least 1")
    return pair[0], pair[1]


def resize(frames: Tensor, size: tuple[int, int], fit: str = "crop", pixel_aspect: float = 1.0) -> Tensor:
    """Resize frames (T, H, W, 3) uint8 to size (H', W') with antialiasing.

    "crop" fills the whole size and cuts what stands over, equally on both sides; "pad" shows the whole picture on
    black; "stretch" shows the whole picture in other proportions. `pixel_aspect` is the width of a source pixel over
    its height.
    """
    if fit == "stretch":
        return stretch(frames, *size)
    height, width = frames.shape[1:3]
    out_h, out_w = size
    wide = width * pixel_aspect  # the width in square pixels
    if fit == "crop":
        scale = max(out_h / height, out_w / wide)
        keep_h = min(height, max(1, round(out_h / scale)))
        keep_w = min(width, max(1, round(out_w / scale / pixel_aspect)))
        top, left = (height - keep_h) // 2, (width - keep_w) // 2
        return stretch(frames[:, top : top + keep_h, left : left + keep_w], out_h, out_w)
    scale = min(out_h / height, out_w / wide)
    in_h, in_w = min(out_h, max(1, round(height * scale))), min(out_w, max(1, round(wide * scale)))
    canvas = frames.new_zeros(frames.shape[0], out_h, out_w, 3)
    top, left = (out_h - in_h) // 2, (out_w - in_w) // 2
    canvas[:, top : top + in_h, left : left + in_w] = stretch(frames, in_h, in_w)
    return canvas


def stretch(frames: Tensor, height: int, width: int) -> Tensor:
    """Scale frames (T, H, W, 3) uint8 with antialiasing, whatever becomes of their proportions."""
    if frames.shape[1:3] == (height, width):
        return frames.contiguous()
    stretched = []
    for frame in frames.split(1):  # floats of all of them at once would take four times the memory of the frames
        x = frame.permute(0, 3, 1, 2).float()
        x = F.interpolate(x, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
        stretched.append(x.round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1))
    return torch.cat(stretched).contiguous()


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Lay a picture (H, W, 4) uint8 with transparency on a white ground: (H, W, 3) uint8."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def picture_of(frame: Any) -> Tensor:
    """Turn an av.VideoFrame of any pixel format into an upright (H, W, 3) uint8 picture, transparency on white."""
    clear = frame.format.name == "pal8" or any(part.is_alpha for part in frame.format.components)
    colours = {}
    if frame.colorspace == 2 and frame.height >= 720 and not frame.format.is_rgb:
        from av.video.reformatter import Colorspace

        colours = {"src_colorspace": Colorspace.ITU709}  # what untagged high-definition video means
    picture = frame.reformat(format="rgba" if clear else "rgb24", interpolation=TO_RGB, **colours).to_ndarray()
    if clear:
        picture = on_white(picture)
    quarter_turns = round(frame.rotation / 90) % 4  # phones film sideways and note the turn
    if quarter_turns:
        picture = np.rot90(picture, quarter_turns)
    return torch.from_numpy(np.ascontiguousarray(picture))


def to_yuv420(picture: np.ndarray) -> np.ndarray:
    """Turn a picture (H, W, 3) uint8, H and W even, into the planes (H * 3 / 2, W) uint8 of pixel format yuv420p.

    Colour samples lie on the even columns and between two rows, where H.264 has them. PyAV's converter puts them in the
    middle of four pixels instead, which shifts the colours by half a pixel (38 dB instead of 42).
    """
    height, width = picture.shape[:2]
    red, green, blue = np.moveaxis(picture, -1, 0).astype(np.float32) / 255
    y, cb, cr = (r * red + g * green + b * blue + o for (r, g, b), o in zip(RGB_TO_YCBCR, YCBCR_OFFSET, strict=True))
    flat = np.concatenate([y.ravel(), _halved(cb).ravel(), _halved(cr).ravel()])
    return np.rint(flat).astype(np.uint8).reshape(height * 3 // 2, width)


def _halved(colour: np.ndarray) -> np.ndarray:
    """(H, W) -> (H / 2, W / 2): three columns weighted 1 2 1 around each even one, then pairs of rows."""
    wide = np.pad(colour, [(0, 0), (1, 0)], mode="edge")
    narrow = (wide[:, :-1:2] + 2 * wide[:, 1::2] + wide[:, 2::2]) / 4
    return (narrow[0::2] + narrow[1::2]) / 2


def open_image(path: str) -> Any:
    """A PIL.Image.Image whose pixels are not read yet. Raises OSError and what else Pillow raises."""
    from PIL import Image

    return Image.open(path, formats=PILLOW_FORMATS)


def read_image(path: str) -> Tensor:
    """Read an image file as (H, W, 3) uint8: upright by its EXIF note, transparency on white. Raises OSError."""
    from PIL import ImageOps

    with open_image(path) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I") or upright.mode == "F":  # 16-bit grey: Pillow would clip instead of scaling
            values = np.asarray(upright, dtype=np.float64)
            top = 65535.0 if upright.mode != "F" else max(float(values.max()), 1.0)
            grey = np.clip(np.rint(values / top * 255), 0, 255).astype(np.uint8)
            return torch.from_numpy(np.repeat(grey[..., None], 3, axis=2))
        return torch.from_numpy(on_white(np.array(upright.convert("RGBA"))))
