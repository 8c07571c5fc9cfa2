"""Which proxies are trusted to name the client and the trace of a request."""

from typing import Any

import pytest
from opentelemetry.trace import format_span_id, format_trace_id, get_current_span

from service.http.proxies import MAX_HOPS, TrustedProxies

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
UNIX_SOCKET = ("/run/limelight.sock", None)


def scope_of(peer: str | None, *headers: tuple[str, str], server: tuple[str, int | None] = ("::", 8000)) -> Any:
    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    return {"type": "http", "client": peer and (peer, 1234), "server": server, "headers": encoded}


def client(trusted: tuple[str, ...], peer: str | None, *forwarded: str, server: Any = ("::", 8000)) -> str | None:
    headers = [("X-Forwarded-For", value) for value in forwarded]
    return TrustedProxies(trusted).client_of(scope_of(peer, *headers, server=server))


@pytest.mark.parametrize(
    ("trusted", "peer"),
    [
        ((), "10.0.0.1"),
        (("10.0.0.2",), "10.0.0.1"),
        (("10.0.1.0/24", "fd00::/8"), "10.0.0.1"),
        (("unix",), "10.0.0.1"),
        (("::/0",), "::ffff:10.0.0.1"),
    ],
)
def test_a_peer_that_is_not_trusted_is_the_client(trusted: tuple[str, ...], peer: str) -> None:
    assert client(trusted, peer, "192.0.2.1") == "10.0.0.1"


@pytest.mark.parametrize(
    ("trusted", "peer"),
    [
        (("10.0.0.1",), "10.0.0.1"),
        (("10.0.0.0/24",), "10.0.0.1"),
        (("10.0.0.1",), "::ffff:10.0.0.1"),
        (("fd00::/8",), "fd00::1"),
        (("fe80::/10",), "fe80::1%eth0"),
        (("127.0.0.1", "10.0.0.1"), "10.0.0.1"),
    ],
)
def test_a_trusted_peer_names_the_client(trusted: tuple[str, ...], peer: str) -> None:
    assert client(trusted, peer, "192.0.2.1") == "192.0.2.1"


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        (["198.51.100.9, 192.0.2.1"], "192.0.2.1"),  # what a client claims stands to the left of what is known
        (["192.0.2.1, 10.0.0.2,10.0.0.3"], "192.0.2.1"),
        (["198.51.100.9", "192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        (["192.0.2.1", "10.0.0.2"], "192.0.2.1"),
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (["192.0.2.1:555"], "192.0.2.1"),
        (["[2001:db8::1]:443"], "2001:db8::1"),
        (["[2001:db8::1]"], "2001:db8::1"),
        (["2001:DB8:0::1"], "2001:db8::1"),
        (["::ffff:192.0.2.1"], "192.0.2.1"),
        (["192.0.2.1, ::ffff:10.0.0.2"], "192.0.2.1"),
    ],
)
def test_the_header_is_read_from_the_right_past_trusted_proxies(forwarded: list[str], expected: str) -> None:
    assert client(("10.0.0.0/24",), "10.0.0.1", *forwarded) == expected


@pytest.mark.parametrize(
    "junk",
    [
        "",
        " ",
        "unknown",
        "_hidden",
        "example.com",
        "192.0.2.1:x",
        "192.0.2.256",
        "[::1",
        "::1]",
        "fe80::1%\n{}",
        "٣.1.1.1",
    ],
)
def test_what_is_no_address_ends_the_reading(junk: str) -> None:
    junk = junk.encode().decode("latin-1")

    assert client(("10.0.0.0/24",), "10.0.0.1", f"192.0.2.1, {junk}, 10.0.0.2") == "10.0.0.2"
    assert client(("10.0.0.0/24",), "10.0.0.1", junk) == "10.0.0.1"


def test_if_everybody_is_trusted_the_first_address_is_the_client() -> None:
    assert client(("*",), "198.51.100.7", "192.0.2.1, 203.0.113.5") == "192.0.2.1"


def test_a_long_header_is_read_only_in_part() -> None:
    forwarded = ",".join(["192.0.2.1", *["10.0.0.2"] * MAX_HOPS])

    assert client(("10.0.0.0/24",), "10.0.0.1", forwarded) == "10.0.0.2"


@pytest.mark.parametrize("trusted", [("unix",), ("*",)])
def test_clients_of_a_unix_socket_are_trusted_by_name(trusted: tuple[str, ...]) -> None:
    assert client(trusted, None, "192.0.2.1", server=UNIX_SOCKET) == "192.0.2.1"
    assert client(trusted, None, server=UNIX_SOCKET) == "unix"
    assert client((), None, "192.0.2.1", server=UNIX_SOCKET) == "unix"


def test_a_connection_that_is_lost_before_its_address_is_read_is_no_unix_socket() -> None:
    assert client(("unix",), None, "192.0.2.1") is None


def parent(trusted: tuple[str, ...], *traceparent: str) -> tuple[str, str, bool] | None:
    headers = [("traceparent", value) for value in traceparent]
    found = get_current_span(TrustedProxies(trusted).parent_of(scope_of("10.0.0.1", *headers))).get_span_context()
    if not found.is_valid:
        return None
    return format_trace_id(found.trace_id), format_span_id(found.span_id), found.trace_flags.sampled


class TestTraceparent:
    @pytest.mark.parametrize(
        ("value", "sampled"),
        [
            (f"00-{TRACE}-{SPAN}-01", True),
            (f"00-{TRACE}-{SPAN}-00", False),
            (f"00-{TRACE}-{SPAN}-03", True),
            (f"cc-{TRACE}-{SPAN}-01", True),
            (f"cc-{TRACE}-{SPAN}-01-what-comes", True),
        ],
    )
    def test_a_trusted_peers_is_the_parent(self, value: str, sampled: bool) -> None:
        assert parent(("10.0.0.1",), value) == (TRACE, SPAN, sampled)
        assert parent(("10.0.0.2",), value) is None

    @pytest.mark.parametrize(
        "values",
        [
            [],
            [""],
            [f"ff-{TRACE}-{SPAN}-01"],
            [f"00-{'0' * 32}-{SPAN}-01"],
            [f"00-{TRACE}-{'0' * 16}-01"],
            [f"00-{TRACE}-{SPAN}-01-more"],
            [f"00-{TRACE.upper()}-{SPAN}-01"],
            [f"00-{TRACE[1:]}-{SPAN}-01"],
            [f"00-{TRACE}-{SPAN}"],
            [f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01"],
            ["x" * 10_000],
        ],
    )
    def test_one_that_w3c_trace_context_forbids_is_ignored(self, values: list[str]) -> None:
        assert parent(("*",), *values) is None
