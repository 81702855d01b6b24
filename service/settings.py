"""All settings of the service: one frozen model, filled from flags, then `FOCALSERVE_*` variables, then defaults."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, CliApp, CliPositionalArg, SettingsConfigDict, SettingsError

from models.card import describe_validation
from models.errors import InvalidInput
from models.image import ImageLimits

PREFIX = "FOCALSERVE_"
_MOST_PROCESSES = 4
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(ge=0.0, le=3600.0)]


class Settings(BaseSettings):
    """Serve ONNX bundles over HTTP. Every flag is also a FOCALSERVE_... environment variable."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        cli_prog_name="focalserve serve",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
    )

    models: CliPositionalArg[Path] = Field(
        Path("artifacts"),
        description="a bundle, or a folder of NAME/VERSION bundles; the newest of each name is served",
    )
    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8000, description="port to listen on; 0 takes a free one")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="cuda: never become ready without it; auto: CUDA where there is one, and say which"
    )
    default_model: str | None = Field(None, description="model that answers where a request names none")
    max_batch: Annotated[int, Field(ge=1, le=1024)] = Field(
        32, description="images in one run of the model at most; fewer where more were not faster when it was loaded"
    )
    max_wait_ms: Annotated[float, Field(ge=0.0, le=1000.0)] = Field(
        0.0, description="how long the first image of a batch waits for others; 0: only while the model is busy"
    )
    queue_size: Count = Field(256, description="images that may wait; more are answered 429")
    max_images: Count = Field(4096, description="images in one request")
    max_rows: Count = Field(100_000, description="rows of logits or probabilities in one /loss request")
    max_body_bytes: Count = Field(128 * 1024 * 1024, description="bytes of one request body, after decompression")
    max_json_bytes: Count = Field(
        128 * 1024 * 1024, description="bytes of JSON in one request; parsed it takes many times as much memory"
    )
    max_pixels: Count = Field(25_000_000, description="pixels of one image, before it is resized")
    max_side: Count = Field(8192, description="longest side of one image, pixels")
    body_timeout: Seconds = Field(15.0, description="seconds a request body may take to arrive")
    keep_alive_seconds: Annotated[int, Field(ge=1, le=3600)] = Field(
        75, description="seconds a connection may idle; a client or proxy that keeps its own longer meets closed ones"
    )
    drain_seconds: Seconds = Field(3.0, description="on SIGTERM: seconds of answering on while /readyz says 503")
    grace_seconds: Seconds = Field(25.0, description="seconds that requests in flight may then take")
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="threads of the model; 0: the cores this process may use"
    )
    runs: Annotated[int, Field(ge=0, le=1024)] = Field(
        0,
        description="runs of one model at a time on the CPU, each on one thread, which takes as much memory again; "
        "0: as many as `threads` where that was no slower when it was loaded, 1: one at a time on all threads",
    )
    decode_threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        0,
        description="threads that decode images; runs side by side do it themselves while all of them have work; "
        "0: the cores this process may use",
    )
    workers: Annotated[int, Field(ge=0, le=64)] = Field(
        0,
        description="processes that answer small requests while every model is quick on the CPU, each with the models "
        "in its own memory; 0: the cores this process may use, at most 4",
    )
    audit_dir: Path | None = Field(
        None, description="folder of the audits, of one process at a time; left out, one in the temporary folder"
    )
    audit_max_bytes: Count = Field(1 << 30, description="bytes of the items of one audit, after decompression")
    audit_max_total_bytes: Count = Field(4 << 30, description="bytes that all audits may take on disk, about")
    audit_ttl: Annotated[float, Field(ge=1.0, le=1e9)] = Field(
        7 * 86400.0, description="seconds that an audit is kept after its end"
    )
    max_audits: Count = Field(100, description="audits kept at once; more are answered 429")
    model_control: bool = Field(True, description="models may be loaded and unloaded through /v2/repository")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")
    access_log: bool = Field(False, description="a log line per request")

    @property
    def processes(self) -> int:
        """Processes that answer small requests while every model is quick."""
        return self.workers or min(_MOST_PROCESSES, usable_cores())

    @property
    def image_limits(self) -> ImageLimits:
        """What one picture may ask of the decoder."""
        return ImageLimits(pixels=self.max_pixels, side=self.max_side)


def load_settings(argv: Sequence[str], environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from flags and environment.

    Args:
        argv: the command line without the program's name.
        environ: where FOCALSERVE_* variables are looked for misspelt names.

    Raises:
        InvalidInput: an unknown or invalid flag or variable; the text names it.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    unknown = sorted(name for name in environ if name.upper().startswith(PREFIX) and name.upper() not in known)
    if unknown:
        raise InvalidInput(f"unknown setting {', '.join(unknown)}; `focalserve serve --help` lists the known ones")
    try:
        return CliApp.run(Settings, cli_args=list(argv))
    except ValidationError as error:
        raise InvalidInput(describe_validation(error)) from None
    except SettingsError as error:
        raise InvalidInput(str(error).removeprefix("error parsing CLI: ")) from None


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: its affinity, cut by the container's CPU quota (cgroup version 2, then 1)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    try:
        quota_us = int((cgroup / "cpu/cpu.cfs_quota_us").read_text())
        period_us = int((cgroup / "cpu/cpu.cfs_period_us").read_text())
        return cores if quota_us <= 0 else max(1, min(cores, quota_us // period_us))
    except (OSError, ValueError):
        return cores
