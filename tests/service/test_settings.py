import resource
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
from pydantic import ValidationError

from service import settings as module
from service.cgroup import MemoryLimit
from service.settings import DEFAULT_URL, Settings, range_of, reason_of
from service.video.limits import DecodeLimits


def test_the_defaults_are_those_documented() -> None:
    settings = Settings()

    assert (settings.port, settings.bundle) == (8000, Path("bundle"))
    assert f"http://{settings.host}:{settings.port}" == DEFAULT_URL
    assert (settings.device, settings.precision) == ("auto", "auto")
    assert settings.max_body_bytes == 64 * 1024 * 1024
    assert (settings.max_duration_s, settings.max_pixels, settings.max_frames) == (600, 9_500_000, 20_000)
    assert (settings.decode_memory_bytes, settings.require_sandbox) == (2 * 1024**3, False)
    assert (settings.decode_timeout_s, settings.request_timeout_s, settings.max_queue) == (20, 60, 16)
    assert (settings.upload_timeout_s, settings.drain_delay_s) == (10, 5)


def test_decoding_without_settings_has_the_limits_of_the_service() -> None:
    settings = Settings()

    assert DecodeLimits() == DecodeLimits(
        settings.max_duration_s, settings.max_pixels, settings.max_frames, settings.decode_timeout_s
    )


def test_environment_variables_set_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMELIGHT_BATCH_SIZES", "1,2,4")
    monkeypatch.setenv("LIMELIGHT_DEVICE", "cpu")

    assert Settings().batch_sizes == (1, 2, 4)
    assert Settings().device == "cpu"


def test_keywords_take_precedence_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMELIGHT_PORT", "9000")

    assert Settings(port=9001).port == 9001


@pytest.mark.parametrize(
    ("name", "value"),
    [("BATCH_SIZES", "0"), ("DEVICE", "tpu"), ("PORT", "http"), ("PORT", "http://10.0.0.1:80"), ("MAX_QUEUE", "-1")],
)
def test_an_invalid_value_is_refused_by_the_name_of_its_setting(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"LIMELIGHT_{name}", value)

    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


NUMBERS = [
    name
    for name, field in Settings.model_fields.items()
    if {int, float} & {field.annotation, *get_args(field.annotation)}
]
SWITCHES = [name for name, field in Settings.model_fields.items() if field.annotation is bool]
CHOICES = [
    (name, choice)
    for name, field in Settings.model_fields.items()
    if get_origin(field.annotation) is Literal
    for choice in get_args(field.annotation)
]


class TestBounds:
    """A value that could only fail later, while clips are answered, is refused at the start."""

    @pytest.mark.parametrize("name", NUMBERS)
    def test_every_number_has_a_range(self, name: str) -> None:
        low, high = bounds(name)

        assert low < high
        assert f"from {low} to {high}" in range_of(Settings.model_fields[name])

    @pytest.mark.parametrize("name", NUMBERS)
    def test_the_ends_of_a_range_are_accepted_and_what_lies_beyond_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        low, high = bounds(name)
        for value in (low, high):
            monkeypatch.setenv(f"LIMELIGHT_{name.upper()}", str(value))
            assert getattr(Settings(), name) == value
        for beyond in (low - 1, high + 1):
            refused(monkeypatch, name, str(beyond))

    @pytest.mark.parametrize("name", NUMBERS)
    @pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999", "9" * 400, "many", "0x10"])
    def test_what_is_no_finite_number_is_refused(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
        refused(monkeypatch, name, value)

    @pytest.mark.parametrize("sizes", ["0", "65", "1,99999999999", "1,-1", "1,,2", "1;2", "nan", "1e0", "1,\udcff"])
    def test_batch_sizes_have_a_range(self, monkeypatch: pytest.MonkeyPatch, sizes: str) -> None:
        assert "each size must be a whole number from 1 to 64" in refused(monkeypatch, "batch_sizes", sizes)

    @pytest.mark.parametrize("name", SWITCHES)
    @pytest.mark.parametrize("value", ["maybe", "2", "10", "\udcff"])
    def test_a_switch_is_true_or_false(self, monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
        assert refused(monkeypatch, name, value).endswith(" it must be true or false")

    @pytest.mark.parametrize("name", SWITCHES)
    def test_a_switch_is_accepted_in_any_case(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        for value, read in [
            ("TRUE", True),
            ("Yes", True),
            (" oN ", True),
            ("False", False),
            ("NO", False),
            ("0", False),
        ]:
            monkeypatch.setenv(f"LIMELIGHT_{name.upper()}", value)
            assert getattr(Settings(), name) is read

    def test_the_smallest_and_the_largest_batch_size_are_accepted(self) -> None:
        assert Settings(batch_sizes="64,1").batch_sizes == (64, 1)

    @pytest.mark.parametrize(
        ("name", "entry"),
        [
            ("allowed_hosts", "a.example"),
            ("api_keys", "k"),
            ("cors_origins", "https://a.example"),
            ("trusted_proxies", "10.0.0.1"),
        ],
    )
    def test_lists_that_are_searched_for_each_request_are_limited(
        self, monkeypatch: pytest.MonkeyPatch, name: str, entry: str
    ) -> None:
        monkeypatch.setenv(f"LIMELIGHT_{name.upper()}", ",".join([entry] * 1000))
        assert len(getattr(Settings(), name)) == 1000
        refused(monkeypatch, name, ",".join([entry] * 1001))

    def test_a_key_that_no_head_of_a_request_can_carry_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert Settings(api_keys="k" * 4096).api_keys
        assert refused(monkeypatch, "api_keys", "k" * 4097).endswith(": each key must have at most 4096 characters")

    def test_the_choices_are_those_documented(self) -> None:
        assert [
            *(("log_level", level) for level in ("debug", "info", "warning", "error")),
            *(("device", device) for device in ("auto", "cuda", "cpu")),
            *(("precision", precision) for precision in ("auto", "fp32", "fp16", "int8")),
            *(("cuda_conv_search", search) for search in ("HEURISTIC", "EXHAUSTIVE", "DEFAULT")),
        ] == CHOICES

    @pytest.mark.parametrize(("name", "choice"), CHOICES)
    def test_a_choice_is_accepted_in_any_case_and_other_values_are_refused(
        self, monkeypatch: pytest.MonkeyPatch, name: str, choice: str
    ) -> None:
        for spelling in (choice, choice.upper(), choice.lower(), f" {choice.title()}\n"):
            monkeypatch.setenv(f"LIMELIGHT_{name.upper()}", spelling)
            assert getattr(Settings(), name) == choice
        *others, last = [allowed for setting, allowed in CHOICES if setting == name]
        assert refused(monkeypatch, name, f"{choice}x").endswith(f": it must be {', '.join(others)} or {last}")


def bounds(name: str) -> tuple[float, float]:
    """The ends of a setting's range."""
    field = Settings.model_fields[name]
    (low,) = (bound.ge for bound in field.metadata if hasattr(bound, "ge"))
    (high,) = (bound.le for bound in field.metadata if hasattr(bound, "le"))
    return low, high


def refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> str:
    """Check that a value is refused in a sentence that names the setting and its range, which is returned."""
    monkeypatch.setenv(f"LIMELIGHT_{name.upper()}", value)
    with pytest.raises(ValidationError) as error:
        Settings()
    sentence = reason_of(error.value)
    assert sentence.startswith(f"LIMELIGHT_{name.upper()} is not valid: ")
    assert range_of(Settings.model_fields[name]) in sentence
    assert "\n" not in sentence
    return sentence


def test_proxies_are_addresses_networks_and_the_words_for_all_and_for_the_unix_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxies = ("10.0.0.1", "10.0.1.0/24", "fd00::/8", "unix", "*")

    assert Settings(trusted_proxies=", ".join(proxies)).trusted_proxies == proxies
    assert Settings(trusted_proxies="Unix").trusted_proxies == ("unix",)
    for proxy in ("proxy.example", "10.0.0.1/24", "unix:", "10.0.0.1:80"):
        assert proxy in refused(monkeypatch, "trusted_proxies", proxy)


@pytest.mark.parametrize("blank", ["", " ", "\n"])
def test_empty_variables_count_as_not_set(monkeypatch: pytest.MonkeyPatch, blank: str) -> None:
    defaults = Settings()
    for name in Settings.model_fields.keys() - {"api_keys", "api_keys_file"}:
        monkeypatch.setenv(f"LIMELIGHT_{name.upper()}", blank)

    assert Settings() == defaults


@pytest.mark.parametrize("address", ["tcp://10.96.12.7:8000", "udp://10.96.12.7:53", "sctp://[fd00::7]:9", "TCP://x\n"])
def test_the_port_of_a_kubernetes_service_is_not_the_setting(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("LIMELIGHT_PORT", address)

    assert Settings().port == 8000
    assert Settings(port=9001).port == 9001


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("port", "9000\n", 9000),
        ("device", " cpu\n", "cpu"),
        ("ui", "false\n", False),
        ("bundle", "/bundles/limelight\n", Path("/bundles/limelight")),
        ("batch_sizes", " 1, 2\n", (1, 2)),
    ],
)
def test_blanks_around_a_value_do_not_matter(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, read: object
) -> None:
    monkeypatch.setenv(f"LIMELIGHT_{name.upper()}", value)

    assert getattr(Settings(), name) == read


@pytest.mark.parametrize(("usable", "workers"), [(0.5, 1), (1.0, 1), (1.5, 2), (8.0, 8)])
def test_as_many_clips_are_decoded_at_a_time_as_processors_may_be_kept_busy(
    monkeypatch: pytest.MonkeyPatch, usable: float, workers: int
) -> None:
    monkeypatch.setattr(module, "processors", lambda: usable)

    assert Settings().decode_workers == workers
    assert Settings(decode_workers=5).decode_workers == 5


@pytest.mark.parametrize(
    ("files", "workers", "connections"),
    [
        (resource.RLIM_INFINITY, 4, 1024),
        (2**20, 4, 1024),
        (64 + 8 * 4 + 3 * 1024, 4, 1024),
        (64 + 8 * 4 + 3 * 1024 - 1, 4, 1023),
        (64 + 8 * 4 + 3 * 1024, 5, 1021),
        (64, 4, 1),
    ],
)
def test_as_many_connections_are_open_as_the_limit_of_open_files_allows(
    monkeypatch: pytest.MonkeyPatch, files: int, workers: int, connections: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, files))

    assert Settings(decode_workers=workers).max_connections == connections


@pytest.mark.parametrize(
    ("limits", "expected"),
    [([], 2**30), ([2**33], 2**30), ([2**30], 2**27), ([2**30, 2**33], 2**27), ([2**26], 2**26)],
)
def test_request_bodies_may_take_an_eighth_of_the_memory_limit(
    monkeypatch: pytest.MonkeyPatch, limits: list[int], expected: int
) -> None:
    monkeypatch.setattr(module, "memory_limits", lambda: [MemoryLimit(Path("memory.max"), size, 0) for size in limits])

    assert Settings().upload_memory_bytes == expected
    assert Settings(upload_memory_bytes=5).upload_memory_bytes == 5
