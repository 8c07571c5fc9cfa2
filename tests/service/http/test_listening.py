"""The sockets of the server. ``tests/e2e/test_addresses.py`` asks a server over them."""

import errno
import socket
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from service.errors import ListenError
from service.http.listening import Endpoint, Listeners


def listens(address: str) -> bool:
    """Return whether somebody listens at ``host:port``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.fixture
def two_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the name ``two`` resolve to both loopback addresses, and to one of them twice, as /etc/hosts may."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> list[Any]:
        names = ["::1", "127.0.0.1", "127.0.0.1"] if host == "two" else [host]
        return [found for name in names for found in resolve(name, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


class TestAddresses:
    @pytest.mark.parametrize("host", ["::", "0::0"])
    def test_the_unspecified_ipv6_address_includes_ipv4_on_the_same_port(self, ipv6: None, host: str) -> None:
        with closing(Listeners(Endpoint(host, 0))) as listeners:
            six, four = listeners.addresses

            assert four.startswith("0.0.0.0:")
            assert six == four.replace("0.0.0.0", "[::]")
            assert listens(six.replace("[::]", "[::1]"))
            assert listens(four.replace("0.0.0.0", "127.0.0.1"))

    def test_the_unspecified_ipv4_address_is_ipv4_only(self) -> None:
        with closing(Listeners(Endpoint("0.0.0.0", 0))) as listeners:
            (address,) = listeners.addresses

            assert address.startswith("0.0.0.0:")

    def test_a_name_is_listened_on_at_all_of_its_addresses_on_one_port(self, ipv6: None, two_addresses: None) -> None:
        with closing(Listeners(Endpoint("two", 0))) as listeners:
            six, four = listeners.addresses

            assert six == four.replace("127.0.0.1", "[::1]")
            assert listens(six)
            assert listens(four)

    @pytest.mark.parametrize("reason", [errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL])
    def test_without_ipv6_a_name_is_listened_on_at_its_ipv4_address(
        self, two_addresses: None, monkeypatch: pytest.MonkeyPatch, reason: int
    ) -> None:
        create_server = socket.create_server

        def without_ipv6(address: Any, *, family: int) -> socket.socket:
            if family == socket.AF_INET6:
                raise OSError(reason, "no IPv6")
            return create_server(address, family=family)

        monkeypatch.setattr(socket, "create_server", without_ipv6)
        with closing(Listeners(Endpoint("two", 0))) as listeners:
            (address,) = listeners.addresses
        with closing(Listeners(Endpoint("::", 0))) as listeners:
            (any_address,) = listeners.addresses

        assert address.startswith("127.0.0.1:")
        assert any_address.startswith("0.0.0.0:")

    def test_a_port_in_use_at_one_address_is_an_error_and_the_other_is_released(
        self, ipv6: None, two_addresses: None
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(ListenError, match=r"cannot listen on two:\d+ \(Address already in use.*--port"):
                Listeners(Endpoint("two", port))

            assert not listens(f"[::1]:{port}")

    def test_a_port_that_is_free_at_one_address_only_is_not_chosen(
        self, ipv6: None, two_addresses: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create_server = socket.create_server
        with create_server(("127.0.0.1", 0)) as other:
            taken = [other.getsockname()[1]]

            def unlucky(address: Any, *, family: int) -> socket.socket:
                if family == socket.AF_INET6 and taken:
                    return create_server(("::1", taken.pop(), 0, 0), family=family)
                return create_server(address, family=family)

            monkeypatch.setattr(socket, "create_server", unlucky)
            with closing(Listeners(Endpoint("two", 0))) as listeners:
                six, four = listeners.addresses

        assert taken == []
        assert six == four.replace("127.0.0.1", "[::1]")

    @pytest.mark.parametrize("host", ["no-such-host.invalid", "a..b", "x" * 300, "[::1]"])
    def test_a_host_that_does_not_exist_is_an_error_that_names_it(self, host: str) -> None:
        with pytest.raises(ListenError) as raised:
            Listeners(Endpoint(host, 8000))

        assert host in str(raised.value)
        assert "LIMELIGHT_HOST" in str(raised.value)


def test_the_kernel_keeps_little_of_answers_that_a_client_does_not_read() -> None:
    with closing(Listeners(Endpoint("127.0.0.1", 0))) as listeners:
        (listener,) = listeners.sockets
        with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
            accepted.setblocking(False)
            unread = 0
            with suppress(BlockingIOError):
                while unread < 10_000_000:
                    unread += accepted.send(bytes(100_000))

    assert unread < 1_500_000  # 3.9 MB with the kernel's own limit


class TestUnixSocket:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "limelight.sock"

    def test_any_user_may_connect_and_the_file_is_removed_at_the_end(self, path: Path) -> None:
        with closing(Listeners(Endpoint("", 0, path))) as listeners:
            assert listeners.addresses == [f"unix:{path}"]
            assert path.stat().st_mode & 0o777 == 0o666
            assert path.is_socket()

        assert not path.exists()

    def test_a_stale_socket_is_replaced(self, path: Path) -> None:
        socket.create_server(str(path), family=socket.AF_UNIX).close()
        assert path.is_socket()

        with closing(Listeners(Endpoint("", 0, path))), socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))

    def test_a_socket_on_which_a_server_listens_is_not_replaced(self, path: Path) -> None:
        with socket.create_server(str(path), family=socket.AF_UNIX, backlog=0) as other:
            with socket.socket(socket.AF_UNIX) as waiting:  # fills the backlog
                waiting.connect(str(path))
                with pytest.raises(ListenError, match=r"in use.*--unix-socket"):
                    Listeners(Endpoint("", 8000, path))
            other.accept()[0].close()

            assert path.is_socket()

    def test_a_file_that_is_not_a_socket_is_kept(self, path: Path) -> None:
        path.write_text("precious", encoding="utf-8")
        with pytest.raises(ListenError):
            Listeners(Endpoint("", 8000, path))

        assert path.read_text(encoding="utf-8") == "precious"

    def test_the_file_of_a_successor_is_kept(self, path: Path) -> None:
        with closing(Listeners(Endpoint("", 0, path))):
            path.unlink()
            successor = Listeners(Endpoint("", 0, path))
        with closing(successor):
            assert path.is_socket()

    @pytest.mark.parametrize("name", ["none/limelight.sock", "x" * 200])
    def test_an_impossible_path_is_an_error_that_names_it(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(ListenError, match=name):
            Listeners(Endpoint("", 0, tmp_path / name))
