"""Metrics for Prometheus. Their names are part of the interface."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Summary, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from qwenctl.core.leases import ADOPTED, LEASES
from qwenctl.core.observer import Observer
from qwenctl.core.phase import Phase
from qwenctl.core.snapshot import Snapshot
from qwenctl.protocol.messages import GpuFigures


class Metrics(Observer):
    """All metrics of one proxy process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = _Requests()
        self.registry.register(self._requests)
        self._nodes = _Nodes()
        self.registry.register(self._nodes)
        self.held = Gauge(
            "qwenctl_held_requests",
            "Requests held until the GPU is ready",
            ["gpu"],
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "qwenctl_in_flight_requests",
            "Requests that keep the GPU on now",
            ["gpu"],
            registry=self.registry,
        )
        self.phase = Gauge(
            "qwenctl_phase",
            "1 for the phase the GPU is in",
            ["gpu", "phase"],
            registry=self.registry,
        )
        self.leases = Gauge(
            "qwenctl_leases", "Unexpired leases by kind", ["gpu", "kind"], registry=self.registry
        )
        self.callbacks = Counter(
            "qwenctl_node_messages",
            "Messages of nodes by what became of them",
            ["gpu", "outcome"],
            registry=self.registry,
        )
        self.step_seconds = Gauge(
            "qwenctl_wake_step_seconds",
            "Seconds of each step of the last wake",
            ["gpu", "step"],
            registry=self.registry,
        )
        self.cloud_calls = Summary(
            "qwenctl_cloud_call_seconds",
            "Calls to the cloud, and the seconds they took",
            ["gpu", "action", "outcome"],
            registry=self.registry,
        )

    def count(self, gpu: str, outcome: str) -> None:
        """Count a request by its outcome. Called on the event loop only."""
        self._requests.counts[gpu, outcome] += 1

    def admitted(self, gpu: str, decision: str) -> None:
        self.count(gpu, decision)

    def called_cloud(self, gpu: str, action: str, outcome: str, seconds: float) -> None:
        self.cloud_calls.labels(gpu, action, outcome).observe(seconds)

    def observe(self, snapshot: Snapshot, in_flight: int) -> None:
        """Set the metrics of a GPU by its snapshot."""
        for phase in Phase:
            self.phase.labels(snapshot.gpu, phase.value).set(phase is snapshot.phase)
        kinds: dict[str, int] = dict.fromkeys(sorted(LEASES - {ADOPTED}), 0)
        for lease in snapshot.leases:
            kinds[lease.kind] = kinds.get(lease.kind, 0) + 1
        for kind, count in kinds.items():
            self.leases.labels(snapshot.gpu, kind).set(count)
        self.in_flight.labels(snapshot.gpu).set(in_flight)
        report = snapshot.report if snapshot.phase.running else None
        self._nodes.gpus[snapshot.gpu] = report.resources.gpus if report else ()

    def text(self) -> bytes:
        """Return the metrics in the text exposition format."""
        return generate_latest(self.registry)


class _Requests(Collector):
    """Requests by outcome, as plain numbers: a Counter would take a lock for each request."""

    def __init__(self) -> None:
        self.counts: Count[tuple[str, str]] = Count()

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(
            "qwenctl_requests", "Requests by what became of them", labels=["gpu", "outcome"]
        )
        for labels, count in list(self.counts.items()):
            family.add_metric(labels, count)
        yield family


class _Nodes(Collector):
    """GPU figures of the nodes' last reports; a figure is gone when its report is."""

    _FAMILIES = (
        ("utilisation_percent", "utilisation_percent", "Time in which the GPU worked"),
        ("memory_used_bytes", "memory_used", "GPU memory in use"),
        ("memory_total_bytes", "memory_total", "GPU memory"),
        ("temperature_celsius", "temperature", "Temperature of the GPU"),
        ("power_watts", "power", "Power that the GPU draws"),
    )

    def __init__(self) -> None:
        self.gpus: dict[str, Sequence[GpuFigures]] = {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, field, text in self._FAMILIES:
            family = GaugeMetricFamily(f"qwenctl_node_gpu_{name}", text, labels=["gpu", "index"])
            for gpu, devices in list(self.gpus.items()):
                for figures in devices:
                    if (value := getattr(figures, field)) is not None:
                        family.add_metric([gpu, figures.index], value)
            yield family
