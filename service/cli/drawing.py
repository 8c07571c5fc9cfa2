"""Overlays of the answers that ``limelight predict`` and ``limelight demo`` print."""

from pathlib import Path

from service.cli.classifying import Answer
from service.cli.clips import ClipProblem
from service.cli.overlay import check_overlay_path, write_overlay
from service.cli.printing import Show, print_text
from service.cli.streams import visible
from service.errors import CommandError


def check_overlay(path: Path, clips: int) -> None:
    """Check that an overlay can be written, before a clip is classified.

    Raises:
        CommandError: There is more than one clip, or the path cannot be used.
    """
    if clips > 1:
        raise CommandError(f"--overlay {path} shows one clip; give one clip at a time")
    check_overlay_path(path)


def drawing(show: Show, path: Path, *, quiet: bool) -> Show:
    """Return what prints an answer and writes its overlay. If quiet, nothing is printed about the overlay."""

    def show_and_draw(name: str, result: Answer | ClipProblem) -> None:
        show(name, result)
        if not isinstance(result, ClipProblem):
            draw(path, result, quiet=quiet)

    return show_and_draw


def draw(path: Path, answer: Answer, *, quiet: bool = False) -> None:
    """Draw an answer's attention over its frames, captioned with the three most likely classes."""
    if answer.frames is None:
        raise ValueError("the answer was asked for without its frames")
    caption = "  ".join(f"{visible(label)} {probability:.1%}" for label, probability in answer.ranking[:3])
    try:
        write_overlay(path, answer.frames, answer.attention, times_s=answer.times_s, caption=caption)
    except OSError as error:
        raise CommandError(f"{path} cannot be written ({error.strerror}); choose another file") from error
    if not quiet:
        print_text(visible(f"Overlay written to {path}"))
