"""What every generation can be asked for, checked before any work."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from tasks.check import check_prompt, check_sampling, check_seed, check_speculative

Progress = Callable[[int, int], None]  # ids drawn so far, ids to draw in all


@dataclass(frozen=True, kw_only=True)
class Options:
    """None means the model's own setting. The same seed and inputs give the same frames and samples.

    guidance_scale: how far to push away from what would come without the prompt, or with `negative_prompt`; where there
    is no prompt, without the sound or the silent video that something is made for; 1 is off. Where there is nothing to
    leave out, `Request.of` refuses both.
    speculative: ids that each pass of the transformer checks, all but the last of them drafted, of which the right ones
    are kept; 0 is off.
    temperature, top_k, top_p: for all id ranges alike. sound: False leaves out the sound where it comes with a video.
    keep_known: give the pixels that the input has back as they were, at its own size (inpainting, outpainting).
    superres: enlarge the frames with the model's super-resolution head.
    """

    seed: int = 0
    sound: bool = True
    keep_known: bool = False
    superres: bool = False
    speculative: int = 0
    guidance_scale: float | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    negative_prompt: str | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_speculative(self.speculative)
        check_sampling(
            guidance_scale=self.guidance_scale, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p
        )
        if self.negative_prompt is not None:
            check_prompt(self.negative_prompt, "negative_prompt")


class Ticker:
    """Counts drawn ids and tells `progress`."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, n: int = 1) -> None:
        self.done += n
        if self.progress is not None:
            self.progress(self.done, self.total)

    def finish(self) -> None:
        """Fewer ids than planned were needed."""
        if self.done < self.total:
            self(self.total - self.done)


def derived_seed(seed: int, *path: str | int) -> int:
    """An independent seed for a part of a longer work; the work's own seed for an empty path."""
    if not path:
        return seed
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
