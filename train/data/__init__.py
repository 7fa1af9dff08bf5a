"""Training data: the playground, media files and mixtures of them behind one interface."""

from train.data.mixture import Mixture
from train.data.source import SPLITS, MediaBatch, MediaSpec, Source, open_source

__all__ = ["SPLITS", "MediaBatch", "MediaSpec", "Mixture", "Source", "open_source"]
