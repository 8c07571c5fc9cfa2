from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def _split_at_commas(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


def _split_keys(value: Any) -> Any:
    if isinstance(value, str):  # set and empty is as good as not set
        return [key.strip() for key in value.split(",")] if value.strip() else []
    return value


def _check_key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not text or not all("!" <= letter <= "~" for letter in text):
        raise ValueError("each key has to be of visible ASCII letters, without spaces")
    return key


class Settings(BaseSettings):
    """Everything that can be set, by `LIMELIGHT_<NAME>` in the environment or by keyword.

    Raises pydantic's `ValidationError`, which names the setting.
    """

    model_config = SettingsConfigDict(env_prefix="LIMELIGHT_", frozen=True, hide_input_in_errors=True)

    bundle: Path = Field(Path("bundle"), description="Folder that `limelight-model export` wrote.")
    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 in a container.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes any free one.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="`debug`, `info`, `warning` or `error`; the log is one JSON object a line."
    )

    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="Set `cuda` where the CPU must never be used in silence."
    )
    precision: Literal["auto", "fp32", "fp16", "int8"] = Field(
        "auto", description="Set only to compare; `auto` is fp16 on CUDA, on CPU int8 with VNNI and 98 % agreement."
    )
    batch_sizes: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None, NoDecode, BeforeValidator(_split_at_commas)
    ] = Field(None, description="Batches the engine may run, as 1,2,4; default 1 on CPU and 1,2,4,8 on CUDA.")
    threads: int = Field(0, ge=0, description="ONNX Runtime's threads on CPU; 0 takes every core.")
    spinning: bool = Field(False, description="ONNX Runtime's threads wait in a loop; takes time from the decoders.")
    cuda_conv_search: Literal["HEURISTIC", "EXHAUSTIVE", "DEFAULT"] = Field(
        "HEURISTIC", description="How cuDNN picks convolutions; EXHAUSTIVE warms up long and may run faster."
    )
    cuda_prefer_nhwc: bool = Field(True, description="Lay tensors out as tensor cores like them; false to compare.")
    cuda_graphs: bool = Field(False, description="Record each batch size as one CUDA graph, which saves launches.")
    gpu_mem_limit_bytes: int | None = Field(
        None, ge=1, description="ONNX Runtime's arena on the GPU; set it where others share the GPU."
    )

    max_body_bytes: int = Field(64 * 2**20, ge=1, description="Largest request body; more answers 413.")
    upload_timeout_s: float = Field(10.0, gt=0, description="Longest silence of a client in mid-request; then 408.")
    upload_memory_bytes: int = Field(
        2**30, ge=1, description="What may be arriving at a time, all uploads together; more answers 429."
    )
    max_duration_s: float = Field(600.0, gt=0, description="Longest clip.")
    max_pixels: int = Field(9_500_000, ge=1, description="Largest frame, width × height.")
    max_frames: int = Field(20_000, ge=1, description="Most frames in a clip.")
    decode_timeout_s: float = Field(20.0, gt=0, description="Longest time that one clip may take to decode.")
    decode_memory_bytes: int = Field(2 * 2**30, ge=2**26, description="Memory that decoding one clip may take.")
    decode_workers: int | None = Field(None, ge=1, description="Clips decoded at a time; default: one a core.")
    require_sandbox: bool = Field(False, description="Refuse to start where the kernel lacks a layer of the sandbox.")

    request_timeout_s: float = Field(60.0, gt=0, description="From a request's arrival to its answer; then 504.")
    drain_delay_s: float = Field(
        5.0, ge=0, description="From SIGTERM until no more connections are accepted, for gateways to look away."
    )
    max_queue: int = Field(16, ge=0, description="Clips that may wait while a batch is worked on; more answer 429.")

    ui: bool = Field(True, description="Serve the page for people at `/`; it holds no data and needs no key.")
    api_keys: Annotated[
        tuple[Annotated[SecretStr, AfterValidator(_check_key)], ...], NoDecode, BeforeValidator(_split_keys)
    ] = Field(
        (),
        description="Keys: each request but for health, metrics and the page bears one; several, to change them.",
    )
