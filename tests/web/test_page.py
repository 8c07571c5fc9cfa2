"""The page in a real browser, served by the real server: what users see of answers and problems."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect

from model_export.rendering.figure import render_clip
from service.http.problems import KINDS
from tests.e2e.process import Server
from tests.e2e.raw_client import stopped_decoder
from tests.processes import until
from tests.tiny_bundle import LABELS, write_tiny_bundle
from tests.web.browser import PATIENCE_MS, Visitor, hottest, wandering_light

Start = Callable[..., Server]
Visit = Callable[..., Visitor]

LIGHT_FIRST, LIGHT_LAST = (1, 5), (5, 1)  # where `wandering_light` is


@pytest.fixture(scope="module")
def light() -> bytes:
    return wandering_light()


class TestAnswer:
    def test_a_dropped_clip_shows_the_five_most_likely_actions_as_bars(
        self, server: Server, visit: Visit, light: bytes
    ) -> None:
        visitor = visit(server)
        best = visitor.ask(light)["predictions"][:5]

        bars = visitor.page.locator("#bars li:visible")
        expect(bars).to_have_count(5)
        shown = bars.locator(".value").all_text_contents()
        widths = bars.locator("i").evaluate_all("bars => bars.map((bar) => bar.style.width)")
        assert [bar.split()[-2] for bar in shown] == [
            f"{100 * found['probability']:.1f}" if found["probability"] >= 0.001 else "0.1" for found in best
        ]
        assert [float(width.removesuffix("%")) for width in widths] == pytest.approx(
            [100 * found["probability"] for found in best], rel=1e-3
        )
        assert visitor.logged_errors == []

    def test_a_button_shows_all_classes(self, server: Server, visit: Visit, clip: bytes) -> None:
        visitor = visit(server)
        visitor.ask(clip)
        visitor.page.get_by_role("button", name="Show all 6").click()

        labels = visitor.page.locator("#bars .label:visible").all_text_contents()
        assert sorted(label.replace(" ", "") for label in labels) == sorted(LABELS)

    @pytest.mark.parametrize(
        "light",
        [{}, {"counter_clockwise": 90}, {"start": 25}, {"start": 25, "container": "matroska"}],
        ids=["upright", "turned", "late", "late-matroska"],
    )
    def test_the_overlay_is_brightest_where_the_answers_map_and_the_clip_are(
        self, server: Server, visit: Visit, light: dict[str, Any]
    ) -> None:
        visitor = visit(server)
        answer = visitor.ask(wandering_light(**light))

        places = []
        for k in (3, 12, 27, 39):
            visitor.seek(k)
            places.append(hottest(visitor.cells("#overlay")))
            assert places[-1] == hottest(answer["attention"]["maps"][k])
            assert places[-1] == hottest(visitor.cells("#video"))
        assert places[0] == places[1] != places[2] == places[3]

    @pytest.mark.parametrize("callback", ["undefined", "() => 0"], ids=["older browser", "background tab"])
    def test_video_and_overlay_stay_in_step_without_frame_callbacks(
        self, server: Server, visit: Visit, callback: str
    ) -> None:
        visitor = visit(server)
        page = visitor.page
        page.add_init_script(f"HTMLVideoElement.prototype.requestVideoFrameCallback = {callback}")
        page.clock.install()
        visitor.arrive()
        visitor.drop(wandering_light(start=25))
        visitor.await_script("document.getElementById('video').readyState >= 2")
        page.clock.fast_forward(PATIENCE_MS)  # the page stops waiting for a callback
        visitor.await_state("verdict")

        for k, place in ((3, LIGHT_FIRST), (35, LIGHT_LAST)):
            visitor.seek(k)
            assert hottest(visitor.cells("#overlay")) == hottest(visitor.cells("#video")) == place

    def test_each_frame_of_the_strip_is_brightest_where_its_map_is(
        self, server: Server, visit: Visit, light: bytes
    ) -> None:
        visitor = visit(server)
        visitor.ask(light)
        frames = visitor.page.locator("#strip canvas")

        expect(frames).to_have_count(40)
        assert hottest(visitor.cells("#strip button:nth-child(4) canvas")) == LIGHT_FIRST
        assert hottest(visitor.cells("#strip button:nth-child(36) canvas")) == LIGHT_LAST

    def test_clicking_a_frame_of_the_strip_seeks_the_video(self, server: Server, visit: Visit, light: bytes) -> None:
        visitor = visit(server)
        answer = visitor.ask(light)
        visitor.seek(30)

        time = visitor.page.locator("#video").evaluate("video => video.currentTime")
        assert time == pytest.approx(answer["frames"][30]["time_s"], abs=0.001)
        expect(visitor.page.locator("#strip [aria-current]")).to_have_accessible_name("Frame 31 of 40, at 1.52 seconds")

    def test_a_clicked_frame_shows_its_own_map_even_if_its_picture_was_sampled_often(
        self, server: Server, visit: Visit
    ) -> None:
        visitor = visit(server)
        visitor.ask(render_clip(frames=5, fps=2, width=160, height=120).data)

        for k in (0, 6, 7, 39):
            visitor.seek(k)

    @pytest.mark.parametrize("fps", [25, 2])  # at 2, a picture lasts for eight sampled frames
    def test_strip_and_overlay_follow_a_playing_video(self, server: Server, visit: Visit, fps: int) -> None:
        visitor = visit(server, reduced_motion="no-preference")
        answer = visitor.ask(render_clip(frames=2 * fps + 1, fps=fps, width=160, height=120).data)
        page = visitor.page
        visitor.await_script("document.getElementById('overlay').dataset.frame > 5")
        page.get_by_role("button", name="Pause").click()
        visitor.await_script("!document.getElementById('video').seeking")

        def in_step() -> bool:
            time = page.locator("#video").evaluate("video => video.currentTime")
            nearest = min(range(40), key=lambda k: abs(answer["frames"][k]["time_s"] - time))
            current = page.locator("#strip button").evaluate_all("all => all.findIndex(one => one.ariaCurrent)")
            return {current, int(page.locator("#overlay").get_attribute("data-frame") or -1)} == {nearest}

        until(in_step)

    def test_the_video_does_not_start_by_itself_if_reduced_motion_is_preferred(
        self, server: Server, visit: Visit, clip: bytes
    ) -> None:
        visitor = visit(server, reduced_motion="reduce")
        visitor.ask(clip)

        assert visitor.page.locator("#video").evaluate("video => video.paused")

    def test_the_attention_can_be_faded_recoloured_and_hidden(self, server: Server, visit: Visit, light: bytes) -> None:
        visitor = visit(server)
        visitor.ask(light)
        page, seen = visitor.page, [visitor.cells("#overlay").max()]
        page.get_by_role("combobox", name="Colours").select_option("viridis")
        seen.append(visitor.cells("#overlay").max())
        page.get_by_label("Opacity").fill("30")
        seen.append(visitor.cells("#overlay").max())
        page.get_by_label("Attention", exact=True).uncheck()
        seen.append(visitor.cells("#overlay").max())

        assert len(set(seen)) == 4
        assert seen[1] > seen[2] > seen[3] == 0

    def test_a_clip_that_the_browser_cannot_play_is_shown_as_its_sampled_frames(
        self, server: Server, visit: Visit
    ) -> None:
        visitor = visit(server)
        answer = visitor.ask(wandering_light("mpeg4", "avi"), "clip.avi", "video/x-msvideo")

        expect(visitor.page.get_by_text("Your browser cannot play this clip (mpeg4 in avi)")).to_be_visible()
        expect(visitor.page.locator("#video")).to_be_hidden()
        for k, place in ((5, LIGHT_FIRST), (35, LIGHT_LAST)):
            visitor.seek(k)
            assert hottest(visitor.cells("#frame")) == hottest(visitor.cells("#overlay")) == place
            assert place == hottest(answer["attention"]["maps"][k])
        visitor.page.get_by_role("button", name="Play").click()
        visitor.page.wait_for_selector("#overlay:not([data-frame='35'])")  # where it stood

    def test_the_sampled_frames_of_a_rotated_clip_are_shown_upright(self, server: Server, visit: Visit) -> None:
        visitor = visit(server)
        visitor.ask(wandering_light("mpeg4", "mov", counter_clockwise=90), "clip.mov", "video/quicktime")

        expect(visitor.page.locator("#video")).to_be_hidden()
        thumbnail = visitor.page.locator("#strip canvas").first
        width, height = thumbnail.evaluate("canvas => [canvas.width, canvas.height]")
        assert height / width == pytest.approx(420 / 280, rel=0.02)

    def test_for_a_network_without_attention_the_page_says_so_and_shows_no_maps(
        self, start: Start, visit: Visit, tmp_path: Path, clip: bytes
    ) -> None:
        visitor = visit(start(write_tiny_bundle(tmp_path / "base", variant="base")))
        visitor.ask(clip)

        expect(visitor.page.get_by_text("This network has no attention maps")).to_be_visible()
        expect(visitor.page.locator("#bars li:visible")).to_have_count(5)
        expect(visitor.page.locator("#strip button")).to_have_count(40)
        for absent in ("#overlay", "#attention-options", "#plot"):
            expect(visitor.page.locator(absent)).to_be_hidden()

    def test_the_details_show_the_answers_facts_and_stages(self, server: Server, visit: Visit, clip: bytes) -> None:
        visitor = visit(server)
        answer = visitor.ask(clip)

        facts = visitor.page.locator("#facts").inner_text()
        for fact in ("h264 in mp4, 160 × 120", "2.00 s, 50 frames", "tiny 1", answer["model"]["precision"], "CPU"):
            assert fact in facts
        stages = visitor.page.locator("#waterfall li > span:first-child").all_text_contents()
        assert stages == [
            "Receiving", "Waiting for a decoder", "Decoding", "Encoding the frames", "Waiting for the network",
            "Recognising", "Total",
        ]  # fmt: skip

    def test_the_answer_can_be_exported_as_json_picture_and_curl_command(
        self, server: Server, visit: Visit, clip: bytes
    ) -> None:
        visitor = visit(server)
        answer = visitor.ask(clip, "my clip.mp4")
        page = visitor.page
        with page.expect_download() as kept:
            page.get_by_role("button", name="Download JSON").click()
        with page.expect_download() as drawn:
            page.get_by_role("button", name="Download picture").click()

        assert kept.value.suggested_filename == "my clip.json"
        assert json.loads(kept.value.path().read_bytes()) == answer
        with Image.open(io.BytesIO(drawn.value.path().read_bytes())) as picture:
            assert picture.format == "PNG"
            assert min(picture.size) > 500
        expect(page.locator("#curl")).to_have_text(f"""curl -F 'file=@"my clip.mp4"' '{server.url}/predict?top_k=5'""")


class TestChoosingAClip:
    def test_with_the_file_dialog(self, server: Server, visit: Visit, clip: bytes) -> None:
        visitor = visit(server)
        with visitor.page.expect_file_chooser() as chooser:
            visitor.page.get_by_role("button", name="Choose a video").click()
        chooser.value.set_files({"name": "mine.mp4", "mimeType": "video/mp4", "buffer": clip})

        visitor.await_state("verdict")
        expect(visitor.page.locator("#clip-name")).to_have_text("mine.mp4")

    def test_only_the_first_of_several_files_and_the_others_are_named(
        self, server: Server, visit: Visit, clip: bytes
    ) -> None:
        visitor = visit(server)
        transfer = visitor.page.evaluate_handle(
            """(data) => {
                const bytes = Uint8Array.from(data, (letter) => letter.charCodeAt(0));
                const transfer = new DataTransfer();
                for (const name of ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4"]) {
                    transfer.items.add(new File([bytes], name, {type: "video/mp4"}));
                }
                return transfer;
            }""",
            clip.decode("latin-1"),
        )
        visitor.page.dispatch_event("#main", "drop", {"dataTransfer": transfer})
        visitor.await_state("verdict")

        expect(visitor.page.locator("#clip-name")).to_have_text("a.mp4")
        left_out = visitor.page.locator("#left-out")
        expect(left_out).to_have_text("One clip at a time. Left out: b.mp4, c.mp4, d.mp4 and 1 more.")
        visitor.ask(clip)
        expect(left_out).to_be_hidden()

    def test_by_pasting_a_file(self, server: Server, visit: Visit) -> None:
        visitor = visit(server)
        visitor.page.evaluate(
            """() => {
                const clipboardData = new DataTransfer();
                clipboardData.items.add(new File(["no video"], "notes.txt"));
                document.dispatchEvent(new ClipboardEvent("paste", {clipboardData}));
            }"""
        )

        visitor.await_state("problem")
        expect(visitor.page.locator("#clip-name")).to_have_text("notes.txt")

    def test_the_sample_can_be_tried_and_explored_by_keyboard_alone(self, server: Server, visit: Visit) -> None:
        visitor = visit(server)
        page = visitor.page
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        expect(page.get_by_role("button", name="Try the sample")).to_be_focused()
        page.keyboard.press("Enter")
        visitor.await_state("verdict")

        expect(page.locator("#verdict-title")).to_be_focused()
        expect(page.get_by_role("status")).to_contain_text("Recognised: ")
        page.locator("#strip button").first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowDown")
        expect(page.locator("#strip button").nth(11)).to_be_focused()
        page.wait_for_selector("#overlay[data-frame='11']")
        page.keyboard.press("End")
        page.wait_for_selector("#overlay[data-frame='39']")


class TestProblem:
    def test_a_problem_is_shown_with_its_code_and_advice(self, server: Server, visit: Visit) -> None:
        visitor = visit(server)
        visitor.drop(b"Dear service, " * 100, "letter.mp4")
        visitor.await_state("problem")

        page = visitor.page
        expect(page.get_by_role("heading", name="This is not a supported video")).to_be_focused()
        expect(page.locator("#problem-detail")).not_to_be_empty()
        expect(page.locator("#problem-advice")).to_contain_text("save it again as MP4")
        expect(page.locator("#problem-facts")).to_contain_text("415 unsupported_media")
        expect(page.get_by_role("status")).to_contain_text("This is not a supported video")
        expect(page.locator("#retry")).to_be_hidden()

    def test_another_clip_can_be_sent_after_a_problem(self, server: Server, visit: Visit, clip: bytes) -> None:
        visitor = visit(server)
        visitor.drop(clip[:2000])
        visitor.await_state("problem")
        expect(visitor.page.get_by_role("heading", name="The clip is damaged")).to_be_visible()

        visitor.ask(clip)

    def test_every_problem_that_the_page_can_meet_has_advice(self, server: Server, visit: Visit) -> None:
        codes = [*KINDS, "bad_gateway", "gateway_timeout", "rate_limited"]
        advice = visit(server).page.evaluate(
            """async (codes) => {
                const {advice} = await import("/web/problems.js");
                return codes.map((code) => advice({code}));
            }""",
            codes,
        )

        unmet = {
            "malformed_multipart", "missing_file", "invalid_tensor", "not_found", "unknown_model", "method_not_allowed",
            "invalid_parameter", "bad_request", "host_not_allowed", "origin_not_allowed",
        }  # fmt: skip
        assert {
            code for code, words in zip(codes, advice, strict=True) if "Choose another clip, or send" in words
        } == unmet

    def test_an_overloaded_service_can_be_asked_again_after_the_retry_time(
        self, start: Start, visit: Visit, clip: bytes
    ) -> None:
        server = start(MAX_QUEUE="0", DECODE_WORKERS="1", DECODE_TIMEOUT_S="300")
        visitor = visit(server)
        with stopped_decoder(server):
            visitor.drop(clip)
            visitor.await_state("problem")
            expect(visitor.page.get_by_role("heading", name="The service is overloaded")).to_be_visible()
        until(lambda: server.metric("in_flight_requests") == 0)
        again = visitor.page.get_by_role("button", name="Try again", exact=True)
        expect(again).to_be_enabled()
        again.click()

        visitor.await_state("verdict")

    @pytest.mark.parametrize(
        ("status", "code", "retry_after", "seconds"),
        [
            (429, "overloaded", "3", 3),
            (503, "not_ready", "Thu, 01 Jan 1970 00:01:03 GMT", 3),
            (503, "draining", "99999999999", 300),
        ],
    )
    def test_the_retry_button_counts_the_retry_time_down(
        self, server: Server, visit: Visit, clip: bytes, status: int, code: str, retry_after: str, seconds: int
    ) -> None:
        visitor = visit(server)
        page = visitor.page
        problem = json.dumps({"title": KINDS[code].title, "detail": "wait", "code": code, "status": status})
        headers = {"Retry-After": retry_after, "Content-Type": "application/problem+json"}
        page.clock.install(time=0)
        page.clock.pause_at(60)
        page.route("**/predict?*", lambda route: route.fulfill(status=status, headers=headers, body=problem))
        visitor.drop(clip)
        visitor.await_state("problem")

        expect(page.get_by_role("button", name=f"Try again in {seconds} s")).to_be_disabled()
        page.clock.run_for(1000 * seconds - 500)
        expect(page.get_by_role("button", name="Try again in 1 s")).to_be_disabled()
        page.clock.run_for(1000)
        expect(page.get_by_role("button", name="Try again", exact=True)).to_be_enabled()

    @pytest.mark.parametrize(
        ("status", "media_type", "body", "told"),
        [
            (502, "text/html", "<html>\r\n<h1>502 Bad Gateway</h1><hr>nginx", "502 Bad Gateway: 502 Bad Gateway nginx"),
            (200, "text/html", "<p>Please log in", "200 OK: Please log in"),
            (503, "application/json", '{"code": 7, "detail": {"a": 1}}', "503 Service Unavailable: {"),
            (504, "text/plain", "", "504 Gateway Timeout."),
        ],
    )
    def test_the_answer_of_a_proxy_is_told(
        self, server: Server, visit: Visit, clip: bytes, status: int, media_type: str, body: str, told: str
    ) -> None:
        visitor = visit(server)
        headers = {"Content-Type": media_type, "Retry-After": "soon"}
        visitor.page.route("**/predict?*", lambda route: route.fulfill(status=status, headers=headers, body=body))
        visitor.drop(clip)
        visitor.await_state("problem")

        expect(visitor.page.get_by_role("heading", name="The answer cannot be read")).to_be_visible()
        expect(visitor.page.locator("#problem-detail")).to_contain_text(f"answered {told}")
        expect(visitor.page.get_by_role("button", name="Try again", exact=True)).to_be_enabled()

    def test_a_clip_that_is_too_large_is_reported(self, start: Start, visit: Visit) -> None:
        visitor = visit(start(MAX_BODY_BYTES="1000000"))
        visitor.drop(bytes(5_000_000))
        visitor.await_state("problem")

        expect(visitor.page.get_by_role("heading", name="The upload is too large")).to_be_visible()

    def test_an_unreachable_service_is_reported(self, start: Start, visit: Visit, clip: bytes) -> None:
        server = start()
        visitor = visit(server)
        expect(visitor.page.locator("#known")).to_be_visible()
        server.process.kill()
        server.process.wait()
        visitor.drop(clip)
        visitor.await_state("problem")

        expect(visitor.page.get_by_role("heading", name="The service cannot be reached")).to_be_visible()
        expect(visitor.page.locator("#service-state")).to_have_text("Not reachable")

    def test_the_head_says_when_a_service_that_was_ready_is_gone(self, start: Start, visit: Visit) -> None:
        server = start()
        visitor = visit(server)
        state = visitor.page.locator("#service-state")
        expect(state).to_have_attribute("data-ready", "true")
        server.process.kill()
        server.process.wait()

        expect(state).to_have_text("Not reachable")  # within ten seconds, without anybody doing anything


class TestApiKey:
    def test_a_key_is_asked_for_kept_in_the_tab_and_can_be_forgotten(
        self, start: Start, visit: Visit, clip: bytes
    ) -> None:
        visitor = visit(start(API_KEYS="spring-7f3a"))
        page = visitor.page
        visitor.drop(clip)
        visitor.await_state("problem")
        key = page.get_by_label("API key", exact=True)
        expect(key).to_be_focused()
        key.fill("winter-5e2b")
        page.keyboard.press("Enter")
        expect(page.get_by_text("This key is not valid.")).to_be_visible()
        key.fill("spring-7f3a")
        page.keyboard.press("Enter")
        visitor.await_state("verdict")

        assert page.evaluate("Object.values(sessionStorage)") == ["spring-7f3a"]
        assert page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        assert "spring-7f3a" not in page.content()
        expect(page.locator("#curl")).to_contain_text("$LIMELIGHT_API_KEY")
        page.get_by_role("button", name="Forget the API key").click()
        assert page.evaluate("sessionStorage.length") == 0


class TestCancel:
    def test_cancelling_while_the_service_works_frees_the_place(self, start: Start, visit: Visit, clip: bytes) -> None:
        server = start(DECODE_WORKERS="1", DECODE_TIMEOUT_S="300")
        visitor = visit(server)
        with stopped_decoder(server):
            visitor.drop(clip)
            until(lambda: server.metric("queue_depth", queue="decode") == 1)
            expect(visitor.page.get_by_role("heading", name="The service is working")).to_be_visible()
            visitor.page.get_by_role("button", name="Cancel").click()
            visitor.await_state("start")

            until(lambda: server.metric("request_seconds_count", status="499") == 1)
            assert server.metric("queue_depth") == 0
        assert server.metric("batch_size_sum") == 0

    def test_cancelling_during_the_upload_ends_the_request(self, server: Server, visit: Visit) -> None:
        before = server.metric("request_seconds_count", status="499")
        visitor = visit(server)
        slow = visitor.page.context.new_cdp_session(visitor.page)
        slow.send("Network.enable")
        slow.send(
            "Network.emulateNetworkConditions",
            {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 20_000},
        )
        visitor.drop(bytes(1_000_000))
        until(lambda: server.metric("in_flight_requests") == 1)
        expect(visitor.page.locator("#sent")).to_contain_text("of 1.0 MB")
        visitor.page.get_by_role("button", name="Cancel").click()

        until(lambda: server.metric("request_seconds_count", status="499") == before + 1)


class TestAccessibility:
    @pytest.mark.parametrize("colours", ["light", "dark"])
    def test_axe_finds_no_serious_violation(self, server: Server, visit: Visit, light: bytes, colours: str) -> None:
        visitor = visit(server, color_scheme=colours)
        expect(visitor.page.locator("#known")).to_be_visible()
        found = [*serious(visitor)]
        visitor.ask(light)
        visitor.page.locator("#all-classes").click()
        found += serious(visitor)
        visitor.page.route("**/predict?*", lambda route: None)
        visitor.drop(light)
        visitor.await_state("working")
        found += serious(visitor)
        visitor.page.unroute("**/predict?*")
        unauthorized = json.dumps({"title": "An API key is required", "detail": "none", "code": "unauthorized"})
        visitor.page.route("**/predict?*", lambda route: route.fulfill(status=401, body=unauthorized))
        visitor.drop(light)
        visitor.await_state("problem")
        found += serious(visitor)

        assert found == []

    @pytest.mark.parametrize("width", [320, 390, 768])
    def test_a_narrow_screen_need_not_scroll_sideways(
        self, server: Server, visit: Visit, light: bytes, width: int
    ) -> None:
        visitor = visit(server, viewport={"width": width, "height": 700}, has_touch=True)
        beyond = "document.scrollingElement.scrollWidth - innerWidth"
        assert visitor.page.evaluate(beyond) <= 0
        visitor.ask(light, "a_rather_long_name_of_a_clip_that_no_screen_is_wide_enough_for.mp4")

        assert visitor.page.evaluate(beyond) <= 0


class TestLoading:
    def test_only_the_style_sheet_blocks_the_first_paint(self, server: Server, visit: Visit) -> None:
        visitor = visit(server)
        expect(visitor.page.locator("#known")).to_be_visible()
        loaded = visitor.page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.toJSON())")

        blocking = [entry["name"] for entry in loaded if entry["renderBlockingStatus"] == "blocking"]
        assert blocking == [f"{server.url}/web/limelight.css"]  # besides the page itself


def serious(visitor: Visitor) -> list[str]:
    """Violations of accessibility rules that axe calls serious or critical."""
    violations = Axe().run(visitor.page).response["violations"]
    return [
        f"{finding['id']}: {node['target']} {node['failureSummary']}"
        for finding in violations
        if finding["impact"] in {"serious", "critical"}
        for node in finding["nodes"]
    ]
