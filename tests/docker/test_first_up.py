"""The first ``docker compose up`` of a fresh clone exports the real network and serves it."""

from pathlib import Path

from tests.docker.stack import running


def test_a_real_clip_is_classified_after_the_first_up(engine: None, shared: Path, tmp_path: Path) -> None:
    clip = next((shared / "clips/ucf101/JumpingJack").glob("*.avi")).read_bytes()
    with running(tmp_path, "limelight-first") as stack, stack.client() as client:
        answer = client.post("/predict", content=clip)

        assert answer.status_code == 200
        assert answer.json()["predictions"][0]["label"] == "JumpingJack"
