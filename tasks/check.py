"""Checks of what a caller typed, made before anything heavy is loaded. Each raises InputError with the rule."""

from __future__ import annotations

import math
import re
from importlib.util import find_spec

from tasks.errors import InputError

MAX_PROMPT = 1000  # characters; the text tokenizer keeps the first 64 tokens
MAX_SECONDS = 24 * 3600.0
MAX_SEED = 2**63 - 1
MAX_CHECKED = 1024
MIN_SIDE, MAX_SIDE, MAX_PIXELS = 16, 1920, 1920 * 1080  # of a picture that the tokenizers shall work on
MAX_RESULT_SIDE, MAX_RESULT_PIXELS = 16_384, 7680 * 4320  # of a picture that is made: what H.264 holds, and 8K


def check_opencv() -> None:
    if find_spec("cv2") is None:
        raise InputError("optical flow needs OpenCV: pip install opencv-python-headless")


def check_prompt(prompt: object, name: str = "prompt") -> str:
    if not isinstance(prompt, str):
        raise InputError(f"{name} is {type(prompt).__name__}, expected text")
    if not prompt.strip():
        raise InputError(f"{name} is empty, expected a description such as 'a red ball bounces'")
    if len(prompt) > MAX_PROMPT:
        raise InputError(f"{name} has {len(prompt):,} characters, expected at most {MAX_PROMPT:,}")
    return prompt


def check_seconds(seconds: float) -> float:
    if not _is_number(seconds) or not 0 < seconds <= MAX_SECONDS:
        raise InputError(f"seconds={seconds}: expected more than 0 and at most {MAX_SECONDS:,.0f} (24 hours)")
    return float(seconds)


def check_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
        raise InputError(f"seed={seed}: expected a whole number from 0 to 2^63 - 1")
    return seed


def check_levels(levels: int, n_codebooks: int, name: str = "levels") -> int:
    if isinstance(levels, bool) or not isinstance(levels, int) or not 1 <= levels <= n_codebooks:
        raise InputError(f"{name} {levels}: this audio tokenizer has {n_codebooks}, expected 1 to {n_codebooks}")
    return levels


def check_size(size: tuple[int, int], name: str = "size") -> tuple[int, int]:
    """(H, W) in pixels."""
    height, width = size
    if not (min(size) >= MIN_SIDE and max(size) <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise InputError(f"{name} {height}x{width}: expected height and width of {MIN_SIDE} to {MAX_SIDE} pixels, "
                         "together at most 1080x1920")  # fmt: skip
    return size


def check_result(size: tuple[int, int], name: str) -> None:
    """(H, W) in pixels of a picture that is to be made; `name` is what it would be."""
    height, width = size
    if max(size) > MAX_RESULT_SIDE or height * width > MAX_RESULT_PIXELS:
        raise InputError(f"{name} would be {width:,} pixels wide and {height:,} high, expected at most "
                         f"{MAX_RESULT_SIDE:,} a side and as many in all as 7680x4320")  # fmt: skip


def parse_size(text: str, name: str = "size") -> tuple[int, int]:
    """(H, W) of "HxW", or of "N" for a square."""
    match = re.fullmatch(r"([0-9]{1,9})(?:x([0-9]{1,9}))?", text)
    if match is None:
        raise InputError(f"{name} {text!r}: expected HxW (height x width in pixels), N for a square, or source")
    return check_size((int(match[1]), int(match[2] or match[1])), name)


def check_sampling(
    *,
    guidance_scale: float | None = None,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
) -> None:
    """None means the model's own setting."""
    if guidance_scale is not None and not (_is_number(guidance_scale) and 0 <= guidance_scale <= 100):
        raise InputError(f"guidance_scale={guidance_scale}: expected 0 to 100, where 1 is no guidance")
    if temperature is not None and not (_is_number(temperature) and 0 <= temperature <= 100):
        raise InputError(f"temperature={temperature}: expected 0 (always the likeliest id) to 100")
    if top_k is not None and (isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 0):
        raise InputError(f"top_k={top_k}: expected a whole number, 0 for no limit")
    if top_p is not None and not (_is_number(top_p) and 0 < top_p <= 1):
        raise InputError(f"top_p={top_p}: expected more than 0 and at most 1, where 1 is no limit")


def check_speculative(speculative: int) -> int:
    if isinstance(speculative, bool) or not isinstance(speculative, int) or not 0 <= speculative <= MAX_CHECKED:
        raise InputError(f"speculative={speculative}: expected 0 (off) to {MAX_CHECKED} ids checked a pass")
    return speculative


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
