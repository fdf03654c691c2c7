"""Run the services of the proxy's spec, until stopped or without contact for too long."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from gpu_node.client import NoContact, NotUnderstood, ProxyClient
from gpu_node.conversation import PROGRESS_INTERVAL, Conversation, NodeStatus, Trouble
from gpu_node.machine.interruption import Notice
from gpu_node.machine.nvidia import GpuWatch
from gpu_node.machine.resources import read_resources
from gpu_node.selfstop.busy import busy_for_a_while, read_spec
from gpu_node.selfstop.deadman import EXIT_POWER_OFF, DeadMan
from gpu_node.services.runtime import Runtime
from gpu_node.services.supervisor import Supervisor
from gpu_node.status_file import StatusFile
from qwenctl.lib.private_file import write_private
from qwenctl.protocol.messages import (
    HELLO_PATH,
    REPORT_PATH,
    Answer,
    Command,
    Interruption,
    Progress,
    Report,
    Service,
    Spec,
)

log = logging.getLogger(__name__)

EXIT_RELOAD = 75
"""`Agent.run` returns this to be started again with what its settings now say."""

LOOK = 2.0
"""Seconds that the main thread sleeps at a time."""

ANSWER_PATIENCE = 5.0
"""Seconds that a proxy gets to say whether it needs the instance after all."""

STOP_PATIENCE = 120.0
"""Seconds that services get to end before the instance is stopped all the same."""


class Agent:
    """Runs what the proxy asks for and reports it, until it is stopped.

    Threads: `run` (the caller's) waits for the end; another thread talks to the proxy, and only that
    thread changes the list of services; each service has threads of its own, which call the
    `gpu_node.services.supervisor.Listener` methods here.

    Args:
        gpu: this GPU's name.
        boot_id: this boot of the instance.
        client: sends messages to the proxies.
        runtimes: run the services, by the kind that a service names.
        keep_services: on `request_stop` leave the services running that can do without the agent,
            for the next agent to take up.
        dead_man: the countdown without contact.
        power_off: stops the instance when that has run out and the services are down.
        booted_at: the monotonic clock when the instance booted, in seconds.
        spec_file: keeps the last spec, so that the next boot need not wait for a proxy.
        status_file: keeps the last report, for `qwenctl-node status`.
        disk: the path whose free space is reported.
        settings_problem: says why the settings, as they are now, cannot be used; empty: they can.
    """

    def __init__(
        self,
        *,
        gpu: str,
        boot_id: str,
        client: ProxyClient,
        runtimes: Mapping[str, Runtime],
        dead_man: DeadMan,
        power_off: Callable[[], None],
        spec_file: Path,
        status_file: StatusFile,
        disk: str,
        booted_at: float = 0.0,
        keep_services: bool = False,
        settings_problem: Callable[[], str] = str,
    ) -> None:
        self._client = client
        self._runtimes = runtimes
        self._keep_services = keep_services
        self._settings_problem = settings_problem
        self._dead_man = dead_man
        self._power_off = power_off
        self._booted_at = booted_at
        self._disk = disk
        self._gpus = GpuWatch()
        self._who = (gpu, boot_id)
        self._spec_file = spec_file
        self._status_file = status_file
        self._conversation = Conversation(gpu, boot_id, self, booted_at=booted_at)
        self._trouble = Trouble()

        self._spec: Spec | None = None
        self._lock = threading.Lock()
        self._services: dict[str, Supervisor] = {}
        self._leaving: list[Supervisor] = []
        self._progress: dict[str, Progress] = {}
        self._notice: Notice | None = None
        self._drained = False
        self._stopping = False

        # Unlike an Event, a SimpleQueue may be used in a signal handler.
        self._pokes: queue.SimpleQueue[Literal["stop", "reload", "look"]] = queue.SimpleQueue()
        self._tried = False
        self._said_stopping = threading.Event()
        self._answered = threading.Event()
        self._broken = False

    # ---------------------------------------------------------------- life

    def request_stop(self) -> None:
        """Have `run` end; may be called from a signal handler and more than once."""
        self._pokes.put("stop")

    def run(self) -> int:
        """Work until stopped or without contact for too long; return the exit code."""
        self._status_file.begin(*self._who)
        # With no time left nobody wants the services, as after a stop that failed.
        if self._dead_man.remaining > 0:
            self._run_last_spec()
        talk = threading.Thread(target=self._talk_or_end, name="talk", daemon=True)
        talk.start()
        code = self._wait_for_end()
        if code == EXIT_POWER_OFF:
            log.warning(
                "%s, and nothing is running: this instance stops itself", self._dead_man.silence
            )
        if code == EXIT_RELOAD or (self._keep_services and code == 0):
            self._leave_services()
        self._stopping = True
        self._conversation.bring_forward()
        for supervisor in self._everything():
            supervisor.stop()
        patience = time.monotonic() + STOP_PATIENCE
        for supervisor in self._everything():
            # A service that cannot be ended must not keep the instance on.
            supervisor.join(patience - time.monotonic() if code == EXIT_POWER_OFF else None)
        if code == 0 and self._conversation.in_contact:
            self._said_stopping.wait(2.0)
        self._conversation.end()
        talk.join(1.0)  # a message may be under way that no proxy answers
        if code == EXIT_POWER_OFF:
            self._power_off()
        return 1 if self._broken else code

    def _run_last_spec(self) -> None:
        """Run what ran last, or came with the image, until a proxy says otherwise."""
        if spec := read_spec(self._spec_file):
            self._apply(spec)
        elif self._spec_file.exists():
            log.warning("%s is of no use", self._spec_file)

    def _leave_services(self) -> None:
        """Leave the services running that can do without the agent. If all can, no stop is reported:
        an upgrade of the agent then interrupts no work."""
        supervisors = self._everything()
        if supervisors and all(supervisor.can_be_left for supervisor in supervisors):
            self._conversation.end()
        for supervisor in supervisors:
            supervisor.leave()

    def _wait_for_end(self) -> int:
        """Block until asked to stop (0) or to begin anew (`EXIT_RELOAD`), or until the dead-man's
        switch fires (`EXIT_POWER_OFF`)."""
        while True:
            # An agent that starts after a long pause first tries to reach a proxy.
            pause = self._dead_man.remaining if self._tried else None
            if pause is not None and pause <= 0:
                if self._active == 0 and not self._seems_busy() and self._is_unneeded():
                    return EXIT_POWER_OFF
                pause = 0.5
            try:
                # Not for long: a signal that another thread received, as happens after SIGCONT, is
                # seen only when this thread wakes.
                poke = self._pokes.get(timeout=min(LOOK, pause or LOOK))
                if poke != "look":
                    return 0 if poke == "stop" else EXIT_RELOAD
            except queue.Empty:
                continue

    def _seems_busy(self) -> bool:
        """Whether something generates that no supervisor has reported: those of an agent that has
        just been started have not asked yet."""
        spec = self._spec or read_spec(self._spec_file)
        step = self._dead_man.limit / 10
        doubted = {running.service.name for running in self._everything() if running.doubted}
        found = busy_for_a_while(
            spec, self._gpus, lambda pause: time.sleep(min(pause, step)), doubted=doubted
        )
        if found:
            self._trouble.note(f"{self._dead_man.silence}, but there is work going on: {found}")
        return bool(found)

    def _is_unneeded(self) -> bool:
        """Whether nobody needs the instance even now. A proxy in contact is asked once more: it may
        have forwarded a request since the last report."""
        if self._dead_man.remaining <= 0 and self._conversation.in_contact:
            self._answered.clear()
            self._conversation.bring_forward()
            self._answered.wait(ANSWER_PATIENCE)
        return self._active == 0 and self._dead_man.remaining <= 0

    @property
    def _active(self) -> int:
        return sum(supervisor.active for supervisor in self._everything())

    def _everything(self) -> list[Supervisor]:
        with self._lock:
            return [*self._services.values(), *self._leaving]

    # ---------------------------------------------------------------- conversation

    def _talk_or_end(self) -> None:
        try:
            while self._conversation.wait_until_due():
                self._send()
                if not self._tried:
                    self._tried = True
                    self._pokes.put("look")
        except BaseException:
            # A node that runs on without reports is worse than a node that starts again.
            self._broken = True
            self.request_stop()
            raise

    def _send(self) -> None:
        """Send the message that is due, and obey the answer."""
        stopping = self._stopping
        message = self._conversation.next_message()
        if isinstance(message, Report):
            self._status_file.note(message)
        path = REPORT_PATH if isinstance(message, Report) else HELLO_PATH
        try:
            reply = self._client.send(path, message)
        except NotUnderstood as reason:
            self._conversation.not_understood(str(reason))
            return
        except NoContact as reason:
            self._conversation.no_contact(str(reason))
            return
        self._conversation.answered(reply)
        if stopping:
            self._said_stopping.set()
        if reply.accepted:
            self._dead_man.contact(reply.answer.unneeded_for)
            self._answered.set()
            if not self._stopping:
                self._obey(reply.answer)

    def _obey(self, answer: Answer) -> None:
        if answer.spec is not None:
            self._apply(answer.spec)
        for command in answer.commands:
            self._carry_out(command)

    # ---------------------------------------------------------------- gpu_node.conversation.Node

    @property
    def spec(self) -> Spec | None:
        return self._spec

    def status(self) -> NodeStatus:
        with self._lock:
            notice = self._notice
            services = tuple(supervisor.view for supervisor in self._services.values())
            # Of several that load, the first with progress, so that it does not jump between them.
            waiting = [service.name for service in services if service.state != "ready"]
            known = [self._progress[name] for name in waiting if name in self._progress]
        return NodeStatus(
            services=services,
            active=self._active,
            progress=known[0] if known else Progress(),
            resources=read_resources(self._disk, self._gpus),
            interruption=(
                Interruption(action=notice.action, seconds_left=notice.at - time.monotonic())
                if notice
                else None
            ),
            stopping=self._stopping or self._drained,
        )

    # ---------------------------------------------------------------- services

    def _apply(self, spec: Spec) -> None:
        """Run what the spec says: leave what is unchanged, replace what changed, stop the rest."""
        if spec == self._spec or self._would_interrupt(spec):
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
        services = {
            service.name: wanted.get(service.name) or self._start(service, spec)
            for service in spec.services
        }
        with self._lock:
            self._services = services
        self._conversation.bring_forward()
        if self._stopping:  # asked for in the meantime
            for running in self._everything():
                running.stop()

    def _keep(self, spec: Spec) -> None:
        try:
            write_private(self._spec_file, spec.model_dump_json())
        except OSError as error:  # a full disk must not end the node
            log.warning("cannot write %s: %s", self._spec_file, error.strerror)

    def _would_interrupt(self, spec: Spec) -> bool:
        """Whether the spec would replace or end a service that is generating. The proxy sends it
        again with each answer, until it is applied."""
        wanted = {service.name: service for service in spec.services}
        for name, running in self._services.items():
            if running.active and not (name in wanted and running.takes(wanted[name])):
                self._trouble.note(f"spec {spec.version} waits until {name} has finished its work")
                return True
        return False

    def _start(self, service: Service, spec: Spec) -> Supervisor:
        # What still holds the port or the name goes first.
        after = [
            old
            for old in self._leaving
            if old.service.name == service.name or old.service.port == service.port
        ]
        with self._lock:
            self._progress.pop(service.name, None)
        runtime = self._runtimes[service.runtime]
        return Supervisor(
            service, runtime, self, spec.heartbeat, after, self._gpus, patience=spec.load
        )

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
            self._conversation.repeat_log()
        elif command.verb == "reload":
            if problem := self._settings_problem():
                log.error("not reloaded: %s", problem)
            else:
                self._pokes.put("reload")
        elif (old := self._services.get(command.service)) is None or self._spec is None:
            log.warning("there is no service %r", command.service)
        elif command.verb == "stop-service":
            old.stop()
        else:
            self._drained = False
            self._let_go(old)
            fresh = self._start(old.service, self._spec)
            with self._lock:
                self._services[command.service] = fresh
        self._conversation.bring_forward()

    # ---------------------------------------------------------------- gpu_node.machine.interruption

    def interrupted(self, notice: Notice) -> None:
        """Report at once that the cloud takes this instance back. From any thread."""
        if notice.at < self._booted_at:
            log.info("a spot interruption notice from before this boot is ignored")
            return
        left = max(0.0, notice.at - time.monotonic())
        log.warning("the cloud takes this instance back (%s) in %.0f s", notice.action, left)
        self._notice = notice
        self._conversation.bring_forward()

    # ---------------------------------------------------------------- gpu_node.services.supervisor.Listener

    def changed(self) -> None:
        self._conversation.bring_forward()

    def progressed(self, service: str, progress: Progress) -> None:
        with self._lock:
            if progress == self._progress.get(service):
                return
            self._progress[service] = progress
        self._conversation.bring_forward(PROGRESS_INTERVAL)

    def logged(self, service: str, text: str) -> None:
        with self._lock:
            loading = any(s.view.state != "ready" for s in self._services.values())
        self._conversation.log_line(f"{service}: {text}"[:4000], hurry=loading)
