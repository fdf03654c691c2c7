"""Settings of one GPU: ``[gpu.NAME]``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from qwenctl.clouds import registry
from qwenctl.clouds.base import ProviderSettings
from qwenctl.config.schedules import OffHoursConfig, PrewarmConfig
from qwenctl.config.service import ServiceConfig
from qwenctl.config.workloads import CACHE, PRESET_OF, services_of, with_changes
from qwenctl.core.address import check_host
from qwenctl.core.rules import Rule, RuleTable
from qwenctl.lib.settings_types import NAME, NAME_OR_EMPTY, Duration, Table, is_loopback
from qwenctl.protocol.messages import Spec


class FallbackConfig(Table):
    """Another instance for the same GPU, used when those before it have no capacity."""

    name: str = Field(pattern=NAME)
    """What people call it: in `status`, `why` and on the waiting page."""
    provider: str = ""
    """Its cloud; default: the GPU's. Other settings are those of the GPU's table of that cloud."""
    instance_id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")
    """The instance to start and stop."""
    region: str = ""
    """Its region; default: that of the GPU's own instance."""
    address: str = ""
    """Which of its addresses the proxy uses; default: as for the GPU's own instance."""


class TimingConfig(Table):
    """Bounds of the lifecycle; the defaults suit a cloud instance."""

    drain: Duration = Field(4.0, ge=3.0)
    """How long nobody must have wanted the GPU before it is stopped; at least 3 s, because a
    proxy's view may be 1 s old and its own news 1 s late."""
    start: Duration = 300.0
    """Start call accepted → running."""
    boot: Duration = 300.0
    """Running → the agent's hello."""
    load: Duration = 1200.0
    """Hello → ready."""
    call_grace: Duration = 15.0
    """How long the cloud may show the old state after it accepted a call."""
    heartbeat: Duration = 5.0
    """The agent's heartbeat interval."""
    node_lost: Duration = 180.0
    """No heartbeat for so long: the agent is gone."""
    retry: Duration = 10.0
    """Wait after the first failure; doubles with each further one."""
    retry_max: Duration = 300.0
    """The longest wait between two attempts."""
    dead_man: Duration = 600.0
    """No contact with any proxy for so long, and nothing running: the node stops itself."""


class GpuConfig(Table):
    """One GPU instance."""

    # The tables of providers, each validated by its provider; see `_validate_tables`.
    model_config = ConfigDict(extra="allow")

    provider: str = "local"
    """``local``, ``aliyun``, ``aws``, or the name of an installed provider."""
    hosts: tuple[str, ...] = ()
    """Host names whose requests go to this GPU; none: every host that no other GPU names."""
    tier: str = Field("", pattern=NAME_OR_EMPTY)
    """What tells GPUs of the same hosts apart, such as ``speed`` and ``quality``; visitors choose,
    and the first GPU of the file is for those who do not. See docs/tiers.md."""
    models: tuple[str, ...] = ()
    """API models that this one of the GPUs of the same hosts serves: names, or patterns such as
    ``Qwen/Qwen3-VL-8B-*``. ``GET /v1/models`` lists the names while it sleeps, also of a single GPU."""
    idle_timeout: Duration = Field(600.0, ge=1.0)
    """How long after the last activity the GPU stays on."""
    max_up: Duration = 0.0
    """The longest time that `qwenctl up --for` may ask for; 0: any."""
    boot_estimate: Duration = 90.0
    """What to tell the first visitor, before there are boots to learn from."""
    preset: Literal["gradio", "open-webui", "openai", "generic"] = "gradio"
    """The rule table to start from: what counts as use of this kind of WebUI."""
    rules: tuple[Rule, ...] = ()
    """Rules of your own, tried before the preset's."""
    wake_on: Literal["visit", "click", "never"] = "visit"
    """``visit``: the waiting page wakes the GPU when it is visible in a browser; ``click``: only
    its button; ``never``: only the command line, API keys and schedules."""
    api: Literal["hold", "fail"] = "hold"
    """What an API client gets while the GPU wakes: its request held, or 503 with Retry-After."""
    hold_on_failure: Literal["wait", "fail"] = "wait"
    """What a held request gets when an attempt to start the GPU fails, for lack of capacity say, and
    is to be repeated later: it waits on, or 503 with the failure and Retry-After."""
    found_running: Literal["adopt", "stop", "ignore"] = "adopt"
    """An instance found running that nobody needs: keep it one idle timeout, stop it, or leave it."""
    address: str = ""
    """Where the proxy reaches the node, if not where the cloud says."""
    agent: bool = True
    """``false``: no agent runs on the instance, its WebUI starts by itself, and the proxy asks it
    whether it is ready. See docs/agentless.md for what is lost."""
    price_per_hour: float = Field(0.0, ge=0)
    """For `status` and savings; in your currency."""
    timing: TimingConfig = Field({}, validate_default=True)
    fallback: tuple[FallbackConfig, ...] = ()
    """Other instances, in order of preference, for when the own one has no capacity."""
    workload: Literal["custom", "qwen3-vl-webui", "vllm-openai", "open-webui+vllm"] = "custom"
    """What the node runs, ready-made and in containers: Qwen's own WebUI, vLLM's OpenAI API, or Open
    WebUI before vLLM. ``custom``: what `service` says. A `service` table of the same name (``webui``,
    ``vllm``) changes single keys of a ready-made one. See docs/node.md."""
    model: str = Field("", pattern=r"^([A-Za-z0-9/][A-Za-z0-9._/-]*)?$")
    """With `workload`: the model, by its name on Hugging Face (``Qwen/Qwen3-VL-8B-Instruct``), or a
    directory on the node."""
    model_cache: str = Field(CACHE, pattern=r"^/[^:]*$")
    """With `workload`: the directory on the node that models are kept in."""
    service: tuple[ServiceConfig, ...] = ()
    """What the node runs, in order; traffic goes to the first. Without an agent: where it listens,
    and how it is asked whether it is ready."""
    prewarm: tuple[PrewarmConfig, ...] = ()
    """When it is kept ready by schedule."""
    off_hours: tuple[OffHoursConfig, ...] = ()
    """When it is kept off by schedule."""

    @cached_property
    def rule_table(self) -> RuleTable:
        """The rules in force; the first match counts."""
        from qwenctl.core.presets import PRESETS

        return RuleTable(self.rules + PRESETS[self.preset])

    @cached_property
    def spec(self) -> Spec:
        """What the node should run; its version changes when anything in it does."""
        spec = Spec(
            version="",
            services=tuple(
                service.to_protocol(here=self.settings.on_this_machine) for service in self.service
            ),
            heartbeat=self.timing.heartbeat,
            dead_man=self.timing.dead_man,
            load=self.timing.load,
        )
        # Proxies of an earlier version know no `load`: the usual one makes no other version.
        usual = {"load"} if spec.load == Spec.model_fields["load"].default else None
        digest = hashlib.sha256(spec.model_dump_json(exclude=usual).encode()).hexdigest()[:16]
        return spec.model_copy(update={"version": digest})

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names of API models that the settings tell: those of `models`, and vLLM's own."""
        named = [name for name in self.models if not set(name) & set("*?[")]
        if self.workload == "vllm-openai":
            command = self.service[0].command
            renamed = any(part.startswith("--served-model-name") for part in command)
            if command and command[0] == self.model and not renamed:
                named.append(self.model)
        return tuple(dict.fromkeys(named))

    @property
    def port(self) -> int:
        """The port on the node that traffic goes to."""
        return self.service[0].port if self.service else 7860

    @field_validator("address")
    @classmethod
    def _address(cls, value: str) -> str:
        return value and check_host(value)

    @field_validator("hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_host(host) for host in value)

    @field_validator("service")
    @classmethod
    def _distinct(cls, value: tuple[ServiceConfig, ...]) -> tuple[ServiceConfig, ...]:
        for what in ("name", "port"):
            seen = [getattr(service, what) for service in value]
            if len(set(seen)) != len(seen):
                raise ValueError(f"two services have the same {what}")
        return value

    @property
    def machine(self) -> str:
        """The GPU's own instance in words, to tell it from an earlier one of this GPU."""
        own, _ = self.candidates()[0]
        return self.provider if own in ("", self.provider) else f"{self.provider} {own}"

    @property
    def settings(self) -> Any:
        """The settings of the GPU's own provider."""
        return self.settings_of(self.provider)

    def settings_of(self, provider: str) -> Any:
        """Return the settings of a provider: its table, or else its defaults."""
        table = (self.__pydantic_extra__ or {}).get(provider)
        return table or (registry.settings_type(provider) or ProviderSettings)()

    def candidates(self) -> list[tuple[str, GpuConfig]]:
        """Return own instance and fallbacks in order, by name: each a GPU with one instance."""
        own = self.model_copy(update={"fallback": ()})
        found = [(self.settings.instance or self.provider, own)]
        for other in self.fallback:
            provider = other.provider or self.provider
            table = self.settings_of(provider)
            given = other.model_dump(include={"instance_id", "region", "address"})
            merged = type(table)(**{**table.model_dump(), **{k: v for k, v in given.items() if v}})
            found.append(
                (other.name, own.model_copy(update={"provider": provider, provider: merged}))
            )
        return found

    @model_validator(mode="after")
    def _usable(self) -> GpuConfig:
        """Refuse an instance that would be billed and that nobody could use."""
        if self.model and self.workload == "custom":
            raise ValueError('model is for a workload, such as workload = "qwen3-vl-webui"')
        if self.workload != "custom" and not self.agent:
            raise ValueError("agent = false runs no workload: remove one of the two")
        errors = [
            InitErrorDetails(
                type=PydanticCustomError("unusable", "{what}", {"what": what}),
                loc=("service", number),
                input=service,
            )
            for number, service in enumerate(self.service if self.agent else ())
            for what in self._hindrances(number, service)
        ]
        if errors:
            raise ValidationError.from_exception_data("GpuConfig", errors)
        return self

    def _hindrances(self, number: int, service: ServiceConfig) -> Iterator[str]:
        container = service.container
        if container is None:
            if not service.command:
                yield "it needs a command, or a container with an image (or agent = false)"
        elif container.network == "host":
            if self.workload == "open-webui+vllm" and service.name == "webui":
                yield "with network = 'host' it does not find http://vllm:8000: use 'bridge'"
            if container.port not in (0, service.port):
                yield (
                    "with network = 'host' container.port must be the service's port "
                    f"({service.port}), or left out"
                )
            if container.bind != "0.0.0.0":
                yield (
                    "with network = 'host' bind has no effect, and other services do not find this "
                    "one by its name: leave bind out, or use network = 'bridge'"
                )
        elif (
            number == 0
            and is_loopback(container.bind)
            and not self.settings.on_this_machine
            and not is_loopback(self.address)
        ):
            yield f"the proxy cannot reach bind = {container.bind!r}, and traffic goes to this one"

    @model_validator(mode="after")
    def _fallbacks(self) -> GpuConfig:
        if not self.fallback:
            return self
        for provider in (self.provider, *(other.provider for other in self.fallback)):
            if "instance_id" not in type(self.settings_of(provider or self.provider)).model_fields:
                raise ValueError(
                    "fallback is for providers whose settings name an instance by instance_id, "
                    f"such as aliyun and aws, not {provider!r}"
                )
        if self.address:
            raise ValueError("address is that of one instance; it cannot be set with fallback")
        ids = [self.settings.instance]
        for other in self.fallback:
            if other.instance_id in ids:
                raise ValueError(f"the instance {other.instance_id} is named twice")
            ids.append(other.instance_id)
        try:
            self.candidates()
        except ValidationError as error:
            where, what = error.errors()[0]["loc"][0], error.errors()[0]["msg"]
            raise ValueError(f"fallback: {where}: {what}") from None
        return self

    @model_validator(mode="after")
    def _one_schedule_a_name(self) -> GpuConfig:
        names = [schedule.name for schedule in (*self.prewarm, *self.off_hours)]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two schedules (prewarm, off_hours) have the name {name!r}")
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _validate_tables(
        cls, data: Any, validate: ModelWrapValidatorHandler[GpuConfig]
    ) -> GpuConfig:
        """Validate each ``[gpu.NAME.<provider>]`` by that provider."""
        if not isinstance(data, dict):
            return validate(data)
        own = data.get("provider", "local")
        given = {key: value for key, value in data.items() if key not in cls.model_fields}
        if isinstance(own, str) and registry.settings_type(own) is not None:
            given.setdefault(own, {})
        tables: dict[str, Any] = {}
        errors: list[InitErrorDetails] = []
        for key, value in given.items():
            if (model := registry.settings_type(key)) is None:
                errors.append(InitErrorDetails(type="extra_forbidden", loc=(key,), input=value))
                continue
            try:
                tables[key] = model.model_validate(value)
            except ValidationError as error:
                errors += _details(error, (key,))
        if not errors:
            return validate({key: data[key] for key in data if key not in given} | tables)
        try:
            validate({key: data[key] for key in data if key not in given})
        except ValidationError as error:
            # Errors of the whole table say nothing while a table in it is wrong.
            errors = [one for one in _details(error) if one["loc"]] + errors
        raise ValidationError.from_exception_data("GpuConfig", errors)

    @model_validator(mode="wrap")
    @classmethod
    def _ready_made(cls, data: Any, validate: ModelWrapValidatorHandler[GpuConfig]) -> GpuConfig:
        """Add the tables of the workload, as if they stood in the file.

        This validator is the last, so that it sees the errors of those above.
        """
        if not isinstance(data, dict) or str(data.get("workload")) not in PRESET_OF:
            return validate(data)
        given, model = data.get("service", ()), data.get("model", "")
        cache = data.get("model_cache", CACHE)
        if not model:
            raise ValueError(
                f"workload = {data['workload']!r} needs a model, such as "
                'model = "Qwen/Qwen3-VL-8B-Instruct"'
            )
        if not (
            isinstance(given, (list, tuple)) and isinstance(model, str) and isinstance(cache, str)
        ):
            return validate(data)  # it finds the errors
        made = services_of(data["workload"], model, cache)
        preset = PRESET_OF[data["workload"]]
        services, places = with_changes(made, given)
        try:
            return validate({"preset": preset, **data, "service": services})
        except ValidationError as error:
            raise _moved(error, places) from None


def fields_of(model: type[BaseModel], providers: Sequence[str]) -> dict[str, FieldInfo]:
    """Return a model's fields; those of a GPU with the tables of these providers."""
    if not issubclass(model, GpuConfig):
        return model.model_fields
    found: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        if name == "fallback":
            for provider in providers:
                if (table := registry.settings_type(provider)) is not None:
                    found[provider] = FieldInfo(annotation=table, default={})
        found[name] = field
    return found


def _details(error: ValidationError, before: tuple[str, ...] = ()) -> list[InitErrorDetails]:
    """Return the parts of an error, to raise them again below another place."""
    details = []
    for problem in error.errors(include_url=False):
        kind: Any = PydanticCustomError(problem["type"], problem["msg"], problem.get("ctx"))
        where = (*before, *problem["loc"])
        details.append(InitErrorDetails(type=kind, loc=where, input=problem["input"]))
    return details


def _moved(error: ValidationError, places: Sequence[int | str]) -> ValidationError:
    """Give the error of services their places in the file: a workload puts its own before them."""
    details = _details(error)
    for detail in details:
        match detail["loc"]:
            case ("service", int(number), *rest):
                detail["loc"] = ("service", places[number], *rest)
    return ValidationError.from_exception_data(error.title, details)
