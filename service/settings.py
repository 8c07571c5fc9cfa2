"""The service's settings, read from ``LIMELIGHT_*`` environment variables."""

import ipaddress
import math
import re
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from service.cgroup import memory_limits, processors
from service.files import open_regular

DEFAULT_URL = "http://127.0.0.1:8000"
"""Address of a service with default settings."""

UNIX: Final = "unix"
"""What ``trusted_proxies`` calls the clients of a Unix socket, which have no address."""

MAX_CONNECTIONS = 1024
"""Default of ``max_connections`` where the limit of open files does not require less."""

# Files that the service has open besides connections and clips, and those of a clip that is being decoded.
RESERVED_FILES = 64
FILES_PER_DECODER = 8

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
"""Hosts that only this machine can reach."""

# The largest values of settings. Nobody needs larger ones, and libraries fail on much larger ones only when a request
# comes: FFmpeg counts pixels and frames with 32 bits, and a timer of an infinite time cannot be set.
DAY_S = 86_400
TEBIBYTE = 2**40
MOST_ENTRIES = 1000  # of a list that is searched for each request
MOST_KEY_LENGTH = 4096  # a request's head may have 32 KiB
MOST_KEYS_BYTES = 2**20  # of a file with keys
MOST_BATCH = 64  # no GPU gains from more, and the buffer of the frames takes 6 MB a clip

# Kubernetes sets LIMELIGHT_PORT to such a value in every pod beside a Service named `limelight`.
SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://.*", re.IGNORECASE | re.DOTALL)

COMPOSE_VARIABLES = frozenset(
    {
        "COMPOSE_FILE",
        "COMPOSE_PROFILES",
        "COMPOSE_PROJECT_NAME",
        "GATEWAY_ADDRESS",
        "GATEWAY_NAME",
        "GATEWAY_PORT",
        "GPU_ID",
        "GRAFANA_PASSWORD",
        "LIMELIGHT_MEMORY",
        "LIMELIGHT_REPLICAS",
        "LIMELIGHT_TAG",
        "TLS_DIRECTORY",
    }
)
"""Variables that ``docker compose`` reads from ``.env`` or its own environment, and the service never does."""


def check_key(key: SecretStr) -> SecretStr:
    """Return an API key.

    Raises:
        ValueError: HTTP headers cannot carry it, or it is empty or too long. The text does not contain it.
    """
    text = key.get_secret_value()
    if not text:
        raise ValueError("a key is empty; separate keys by single commas, or unset the variable to require no key")
    if not all("!" <= letter <= "~" for letter in text):
        raise ValueError("each key must consist of visible ASCII characters, without spaces")
    if len(text) > MOST_KEY_LENGTH:
        raise ValueError(f"each key must have at most {MOST_KEY_LENGTH} characters")
    return key


def _read_keys(path: str | Path) -> tuple[SecretStr, ...]:
    """Return the API keys in a file: one a line, or several with commas between them. Blank lines do not matter.

    Raises:
        ValueError: The file cannot be read, or one of its keys cannot be used. The text contains neither a key nor the
            path, in whose place somebody may have written a key.
    """
    try:
        with open_regular(Path(path)) as file:
            content = file.read(MOST_KEYS_BYTES + 1)
    except OSError as error:
        why = error.strerror or error
        raise ValueError(f"the file cannot be read ({why}); check the path and the file's permissions") from None
    if len(content) > MOST_KEYS_BYTES:
        raise ValueError(f"the file has more than {MOST_KEYS_BYTES} bytes; it must hold nothing but keys")
    # Some editors begin a file with a byte order mark.
    lines = [*filter(None, map(str.strip, content.decode("utf-8-sig", errors="replace").split("\n")))]
    if any(line.startswith("#") for line in lines):
        raise ValueError("a line of the file begins with #; remove comments, and replace a key that begins so")
    keys = [check_key(SecretStr(key)) for line in lines for key in _split_at_commas(line)]
    if not keys:
        raise ValueError("the file holds no key; write one a line, or unset the variable to require no key")
    if len(keys) > MOST_ENTRIES:
        raise ValueError(f"the file holds more than {MOST_ENTRIES} keys; remove those that nobody uses")
    return tuple(keys)


def _split_at_commas(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _check_batch_size(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    try:
        return check(value)
    except ValidationError:
        raise ValueError(f"each size must be a whole number from 1 to {MOST_BATCH}") from None


def _clean_root_path(path: str) -> str:
    """Return a path prefix with a leading and without a trailing slash; "" if there is none."""
    if not re.fullmatch(r"[\w./~-]*", path, re.ASCII):
        raise ValueError("the prefix must be a path such as /limelight")
    return "/" + path.strip("/") if path.strip("/") else ""


def _check_origin(origin: str) -> str:
    if origin != "*" and not re.fullmatch(r"https?://[^\s/?#@]+", origin):
        raise ValueError("each origin must be * or a scheme and host such as https://app.example, without a path")
    origin = origin.lower()  # as browsers send it: in lower case, without the scheme's own port
    return origin.removesuffix(":443" if origin.startswith("https:") else ":80")


def _check_host(host: str) -> str:
    if host != "*" and not re.fullmatch(r"[\w.-]+|\[[\da-f:.]+\]", host, re.ASCII | re.IGNORECASE):
        raise ValueError("each host must be * or a name such as limelight.example, without scheme, port and path")
    return host


def _check_proxy(proxy: str) -> str:
    if proxy.lower() == UNIX:
        return UNIX
    if proxy != "*":
        ipaddress.ip_network(proxy)
    return proxy


def connections_allowed_by_files(decode_workers: int) -> int:
    """Return the number of connections for which the limit of open files is enough.

    A connection takes a file descriptor, and so does the clip that arrives on it. The last third is for connections
    that are being accepted or refused.

    Args:
        decode_workers: Number of clips that are decoded at a time.
    """
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)  # the server raises its limit to the hard limit
    if files == resource.RLIM_INFINITY:
        return sys.maxsize
    return max(1, (files - RESERVED_FILES - FILES_PER_DECODER * decode_workers) // 3)


def _default_upload_memory(settings: dict[str, Any]) -> int:
    """An eighth of the memory limit, if there is one, but no more than 1 GiB and no less than one body."""
    most = min([2**30, *(limit.limit_bytes // 8 for limit in memory_limits())])
    return max(most, int(settings["max_body_bytes"]))


class Settings(BaseSettings):
    """Every setting, given as ``LIMELIGHT_<NAME>`` in the environment or as a keyword, which takes precedence.

    An empty value counts as not set, except for ``api_keys`` and ``api_keys_file``: a service that was meant to require
    keys must not start without one. The file is read once, and its keys are in ``api_keys``.

    Raises:
        pydantic.ValidationError: A value is not valid. The error names the setting.
    """

    model_config = SettingsConfigDict(
        env_prefix="LIMELIGHT_", frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )

    bundle: Path = Field(Path("bundle"), description="Folder written by `limelight-model export`.")
    host: str = Field(
        "127.0.0.1",
        description="Address or name to listen on; `0.0.0.0` for every IPv4 address, `::` for every address.",
    )
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    unix_socket: Path | None = Field(None, description="Unix socket to listen on instead of host and port.")
    root_path: Annotated[str, AfterValidator(_clean_root_path)] = Field(
        "",
        description="Path prefix under which an ingress serves the service, such as `/limelight`. The ingress may "
        "remove the prefix or keep it.",
    )
    trusted_proxies: Annotated[
        tuple[Annotated[str, AfterValidator(_check_proxy)], ...], NoDecode, BeforeValidator(_split_at_commas)
    ] = Field(
        (),
        max_length=MOST_ENTRIES,
        description="Comma-separated addresses and networks of proxies whose headers `X-Forwarded-For` and "
        "`traceparent` are trusted; `unix` stands for the clients of the Unix socket, `*` for everybody.",
    )
    cors_origins: Annotated[
        tuple[Annotated[str, AfterValidator(_check_origin)], ...], NoDecode, BeforeValidator(_split_at_commas)
    ] = Field(
        (),
        max_length=MOST_ENTRIES,
        description="Comma-separated origins of web applications that may call the service from a browser, such as "
        "`https://app.example`; `*` for every origin.",
    )
    allowed_hosts: Annotated[
        tuple[Annotated[str, AfterValidator(_check_host)], ...], NoDecode, BeforeValidator(_split_at_commas)
    ] = Field(
        (),
        max_length=MOST_ENTRIES,
        description="Comma-separated names besides `localhost` and loopback addresses by which clients call a service "
        "that listens on loopback and requires no key. Other names are refused, because a page in a browser could use "
        "one of its own to read answers (DNS rebinding); `*` allows every name.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="`debug`, `info`, `warning` or `error`. Each line of the log is a JSON object."
    )

    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="`auto` uses CUDA if it works. `cuda` fails instead of falling back to the CPU."
    )
    precision: Literal["auto", "fp32", "fp16", "int8"] = Field(
        "auto",
        description="`auto` is fp16 on CUDA, int8 on CPUs with VNNI if it is known to agree with Keras on 98 % of "
        "the clips or more, else fp32. Set another one to compare.",
    )
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1, le=MOST_BATCH), WrapValidator(_check_batch_size)], ...] | None,
        NoDecode,
        BeforeValidator(_split_at_commas),
    ] = Field(
        None,
        description=f"Batch sizes that the engine runs, each from 1 to {MOST_BATCH}, such as `1,2,4`. Default: 1 on "
        "CPU, 1,2,4,8 on CUDA.",
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="ONNX Runtime's threads on CPU; 0 uses every core on which the service may run, or as many as the "
        "container's CPU quota allows.",
    )
    spinning: bool = Field(
        False, description="Let ONNX Runtime's idle threads spin, which costs the decoders processor time."
    )
    cuda_conv_search: Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"] = Field(
        "HEURISTIC",
        description="How cuDNN picks convolution algorithms. `EXHAUSTIVE` takes longer to warm up and may run faster.",
    )
    cuda_prefer_nhwc: bool = Field(True, description="Use the tensor layout that tensor cores prefer.")
    cuda_graphs: bool = Field(
        False, description="Record each batch size as one CUDA graph, which saves the time of kernel launches."
    )
    gpu_mem_limit_bytes: int | None = Field(
        None,
        ge=1,
        le=TEBIBYTE,
        description="Limit of ONNX Runtime's memory arena on the GPU; set it if others share the GPU.",
    )

    max_body_bytes: int = Field(
        64 * 2**20, ge=1, le=TEBIBYTE, description="Largest request body; larger ones are answered 413."
    )
    upload_timeout_s: float = Field(
        10.0,
        ge=0.01,
        le=DAY_S,
        description="Longest time that a client may send nothing during an upload; then 408. Also the longest time for "
        "the head of a request; then the connection is closed.",
    )
    upload_memory_bytes: int = Field(
        default_factory=_default_upload_memory,
        ge=1,
        le=TEBIBYTE,
        description="Memory for the bodies of all requests together, each from its first byte to its answer. If it is "
        "used up, the largest upload in progress is answered 429. Default: an eighth of the container's memory limit, "
        "at most 1 GiB. Never less than `LIMELIGHT_MAX_BODY_BYTES`.",
    )
    max_duration_s: float = Field(600.0, ge=0.01, le=DAY_S, description="Longest clip.")
    max_pixels: int = Field(9_500_000, ge=64, le=2**30, description="Largest frame, as coded width × height.")
    max_frames: int = Field(20_000, ge=1, le=10_000_000, description="Largest number of frames in a clip.")
    decode_timeout_s: float = Field(
        20.0, ge=0.001, le=DAY_S, description="Longest processor time that decoding one clip may take."
    )
    decode_memory_bytes: int = Field(
        2 * 2**30, ge=2**26, le=TEBIBYTE, description="Memory that decoding one clip may use."
    )
    decode_workers: int = Field(
        default_factory=lambda: math.ceil(processors()),
        ge=1,
        le=10_000,
        description="Clips decoded at a time. Default: one per core, or as many as the container's CPU quota allows.",
    )
    require_sandbox: bool = Field(
        False, description="Refuse to start if the kernel lacks a layer of the decoders' sandbox."
    )

    max_connections: int = Field(
        default_factory=lambda settings: min(MAX_CONNECTIONS, connections_allowed_by_files(settings["decode_workers"])),
        ge=1,
        le=2**20,
        description="Open connections. A further one takes the place of one whose client does not read, of an idle one "
        "or of the longest upload; if there is none, it is answered 503. Default: 1024, or fewer if the limit of open "
        "files requires it.",
    )
    keep_alive_s: float = Field(
        75.0,
        ge=0.01,
        le=DAY_S,
        description="Time that a connection stays open after an answer. Must be longer than the idle timeout of the "
        "load balancer in front.",
    )
    send_timeout_s: float = Field(
        10.0,
        ge=0.01,
        le=DAY_S,
        description="Time in which a client must read 4 KiB of its answer; else it is disconnected.",
    )
    request_timeout_s: float = Field(
        60.0, ge=0.1, le=DAY_S, description="Longest time from a request's arrival to its answer; then 504."
    )
    drain_delay_s: float = Field(
        5.0,
        ge=0,
        le=DAY_S,
        description="Time between SIGTERM and closing the listening socket, for gateways to stop sending requests.",
    )
    max_queue: int = Field(
        16, ge=0, le=10_000, description="Clips that may wait while a batch runs; clips beyond it are answered 429."
    )

    ui: bool = Field(True, description="Serve the page at `/`. It holds no data and needs no key.")
    api_keys: Annotated[
        tuple[Annotated[SecretStr, AfterValidator(check_key)], ...],
        NoDecode,
        BeforeValidator(_split_at_commas),
    ] = Field(
        (),
        max_length=MOST_ENTRIES,
        description="Comma-separated API keys. If set, every request except for health, metrics and the page must "
        "carry one of them. List two while you change keys.",
    )
    api_keys_file: Path | None = Field(
        None,
        description="File with the API keys instead, one a line or separated by commas, such as a secret of Docker or "
        "Kubernetes. It is read at the start only.",
    )

    @property
    def authentication(self) -> str:
        """Who may send requests, in a few words: the number of API keys, or that there are none."""
        return str(len(self.api_keys)) if self.api_keys else "none: open to everybody"

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Strip texts, as a secret's file may end with a newline, leave out those that set nothing, and read keys.

        Choices may be in upper or lower case.
        """
        stripped = {name: value.strip() if isinstance(value, str) else value for name, value in values.items()}
        given = {name: _spelled(name, value) for name, value in stripped.items() if not _sets_nothing(name, value)}
        if (file := given.get("api_keys_file")) is not None:
            try:
                if "api_keys" in given:
                    raise ValueError("LIMELIGHT_API_KEYS is set, too; unset one of them")
                if file == "":
                    raise ValueError("it is empty; name the file, or unset the variable to require no key")
                given["api_keys"] = _read_keys(file)
            except ValueError as error:
                raise ValueError(f"LIMELIGHT_API_KEYS_FILE is not valid: {error}") from None
        return given


def _sets_nothing(name: str, value: Any) -> bool:
    if name == "port" and isinstance(value, str):
        return not value or SERVICE_ADDRESS.fullmatch(value) is not None
    return value == "" and name not in {"api_keys", "api_keys_file"}


def _spelled(name: str, value: Any) -> Any:
    """Return a choice as ``Settings`` spells it, whatever its case. Return any other value as it is."""
    choices = {choice.lower(): choice for choice in _choices_of(Settings.model_fields[name])}
    return choices.get(value.lower(), value) if isinstance(value, str) else value


def _choices_of(field: FieldInfo) -> list[str]:
    """Return the values that a setting may have, if it is a choice; otherwise none."""
    return [choice for choice in get_args(field.annotation) if isinstance(choice, str)]


def misplaced(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with each variable of Compose that is set for the service, and what to do about it.

    Args:
        environment: Variables and their values.
    """
    for name in sorted(COMPOSE_VARIABLES & environment.keys()):
        if not SERVICE_ADDRESS.fullmatch(environment[name]):  # of a Kubernetes Service named gateway
            yield (
                f"{name} is a variable of Compose and has no effect on the service",
                "write it into .env beside docker-compose.yml, not into limelight.env",
            )


def range_of(field: FieldInfo) -> str:
    """Return what a setting must be if it is a number, such as "a whole number from 1 to 64"; otherwise ""."""
    bounds = {name: getattr(bound, name) for bound in field.metadata for name in ("ge", "le") if hasattr(bound, name)}
    if bounds.keys() != {"ge", "le"}:
        return ""
    kind = "a number" if field.annotation is float else "a whole number"
    return f"{kind} from {bounds['ge']} to {bounds['le']}"


def reason_of(error: ValidationError) -> str:
    """Return which setting is not valid, and why, as a sentence."""
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # of ``_prepare``
        return message
    name = str(first["loc"][0])
    field = Settings.model_fields[name]
    choices = ["true", "false"] if field.annotation is bool else _choices_of(field)
    allowed = f"{', '.join(choices[:-1])} or {choices[-1]}" if choices else range_of(field)
    why = f"it must be {allowed}" if allowed else message
    return f"LIMELIGHT_{name.upper()} is not valid: {why}"
