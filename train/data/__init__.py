"""Training data: the playground and folders of media files behind one interface."""

from train.data.source import SPLITS, MediaBatch, MediaSpec, Source, open_source

__all__ = ["SPLITS", "MediaBatch", "MediaSpec", "Source", "open_source"]
