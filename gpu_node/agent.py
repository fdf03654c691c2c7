"""The agent: the conversation with the proxy, the list of services, and the way out."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from gpu_node.client import NoContact, ProxyClient, Reply
from gpu_node.machine.interruption import Notice
from gpu_node.machine.nvidia import GpuWatch
from gpu_node.machine.resources import read_resources
from gpu_node.selfstop.busy import busy_for_a_while, read_spec
from gpu_node.selfstop.deadman import EXIT_POWER_OFF, DeadMan, SelfStop
from gpu_node.services.runtime import Runtime
from gpu_node.services.supervisor import Supervisor
from gpu_node.status_file import StatusFile
from qwenctl import __version__
from qwenctl.lib.private_file import write_private
from qwenctl.protocol.messages import (
    HELLO_PATH,
    REPORT_PATH,
    Answer,
    Command,
    Hello,
    Interruption,
    Progress,
    Report,
    ServiceState,
    Spec,
)

__all__ = ["EXIT_RELOAD", "Agent", "node_state"]

log = logging.getLogger(__name__)

PROGRESS_INTERVAL = 0.2
"""Seconds between two reports of nothing but progress."""

LOG_INTERVAL = 1.0
"""Seconds between two reports of nothing but log lines, while loading."""

FIRST_RETRY, LONGEST_RETRY = 0.2, 5.0
"""Seconds until a message is tried again; doubles."""

EXIT_RELOAD = 75
"""`Agent.run` ends with this when it is to begin anew with what its settings now say."""

LOOK = 2.0
"""Seconds that the main thread sleeps at a time."""

STOP_PATIENCE = 120.0
"""Seconds that services get to end before the instance is stopped all the same."""

REMIND = 60.0
"""Seconds after which the same trouble is logged again."""

MAX_LOG_LINES = 200
MAX_LOG_CHARS = 32 * 1024
"""Of one report: at four bytes a character still below `wire.MAX_MESSAGE_BYTES`."""

State = Literal["loading", "ready", "failed", "stopping"]


def node_state(services: tuple[ServiceState, ...], *, stopping: bool) -> tuple[State, str]:
    """The node's state and error, from its services'."""
    if stopping:
        return "stopping", ""
    failed = [service for service in services if service.state == "failed"]
    if failed:
        return "failed", failed[0].error
    if all(service.state == "ready" for service in services):
        return "ready", ""
    return "loading", next((service.error for service in services if service.error), "")


class Agent:
    """Runs what the proxy asks for and tells it how that goes, until it is stopped.

    Threads: `run` (the caller's) waits for the end; one thread talks to the proxy and is the only
    one to touch the list of services; each service has threads of its own, which call the
    `gpu_node.services.supervisor.Listener` methods here.

    Args:
        gpu: this GPU's name.
        boot_id: this boot of the instance.
        client: the way to the proxies.
        runtimes: run the services, by the kind that a service names.
        keep_services: on `request_stop` leave the services running that can do without us, for the
            next agent to take up.
        dead_man: the countdown without contact.
        self_stop: stops the instance when that has run out.
        booted_at: the monotonic clock when the instance booted, in seconds.
        spec_file: where the last spec is kept, so that the next boot need not wait for a proxy.
        status_file: is told each report, for `qwenctl-node status`.
        disk: the path whose free space is reported.
        settings_problem: why the settings, as they are now, could not be used; empty: they can.
    """

    def __init__(
        self,
        *,
        gpu: str,
        boot_id: str,
        client: ProxyClient,
        runtimes: Mapping[str, Runtime],
        dead_man: DeadMan,
        self_stop: SelfStop,
        booted_at: float = 0.0,
        spec_file: Path | None = None,
        status_file: StatusFile | None = None,
        disk: str = "/",
        keep_services: bool = False,
        settings_problem: Callable[[], str] = str,
    ) -> None:
        self._gpu = gpu
        self._boot_id = boot_id
        self._client = client
        self._runtimes = runtimes
        self._keep_services = keep_services
        self._settings_problem = settings_problem
        self._dead_man = dead_man
        self._self_stop = self_stop
        self._booted_at = booted_at
        self._disk = disk
        self._gpus = GpuWatch()
        self._spec_file = spec_file
        self._status_file = status_file

        self._spec: Spec | None = None
        self._start_seq = 0
        self._greeted = False
        self._services: dict[str, Supervisor] = {}
        self._leaving: list[Supervisor] = []
        self._drained = False
        self._stopping = False

        self._lock = threading.Condition()
        self._due = 0.0
        self._sent = 0.0
        self._progress: dict[str, Progress] = {}
        self._notice: Notice | None = None
        self._fresh_log: deque[str] = deque(maxlen=MAX_LOG_LINES)
        self._recent_log: deque[str] = deque(maxlen=MAX_LOG_LINES)
        self._trouble = ("", 0.0)

        # Unlike an Event, a SimpleQueue may be used in a signal handler.
        self._pokes: queue.SimpleQueue[Literal["stop", "reload", "look"]] = queue.SimpleQueue()
        self._tried = False
        self._said_stopping = threading.Event()
        self._talk_ended = False
        self._broken = False

    # ---------------------------------------------------------------- life

    def request_stop(self) -> None:
        """Have `run` end; may be called from a signal handler and more than once."""
        self._pokes.put("stop")

    def run(self) -> int:
        """Work until stopped or until nobody has been heard for too long; the exit code."""
        if self._dead_man.remaining > 0:
            self._run_last_spec()
        # Else nobody is left to run it for, as after a stop that failed; unless a proxy says so.
        talk = threading.Thread(target=self._talk_or_end, name="talk", daemon=True)
        talk.start()
        code = self._wait_for_end()
        if code == EXIT_POWER_OFF:
            log.warning(
                "no proxy heard for %.0f s and nothing is running: this instance stops itself",
                self._dead_man.limit,
            )
        if code == EXIT_RELOAD or (self._keep_services and code == 0):
            self._leave_services()
        self._stopping = True
        self._bring_forward(0.0)
        for supervisor in self._everything():
            supervisor.stop()
        patience = time.monotonic() + STOP_PATIENCE
        for supervisor in self._everything():
            # A service that cannot be ended must not keep the instance on.
            supervisor.join(patience - time.monotonic() if code == EXIT_POWER_OFF else None)
        if code == 0 and self._greeted and not self._trouble[0] and not self._talk_ended:
            self._said_stopping.wait(2.0)
        self._end_talk()
        talk.join(1.0)  # it may be in the middle of a message to nobody
        if code == EXIT_POWER_OFF:
            self._self_stop.power_off()
        return 1 if self._broken else code

    def _leave_services(self) -> None:
        """Leave running what can do without us. If that is all, the proxy need not know that we are
        away for a moment: an upgrade of the agent then cuts nobody's work."""
        supervisors = self._everything()
        if supervisors and all(supervisor.can_be_left for supervisor in supervisors):
            self._end_talk()
        for supervisor in supervisors:
            supervisor.leave()

    def _end_talk(self) -> None:
        with self._lock:
            self._talk_ended = True
            self._lock.notify_all()

    def _run_last_spec(self) -> None:
        """Begin with what ran last, or what came with the instance; a proxy may correct it."""
        if self._spec_file is None:
            return
        try:
            spec = Spec.model_validate_json(self._spec_file.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("%s is of no use: %s", self._spec_file, type(error).__name__)
            return
        self._apply(spec)

    def _keep(self, spec: Spec) -> None:
        if self._spec_file is not None and spec != self._spec:
            try:
                write_private(self._spec_file, spec.model_dump_json())
            except OSError as error:  # a full disk must not end the node
                log.warning("cannot write %s: %s", self._spec_file, error.strerror)

    def _wait_for_end(self) -> int:
        """Block until asked to stop (0) or to begin anew (`EXIT_RELOAD`), or until the dead-man's
        switch fires (`EXIT_POWER_OFF`)."""
        while True:
            # An agent that starts after a long pause first tries to reach somebody.
            pause = self._dead_man.remaining if self._tried else None
            if pause is not None and pause <= 0:
                if self._active == 0 and not self._seems_busy() and self._dead_man.remaining <= 0:
                    return EXIT_POWER_OFF
                pause = 0.5
            try:
                # Not for long: a signal that was given to another thread, as happens after SIGCONT,
                # is seen only when this one wakes.
                poke = self._pokes.get(timeout=min(LOOK, pause or LOOK))
                if poke != "look":
                    return 0 if poke == "stop" else EXIT_RELOAD
            except queue.Empty:
                continue

    def _seems_busy(self) -> bool:
        """Whether something generates that the services' supervisors have not told of: those of an
        agent that has just been started have not asked yet."""
        spec = self._spec or (read_spec(self._spec_file) if self._spec_file else None)
        step = self._dead_man.limit / 10
        found = busy_for_a_while(spec, self._gpus, lambda pause: time.sleep(min(pause, step)))
        if found:
            self._complain(f"no proxy heard, but there is work going on: {found}")
        return bool(found)

    @property
    def _active(self) -> int:
        return sum(supervisor.active for supervisor in self._everything())

    def _everything(self) -> list[Supervisor]:
        with self._lock:
            return [*self._services.values(), *self._leaving]

    # ---------------------------------------------------------------- conversation

    def _talk_or_end(self) -> None:
        try:
            self._talk()
        except BaseException:
            # A node that runs on without a word is worse than one that starts again.
            self._broken = True
            self.request_stop()
            raise

    def _talk(self) -> None:
        pause = FIRST_RETRY
        while not self._talk_ended:
            stopping = self._stopping
            try:
                reply = self._say_hello() if not self._greeted else self._report()
            except NoContact as reason:
                self._has_tried()
                self._complain(f"no contact to a proxy: {reason}")
                self._sleep(pause)
                pause = min(pause * 2, LONGEST_RETRY)
                continue
            self._handle(reply)
            self._has_tried()
            if stopping:
                self._said_stopping.set()
            if reply.accepted:
                pause = FIRST_RETRY
                self._wait_until_due()
            else:
                # Refused: what is due is due again, a hello in particular, but not at once.
                self._sleep(pause)
                pause = min(pause * 2, LONGEST_RETRY)

    def _has_tried(self) -> None:
        if not self._tried:
            self._tried = True
            self._pokes.put("look")

    def _say_hello(self) -> Reply:
        hello = Hello(
            gpu=self._gpu, boot_id=self._boot_id, agent_version=__version__, uptime=self._uptime
        )
        reply = self._client.send(HELLO_PATH, hello)
        if reply.accepted:
            self._start_seq = reply.answer.start_seq
            # Without a spec there is nothing to report about: the next message is a hello again.
            self._greeted = reply.answer.spec is not None or self._spec is not None
            self._due = 0.0
        return reply

    def _report(self) -> Reply:
        assert self._spec
        with self._lock:
            # First, so that a change while we build or send this one makes another one due.
            now = time.monotonic()
            self._sent, self._due = now, now + self._spec.heartbeat
            lines = self._take_log()
            notice = self._notice
            services = tuple(supervisor.view for supervisor in self._services.values())
            # Of several on their way, the first that has something to tell: no jumping to and fro.
            waiting = [service.name for service in services if service.state != "ready"]
            told = [self._progress[name] for name in waiting if name in self._progress]
            progress = told[0] if told else Progress()
        state, error = node_state(services, stopping=self._stopping or self._drained)
        report = Report(
            gpu=self._gpu,
            boot_id=self._boot_id,
            start_seq=self._start_seq,
            state=state,
            error=error,
            active=self._active,
            progress=progress if state == "loading" else Progress(),
            services=services,
            resources=read_resources(self._disk, self._gpus),
            interruption=(
                Interruption(action=notice.action, seconds_left=notice.at - time.monotonic())
                if notice
                else None
            ),
            uptime=self._uptime,
            log=lines,
            spec_version=self._spec.version,
        )
        if self._status_file is not None:
            self._status_file.note(report)
        try:
            reply = self._client.send(REPORT_PATH, report)
        except NoContact:
            with self._lock:
                self._due = 0.0
                room = MAX_LOG_LINES - len(self._fresh_log)
                self._fresh_log.extendleft(reversed(lines[max(0, len(lines) - room) :]))
            raise
        if not reply.accepted:
            self._due = 0.0
        return reply

    def _handle(self, reply: Reply) -> None:
        answer = reply.answer
        if reply.accepted:
            self._dead_man.contact()
            if self._trouble[0]:
                log.info("in contact with the proxy")
                self._trouble = ("", 0.0)
        if answer.refused:
            self._complain(f"the proxy refused: {answer.refused}")
        elif not reply.accepted and not answer.hello_again:
            self._complain(f"the proxy refused with status {reply.status}")
        if answer.hello_again:
            self._greeted = False
            self._due = 0.0
        if reply.accepted and not self._stopping:
            self._obey(answer)

    def _obey(self, answer: Answer) -> None:
        if answer.spec is not None:
            self._apply(answer.spec)
        elif self._spec is None:
            self._complain("the proxy did not say what to run")
        for command in answer.commands:
            self._carry_out(command)

    def _wait_until_due(self) -> None:
        with self._lock:
            while not self._talk_ended and (pause := self._due - time.monotonic()) > 0:
                self._lock.wait(pause)

    def _sleep(self, seconds: float) -> None:
        """Wait before another try, a little less or more so that nodes do not come in step."""
        end = time.monotonic() + seconds * random.uniform(0.8, 1.2)
        with self._lock:
            while not self._talk_ended and (pause := end - time.monotonic()) > 0:
                self._lock.wait(pause)

    def _complain(self, text: str) -> None:
        """Log trouble once, and again each minute while it lasts."""
        now = time.monotonic()
        if text != self._trouble[0] or now - self._trouble[1] >= REMIND:
            log.warning("%s", text)
            self._trouble = (text, now)

    def _take_log(self) -> tuple[str, ...]:
        """The oldest new lines, as many as one report may hold."""
        lines: list[str] = []
        chars = 0
        while self._fresh_log and chars + len(self._fresh_log[0]) <= MAX_LOG_CHARS:
            chars += len(self._fresh_log[0])
            lines.append(self._fresh_log.popleft())
        return tuple(lines)

    @property
    def _uptime(self) -> float:
        return max(0.0, time.monotonic() - self._booted_at)

    # ---------------------------------------------------------------- services

    def _apply(self, spec: Spec) -> None:
        """Run what the spec says: leave what is unchanged, replace what changed, stop the rest."""
        if spec == self._spec or self._would_cut(spec):
            return
        self._keep(spec)
        log.info("spec %s: %s", spec.version, ", ".join(s.name for s in spec.services) or "nothing")
        self._spec = spec
        self._dead_man.limit = spec.dead_man
        self._pokes.put("look")
        self._drained = False
        wanted: dict[str, Supervisor] = {}
        present = dict(self._services)
        for service in spec.services:
            running = present.get(service.name)
            if running is not None and not running.over and running.takes(service):
                wanted[service.name] = present.pop(service.name)
        for running in present.values():
            self._let_go(running)
        for kind, runtime in self._runtimes.items():
            runtime.settle({s.name for s in spec.services if s.runtime == kind})
        for service in spec.services:
            if service.name not in wanted:
                wanted[service.name] = self._start(service.name, spec)
        with self._lock:
            self._services = {service.name: wanted[service.name] for service in spec.services}
            self._due = 0.0
        if self._stopping:  # came while we were at it
            for running in self._everything():
                running.stop()

    def _would_cut(self, spec: Spec) -> bool:
        """Whether the spec would replace or end a service that is generating. The proxy sends it
        again with each answer, until it is applied."""
        wanted = {service.name: service for service in spec.services}
        for name, running in self._services.items():
            if running.active and not (name in wanted and running.takes(wanted[name])):
                self._complain(f"spec {spec.version} waits until {name} has finished its work")
                return True
        return False

    def _start(self, name: str, spec: Spec) -> Supervisor:
        service = next(service for service in spec.services if service.name == name)
        # Whatever still holds the port or the name goes first.
        after = [
            old
            for old in self._leaving
            if old.service.name == name or old.service.port == service.port
        ]
        with self._lock:
            self._progress.pop(name, None)
        runtime = self._runtimes[service.runtime]
        return Supervisor(service, runtime, self, spec.heartbeat, after, self._gpus)

    def _let_go(self, supervisor: Supervisor) -> None:
        supervisor.stop()
        with self._lock:
            self._leaving = [old for old in self._leaving if not old.join(0)]
            self._leaving.append(supervisor)

    def _carry_out(self, command: Command) -> None:
        log.info("command from the proxy: %s %s", command.verb, command.service)
        if command.verb == "drain":
            self._drained = True
            for supervisor in self._services.values():
                supervisor.stop()
        elif command.verb == "collect-logs":
            with self._lock:
                self._fresh_log.clear()
                self._fresh_log.extend(self._recent_log)
        elif command.verb == "reload":
            if problem := self._settings_problem():
                log.error("not reloaded: %s", problem)
            else:
                self._pokes.put("reload")
        else:
            old = self._services.get(command.service)
            if old is None or self._spec is None:
                log.warning("there is no service %r", command.service)
                return
            if command.verb == "stop-service":
                old.stop()
                return
            self._drained = False
            self._let_go(old)
            fresh = self._start(command.service, self._spec)
            with self._lock:
                self._services[command.service] = fresh
        self._bring_forward(0.0)

    # ---------------------------------------------------------------- gpu_node.machine.interruption

    def interrupted(self, notice: Notice) -> None:
        """The cloud takes this instance back: the proxy is told at once. From any thread."""
        if notice.at < self._booted_at:
            log.info("a spot interruption notice from before this boot is ignored")
            return
        left = max(0.0, notice.at - time.monotonic())
        log.warning("the cloud takes this instance back (%s) in %.0f s", notice.action, left)
        with self._lock:
            self._notice = notice
        self._bring_forward(0.0)

    # ---------------------------------------------------------------- gpu_node.services.supervisor.Listener

    def changed(self) -> None:
        self._bring_forward(0.0)

    def progressed(self, service: str, progress: Progress) -> None:
        with self._lock:
            if progress == self._progress.get(service):
                return
            self._progress[service] = progress
        self._bring_forward(self._sent + PROGRESS_INTERVAL)

    def logged(self, service: str, text: str) -> None:
        line = f"{service}: {text}"[:4000]
        with self._lock:
            self._recent_log.append(line)
            self._fresh_log.append(line)
            loading = any(s.view.state != "ready" for s in self._services.values())
        if loading:
            self._bring_forward(self._sent + LOG_INTERVAL)

    def _bring_forward(self, when: float) -> None:
        """The next report is due at that time of the monotonic clock, if not earlier."""
        with self._lock:
            if when < self._due:
                self._due = when
                self._lock.notify_all()
