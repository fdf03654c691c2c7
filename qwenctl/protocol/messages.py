"""Messages between the node's agent and the proxy.

The agent opens every connection, so the node needs no inbound control port. It sends a `Hello` once
a boot, then a `Report` at every change and every heartbeat; the answers carry the `Spec` to run and
the `Command`s to carry out.

Every message is signed with the deployment's node secret (HMAC-SHA256, RFC 2104) over method, path,
time, nonce and body. Answers, which name commands to run, are signed over the nonce they answer.
Replays are refused by nonce, stale messages by time, and a report counts only for the boot that
said hello after the start.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

HELLO_PATH = "/_qwenctl/node/hello"
REPORT_PATH = "/_qwenctl/node/report"

PROTOCOL = 3
"""The version of these messages. 2: the agent heeds `Answer.unneeded_for`. 3: its version has a
build, and it says which answer it did not understand."""

MAX_MESSAGE_BYTES = 256 * 1024
"""A longer message is refused unread."""


MOST = 2**60
"""The largest number in a message: an exbibyte, more than anything on a node."""

Number = Annotated[float, Field(ge=-MOST, le=MOST, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, le=MOST, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=MOST)]


class _Message(BaseModel):
    # Proxy and agent may differ in version: unknown keys are ignored.
    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)


class Readiness(_Message):
    """Readiness probe of a service: an HTTP GET of ``path``.

    Ready is a status below 400, and a tiny inference that works, if one is asked for.
    """

    path: str = "/"
    interval: float = Field(1.0, gt=0, description="seconds between two probes")
    timeout: float = Field(5.0, gt=0, description="seconds one probe may take")
    inference: Literal["", "openai", "gradio"] = Field(
        "", description="a real inference before it is ready: one token, or one Gradio call"
    )
    model: str = Field("", description="openai: which model; empty: the first of /v1/models")
    api_name: str = Field("", description="gradio: the endpoint to call, such as /predict")
    data: tuple[Any, ...] = Field((), description="gradio: what to call it with")
    inference_timeout: float = Field(120.0, gt=0, description="seconds the inference may take")


class Activity(_Message):
    """Activity probe of a service, where the traffic does not show generations.

    ``path`` is read over HTTP each heartbeat; ``metrics`` are names of Prometheus samples to add up
    (vLLM: ``vllm:num_requests_running``). Without metrics the body is JSON and its number
    ``active`` counts. Where nothing can be asked, GPU utilisation of ``gpu_percent`` or more in
    ``gpu_samples`` heartbeats in a row counts as one generation.
    """

    path: str = ""
    metrics: tuple[str, ...] = ()
    gpu_percent: float = Field(0.0, ge=0, le=100, description="0: GPU utilisation does not count")
    gpu_samples: int = Field(3, ge=1)


class Container(_Message):
    """How Docker runs a service. Sizes are in bytes; 0 is Docker's own choice."""

    image: str = Field(min_length=1)
    entrypoint: tuple[str, ...] = ()
    """Instead of the image's own."""
    pull: Literal["missing", "always", "never"] = "missing"
    """When to ask the registry: if the node has not got the image, at every start, never."""
    port: int = Field(0, ge=0, le=65535)
    """The port inside the container; 0: the service's ``port``."""
    bind: str = "0.0.0.0"
    """The node's address that the port is published on; 127.0.0.1 for a service that only other
    services use."""
    network: Literal["bridge", "host"] = "bridge"
    """``bridge``: a network of the node's services, which find each other by name; ``host``."""
    gpus: tuple[str, ...] = Field(
        ("all",), description='"all", or indices, UUIDs and MIG devices; none: no GPU'
    )
    shm_size: int = Field(0, ge=0)
    memory: int = Field(0, ge=0)
    cpus: float = Field(0.0, ge=0)
    """The most CPUs it may use; 0: no limit."""
    volumes: tuple[str, ...] = ()
    restart: Literal["no", "unless-stopped"] = "no"
    """``unless-stopped``: Docker itself starts it at boot, before the agent does."""


class _ServiceHead(_Message):
    """Fields of `Service` alone. They come first, as in each version: a spec's version is a hash."""

    name: str = "webui"
    runtime: Literal["process", "docker"] = "process"
    container: Container | None = Field(None, description="set with the runtime docker")


class ServiceFields(_Message):
    """Fields that a service has in messages and in the configuration."""

    command: tuple[str, ...] = ()
    """Program and arguments; no shell. For a container: instead of the image's own."""
    env: dict[str, str] = Field(default_factory=dict, repr=False)
    """Extra environment variables."""
    env_file: str = ""
    """A file on the node with more of them, one ``KEY=value`` a line: for tokens and passwords."""
    weights: str = ""
    """A directory on the node whose files it reads at start. The agent reads them ahead, and shows
    how far the service is."""
    cwd: str = ""
    """Working directory; default: the instance's own, or the image's."""
    port: int = Field(7860, ge=1, le=65535)
    """The port it listens on; the first service's port is where traffic goes."""
    readiness: Readiness = Field({}, validate_default=True)
    """The HTTP probe that says when it is ready."""
    activity: Activity = Field({}, validate_default=True)
    """How to ask it for running generations."""
    stop_timeout: float = Field(10.0, ge=0)
    """From SIGTERM to SIGKILL."""
    max_restarts: int = Field(5, ge=0)
    """Crashes in a row before it is given up."""


class Service(ServiceFields, _ServiceHead):
    """A process or a container that the node runs, with a port, readiness and activity probe."""


class Spec(_Message):
    """The services that the node should run; ``version`` is a hash of the rest."""

    version: str
    services: tuple[Service, ...]
    heartbeat: float = 5.0
    dead_man: float = 600.0
    """Seconds without contact to any proxy, with nothing running, until the node stops itself."""
    load: float = Field(1200.0, gt=0)
    """Seconds that a service may take until it is ready, and wait for a driver that is late."""


class Hello(_Message):
    """The agent's first message of a boot."""

    gpu: str
    boot_id: str = Field(min_length=8, max_length=64)
    agent_version: str = ""
    protocol: Count = Field(1, description="the agent's `PROTOCOL`")
    uptime: Amount = Field(0.0, description="seconds since the instance booted")
    not_understood: str = Field("", max_length=300, description="what it could not read")


class Progress(_Message):
    """The node's progress, for the waiting page."""

    phase: str = Field("", max_length=40, description="pull, create, download, weights, warm-up, …")
    percent: float | None = Field(None, ge=0, le=100)
    eta: Amount | None = Field(None, description="seconds until this phase is over")
    text: str = Field("", max_length=400)


class ServiceState(_Message):
    name: str
    state: Literal["starting", "ready", "crashed", "failed", "stopped"]
    port: Count
    restarts: Count = 0
    error: str = Field("", max_length=2000)
    detail: str = Field("", max_length=300, description="the process, or the container's state")
    doubt: str = Field(
        "", max_length=300, description="why its claim to work or be ready is doubted"
    )


class GpuFigures(_Message):
    """Figures of a GPU or MIG device; None where the driver does not report."""

    index: str = Field(
        "", max_length=16, description="as NVML and Docker count: 0, or 0:1 for a MIG device"
    )
    uuid: str = Field("", max_length=100)
    name: str = Field("", max_length=100)
    mig_parent: str = Field("", max_length=100, description="the GPU's UUID, of a MIG device")
    utilisation_percent: float | None = Field(None, ge=0, le=100)
    memory_used: Count | None = Field(None, description="bytes")
    memory_total: Count | None = Field(None, description="bytes")
    temperature: Number | None = Field(None, description="°C")
    power: Amount | None = Field(None, description="watts")
    power_limit: Amount | None = Field(None, description="watts")
    error: str = Field("", max_length=200, description="why it cannot be used, such as: it is lost")


MAX_GPUS = 128
"""At most so many in a report: room for 16 GPUs with 7 MIG devices each."""


class Resources(_Message):
    """Figures of the node; None where the machine does not report."""

    cpu_percent: Amount | None = None
    memory_used: Count | None = Field(None, description="bytes")
    memory_total: Count | None = Field(None, description="bytes")
    disk_free: Count | None = Field(None, description="bytes")
    disk_used_percent: float | None = Field(None, ge=0, le=100)
    gpus: tuple[GpuFigures, ...] = Field((), max_length=MAX_GPUS)
    gpus_age: Amount | None = Field(None, description="seconds since they were read")
    gpu_note: str = Field("", max_length=300, description="why there are none, or no fresh ones")


class Interruption(_Message):
    """The cloud's notice that it takes a spot instance back."""

    action: str = Field("reclaim", min_length=1, max_length=40, description="stop, terminate, …")
    seconds_left: Number = Field(description="from now; not a time, because clocks differ")


LogLine = Annotated[str, Field(max_length=4000)]


class Report(_Message):
    """The whole state of the node: heartbeat, progress and ready callback."""

    gpu: str
    boot_id: str = Field(min_length=8, max_length=64)
    start_seq: Count = Field(
        description="which start this boot belongs to, from the hello's answer"
    )
    state: Literal["loading", "ready", "failed", "stopping"]
    error: str = Field("", max_length=2000)
    active: Count = Field(0, description="generations running now")
    progress: Progress = Field({}, validate_default=True)
    services: tuple[ServiceState, ...] = Field((), max_length=64)
    resources: Resources = Field({}, validate_default=True)
    interruption: Interruption | None = None
    uptime: Amount = 0.0
    log: tuple[LogLine, ...] = Field((), max_length=200, description="new log lines, oldest first")
    spec_version: str = ""
    not_understood: str = Field("", max_length=300, description="what it could not read")


class Command(_Message):
    """A task for the node, to be done once.

    ===============  =======================================================================
    verb             what the agent does
    ===============  =======================================================================
    drain            stops every service, until a command restarts it, or the agent starts anew
    stop-service     stops one service, in the same way
    restart-service  stops it, if it runs, and starts it
    reload           reads its own settings anew; containers run on, commands are restarted
    collect-logs     sends its last lines once more
    ===============  =======================================================================
    """

    verb: Literal["drain", "stop-service", "restart-service", "reload", "collect-logs"]
    service: str = ""


class Answer(_Message):
    """The proxy's answer to a hello or a report."""

    server_time: Amount
    start_seq: Count = 0
    spec: Spec | None = Field(
        None, description="set when the node's version is not the present one"
    )
    commands: tuple[Command, ...] = ()
    hello_again: bool = Field(False, description="the proxy does not know this boot: say hello")
    refused: str = Field("", description="why the message did not count, one sentence")
    unneeded_for: Amount = Field(
        0.0,
        description="seconds since nobody needs this instance any more; its dead-man's switch "
        "counts from then, so that it goes off even if no proxy can stop it",
    )
