"""Measuring what a model makes: detectors that read clips, tokenizer metrics, and the playground suite.

Names are loaded when first used, so that the command answers `--help` without loading torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.evaluate.detectors import Seen, look
    from train.evaluate.onsets import find_onsets, match
    from train.evaluate.report import Report, Row
    from train.evaluate.suite import playground_suite
    from train.evaluate.tokenizer_metrics import CodeUse, psnr, ssim

_HOME = {
    "detectors": ("Seen", "look"),
    "onsets": ("find_onsets", "match"),
    "report": ("Report", "Row"),
    "suite": ("playground_suite",),
    "tokenizer_metrics": ("CodeUse", "psnr", "ssim"),
}
_MODULE = {name: f"train.evaluate.{module}" for module, names in _HOME.items() for name in names}

__all__ = ["CodeUse", "Report", "Row", "Seen", "find_onsets", "look", "match", "playground_suite", "psnr", "ssim"]


def __getattr__(name: str) -> object:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE[name]), name)
