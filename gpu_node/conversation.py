"""Decide which message to the proxy is due. Without I/O: the agent sends it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from gpu_node.client import Reply
from qwenctl.lib.version import full_version
from qwenctl.protocol.messages import (
    PROTOCOL,
    Hello,
    Interruption,
    Progress,
    Report,
    Resources,
    ServiceState,
    Spec,
)

log = logging.getLogger(__name__)

PROGRESS_INTERVAL = 0.2
"""Seconds between two reports of nothing but progress."""

LOG_INTERVAL = 1.0
"""Seconds between two reports of nothing but log lines."""

FIRST_RETRY, LONGEST_RETRY = 0.2, 5.0
"""Seconds until a message is sent again; doubles."""

REMIND = 60.0
"""Seconds after which the same trouble is logged again."""

MAX_LOG_LINES = 200
MAX_LOG_CHARS = 32 * 1024
"""Of one report: at four bytes a character still below `protocol.messages.MAX_MESSAGE_BYTES`."""

MAX_REASON = 300
"""Characters of a message's `not_understood`."""

State = Literal["loading", "ready", "failed", "stopping"]


@dataclass(frozen=True)
class NodeStatus:
    """What a report says about the node at one moment."""

    services: tuple[ServiceState, ...]
    active: int
    progress: Progress
    resources: Resources
    interruption: Interruption | None
    stopping: bool


class Node(Protocol):
    """The node that the conversation is about."""

    @property
    def spec(self) -> Spec | None:
        """The spec that it runs; None before the first."""

    def status(self) -> NodeStatus:
        """Its status now; may take a moment."""


def node_state(services: tuple[ServiceState, ...], *, stopping: bool) -> tuple[State, str]:
    """Return the node's state and error, from its services'."""
    if stopping:
        return "stopping", ""
    failed = [service for service in services if service.state == "failed"]
    if failed:
        return "failed", failed[0].error
    if all(service.state == "ready" for service in services):
        return "ready", ""
    return "loading", next((service.error for service in services if service.error), "")


class Trouble:
    """Logs a problem when it begins, and again each minute while it lasts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.text = ""
        self._clock = clock
        self._logged = 0.0

    def note(self, text: str) -> None:
        """Log the problem unless it was logged a short time ago."""
        now = self._clock()
        if text != self.text or now - self._logged >= REMIND:
            log.warning("%s", text)
            self.text, self._logged = text, now


class Conversation:
    """Decides which message is due.

    ==================  =================================================================
    after               the next message
    ==================  =================================================================
    the start           a hello, at once
    a hello             a report, at once
    a report            a report, after the spec's heartbeat; earlier by `bring_forward`
    no contact          the same, after a pause that doubles
    a refusal           the same, or a hello if the proxy asks for it, after that pause
    ==================  =================================================================

    One thread calls `wait_until_due`, `next_message` and then `no_contact` or `answered`; the other
    methods may be called from any thread.

    Args:
        gpu: this GPU's name.
        boot_id: this boot of the instance.
        node: the node that the reports are about.
        booted_at: when the instance booted, by the clock.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        gpu: str,
        boot_id: str,
        node: Node,
        *,
        booted_at: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gpu = gpu
        self._boot_id = boot_id
        self._node = node
        self._booted_at = booted_at
        self._clock = clock
        self._trouble = Trouble(clock)
        self._start_seq = 0
        self._greeted = False
        self._retry = FIRST_RETRY
        self._not_understood = ""
        self._lock = threading.Condition()
        self._sent = 0.0
        self._due = 0.0
        self._not_before = 0.0
        self._ended = False
        self._sending: tuple[str, ...] = ()
        self._unsent_log: deque[str] = deque(maxlen=MAX_LOG_LINES)
        self._recent_log: deque[str] = deque(maxlen=MAX_LOG_LINES)

    @property
    def in_contact(self) -> bool:
        """Whether the proxy has accepted the last message, and goes on listening."""
        return self._greeted and not self._trouble.text and not self._ended

    @property
    def due_in(self) -> float:
        """Seconds until the next message is due."""
        return max(self._due, self._not_before) - self._clock()

    def wait_until_due(self) -> bool:
        """Block until the next message is due; return False once the conversation has ended."""
        with self._lock:
            while not self._ended and (pause := self.due_in) > 0:
                self._lock.wait(pause)
            return not self._ended

    def end(self) -> None:
        """Send nothing more."""
        with self._lock:
            self._ended = True
            self._lock.notify_all()

    def bring_forward(self, after: float = 0.0) -> None:
        """Make a report due ``after`` seconds from the last, if it is not due earlier."""
        with self._lock:
            when = self._sent + after
            if when < self._due:
                self._due = when
                self._lock.notify_all()

    def log_line(self, line: str, *, hurry: bool) -> None:
        """Report this line with the next report; in a hurry that is due within a second."""
        with self._lock:
            self._recent_log.append(line)
            self._unsent_log.append(line)
        if hurry:
            self.bring_forward(LOG_INTERVAL)

    def repeat_log(self) -> None:
        """Report the last lines once more."""
        with self._lock:
            self._unsent_log = self._recent_log.copy()
        self.bring_forward()

    def next_message(self) -> Hello | Report:
        """Return the message that is due."""
        uptime = max(0.0, self._clock() - self._booted_at)
        spec = self._node.spec
        if spec is None or not self._greeted:
            self._greeted = False
            return Hello(
                gpu=self._gpu,
                boot_id=self._boot_id,
                agent_version=full_version(),
                protocol=PROTOCOL,
                uptime=uptime,
                not_understood=self._not_understood,
            )
        with self._lock:
            # First, so that a change while this report is made or sent makes another one due.
            self._sent = self._clock()
            self._due = self._sent + spec.heartbeat
            self._sending = self._take_log()
        status = self._node.status()
        state, error = node_state(status.services, stopping=status.stopping)
        return Report(
            gpu=self._gpu,
            boot_id=self._boot_id,
            start_seq=self._start_seq,
            state=state,
            error=error,
            active=status.active,
            progress=status.progress if state == "loading" else Progress(),
            services=status.services,
            resources=status.resources,
            interruption=status.interruption,
            uptime=uptime,
            log=self._sending,
            spec_version=spec.version,
            not_understood=self._not_understood,
        )

    def _take_log(self) -> tuple[str, ...]:
        """Take the oldest unsent lines, as many as one report may hold."""
        lines: list[str] = []
        chars = 0
        while self._unsent_log and chars + len(self._unsent_log[0]) <= MAX_LOG_CHARS:
            chars += len(self._unsent_log[0])
            lines.append(self._unsent_log.popleft())
        return tuple(lines)

    def no_contact(self, reason: str) -> None:
        """Note that no proxy has taken the message."""
        self._trouble.note(f"no contact to a proxy: {reason}")
        with self._lock:
            self._unsent_log = deque([*self._sending, *self._unsent_log], MAX_LOG_LINES)
        self._back_off()

    def not_understood(self, reason: str) -> None:
        """Note that the proxy's answer says what this version does not know."""
        self._not_understood = reason[:MAX_REASON]
        self.no_contact(reason)

    def answered(self, reply: Reply) -> None:
        """Take the proxy's answer to the message."""
        self._not_understood = ""
        answer = reply.answer
        no_spec = answer.spec is None and self._node.spec is None
        if reply.accepted and not no_spec and self._trouble.text:
            log.info("in contact with the proxy")
            self._trouble.text = ""
        if answer.refused:
            self._trouble.note(f"the proxy refused: {answer.refused}")
        elif not reply.accepted and not answer.hello_again:
            self._trouble.note(f"the proxy refused with status {reply.status}")
        elif reply.accepted and no_spec:
            self._trouble.note("the proxy did not say what to run")
        if reply.accepted and not self._greeted:
            self._start_seq, self._greeted = answer.start_seq, True
            self.bring_forward()
        if answer.hello_again:
            if self._greeted:  # a proxy that has lost its store asks: it needs to know soon
                self._retry = FIRST_RETRY
            self._greeted = False
            self.bring_forward()
        if reply.accepted and not no_spec:
            self._retry = FIRST_RETRY
        else:
            self._back_off()

    def _back_off(self) -> None:
        """Make the message due again after a pause, with jitter so that nodes do not synchronise."""
        self._due = 0.0
        self._not_before = self._clock() + self._retry * random.uniform(0.8, 1.2)
        self._retry = min(self._retry * 2, LONGEST_RETRY)
