"""Which video a clip was cut from, by its name."""

from model_export.data.datasets import hmdb51, ucf101
from model_export.data.datasets.names import joined, whole_video, words


def group_of(label: str, stem: str, folder: str = "") -> str:
    """Name the group of a clip: the video that it was cut from, as far as its name says so.

    Case, separators, leading zeros and Unicode's forms do not count. Groups are, in this order,

    1. ``v_<class>_gNN`` of ``v_<Class>_gNN_cNN``, as in UCF-101 (see ``ucf101.group``),
    2. the film of ``<film>_<class>_<codes>``, as in HMDB-51, without part numbers (see ``hmdb51.group``),
    3. ``<video>`` of ``<video> part 2`` (``pt2``, ``CD1``, ``Teil 3``), the clip or its folder, in whichever class,
    4. the folder of a clip that is in a folder of its class's folder, since such folders hold the cuts of a video or
       the takes of a person,
    5. for any other name the clip alone: a number by itself (``squat_001``, ``squat (2)``) counts clips, not parts.

    Args:
        label: The clip's class.
        stem: The clip's file name without its suffix.
        folder: Folder of the file within the class's folder; empty if it is there itself.
    """
    text, inner = words(stem), words(folder)
    if group := ucf101.group(label, text) or hmdb51.group(label, text):
        return group
    if video := whole_video(text) or whole_video(inner):
        return joined(video)
    if folder:
        return f"{label}/{inner or folder}/"
    return f"{label}/{text or stem}"
