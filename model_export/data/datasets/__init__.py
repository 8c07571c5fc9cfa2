"""Folders of labelled clips and the official splits of UCF-101 and HMDB-51."""

from model_export.data.datasets.clips import LabelledClip, class_names, clips_per_class
from model_export.data.datasets.folder import find_clips, find_left_out
from model_export.data.datasets.groups import group_of
from model_export.data.datasets.official import read_official_split
from model_export.data.datasets.split import Partition, Side, Split
from service.video.formats import SUFFIXES, VIDEO_SUFFIXES

__all__ = [
    "SUFFIXES",
    "VIDEO_SUFFIXES",
    "LabelledClip",
    "Partition",
    "Side",
    "Split",
    "class_names",
    "clips_per_class",
    "find_clips",
    "find_left_out",
    "group_of",
    "read_official_split",
]
