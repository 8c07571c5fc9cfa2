"""Nothing is imported inside the sandbox, where no file can be opened, whatever a clip holds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz_decoder import KINDS
from tests.service.video.clips import clip_with_track, numbered_clip

# Prepares a process as the fork server does, and decodes the files that are named. Prints the modules that were
# imported meanwhile. An exception other than ``ClipError`` ends the program.
PROGRAM = """
import json, sys
from pathlib import Path
from service.errors import ClipError
from service.isolation import forkserver
from service.video.decoder import DecodeLimits, decode_clip

forkserver.import_pyav()
decoder = forkserver.Decoder(decode_clip, DecodeLimits(), 2**31, forkserver.WARM_UP_CLIP.read_bytes())
forkserver.warm_up(decoder)
before = set(sys.modules)
for line in sys.stdin:
    try:
        decode_clip(Path(line.rstrip("\\n")), DecodeLimits(timeout_s=240))
    except ClipError:
        pass
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def assert_imports_nothing(files: list[Path]) -> None:
    """Assert that decoding the files imports no module and raises nothing but ``ClipError``."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    ended = subprocess.run(command, input="\n".join(map(str, files)), capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == []


def test_decoding_a_clip_of_any_kind_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SVT_LOG", "0")
    clips = [kind.render(12) for kind in KINDS]
    clips += [clip_with_track("mov", "mov_text", b"\0\5Hello"), clip_with_track("mpegts", "klv", bytes(20))]
    clips += [clip[: len(clip) // 2] for clip in clips]
    clips += [b"", b"no clip", numbered_clip(12, container="nut"), numbered_clip(12, codec="utvideo", container="avi")]
    for number, clip in enumerate(clips):
        (tmp_path / str(number)).write_bytes(clip)

    assert_imports_nothing(sorted(tmp_path.iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["faults", pytest.param("nasty", marks=pytest.mark.ci)])
def test_decoding_a_clip_of_a_folder_imports_nothing(shared: Path, folder: str) -> None:
    files = [path for path in sorted((shared / folder).rglob("*.*")) if path.suffix not in {".json", ".md"}]
    if not files:
        pytest.skip(f"needs real clips in {shared / folder}")

    assert_imports_nothing(files)
