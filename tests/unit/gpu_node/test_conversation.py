from __future__ import annotations

import pytest

from gpu_node.client import Reply
from gpu_node.conversation import Conversation, NodeStatus, node_state
from qwenctl.protocol.messages import Answer, Hello, Progress, Report, Resources, ServiceState, Spec

SPEC = Spec(version="1", services=(), heartbeat=5.0)


def service(state: str, error: str = "") -> ServiceState:
    return ServiceState(name="a", port=1, state=state, error=error)  # type: ignore[arg-type]


class Node:
    """A node, its clock, and what its conversation says."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.spec: Spec | None = None
        self.services = (service("starting"),)
        self.conversation = Conversation(
            "main", "boot-0001", self, booted_at=990.0, clock=lambda: self.now
        )

    def status(self) -> NodeStatus:
        return NodeStatus(self.services, 0, Progress(phase="weights"), Resources(), None, False)

    def say(self, status: int = 200, **answer: object) -> Hello | Report:
        """Send the message that is due, and answer it."""
        said = self.conversation.next_message()
        answered = Answer.model_validate({"server_time": 0, **answer})
        self.conversation.answered(Reply(status, answered))
        if status == 200 and answered.spec:
            self.spec = answered.spec
        return said

    def due_in(self) -> float:
        return max(0.0, self.conversation.due_in)


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def running() -> Node:
    node = Node()
    node.say(start_seq=7, spec=SPEC)
    return node


def test_the_worst_service_is_the_nodes_state() -> None:
    ready, starting = service("ready"), service("starting")
    failed, crashed = service("failed", "it broke"), service("crashed", "once")
    assert node_state((ready, ready), stopping=False) == ("ready", "")
    assert node_state((ready, starting), stopping=False) == ("loading", "")
    assert node_state((ready, crashed), stopping=False) == ("loading", "once")
    assert node_state((starting, failed), stopping=False) == ("failed", "it broke")
    assert node_state((ready, failed), stopping=True) == ("stopping", "")
    assert node_state((), stopping=False) == ("ready", "")


def test_a_hello_then_a_report_at_once_then_one_a_heartbeat(node: Node) -> None:
    assert node.due_in() == 0
    hello = node.say(start_seq=7, spec=SPEC)
    assert (type(hello), hello.boot_id, hello.uptime) == (Hello, "boot-0001", 10.0)
    assert node.due_in() == 0
    report = node.say()
    assert isinstance(report, Report)
    assert (report.start_seq, report.spec_version, report.state) == (7, "1", "loading")
    assert (report.boot_id, report.progress.phase) == ("boot-0001", "weights")
    assert node.due_in() == 5.0
    assert node.conversation.in_contact


def test_progress_is_only_told_on_the_way_to_ready(running: Node) -> None:
    running.services = (service("ready"),)
    report = running.say()
    assert isinstance(report, Report)
    assert report.progress == Progress()


def test_the_pause_doubles_until_a_message_is_accepted(node: Node) -> None:
    for pause in (0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0):
        assert isinstance(node.conversation.next_message(), Hello)
        node.conversation.no_contact("refused")
        assert 0.8 * pause - 1e-6 <= node.due_in() <= 1.2 * pause + 1e-6
        node.conversation.bring_forward()
        assert node.due_in() > 0
        node.now += node.due_in()
    assert not node.conversation.in_contact
    node.say(spec=SPEC)
    assert node.due_in() == 0
    node.conversation.no_contact("refused")
    assert node.due_in() < 0.3


def test_a_refused_report_is_due_again_after_a_pause(running: Node) -> None:
    assert isinstance(running.say(403, refused="no"), Report)
    assert 0.1 < running.due_in() < 0.3
    running.now += 1
    assert isinstance(running.say(), Report)


def test_a_proxy_that_does_not_know_the_boot_gets_a_hello(running: Node) -> None:
    running.say(409, hello_again=True)
    assert 0.1 < running.due_in() < 0.3
    assert isinstance(running.say(start_seq=9), Hello)
    report = running.say()
    assert isinstance(report, Report)
    assert report.start_seq == 9


def test_without_a_spec_it_is_a_hello_again_after_a_pause(node: Node) -> None:
    for _ in range(2):
        assert isinstance(node.say(start_seq=7), Hello)
        assert node.due_in() > 0.1


def test_a_change_makes_a_report_due_and_progress_waits_a_little(running: Node) -> None:
    running.say()
    running.conversation.bring_forward(0.2)
    assert running.due_in() == pytest.approx(0.2)
    running.conversation.bring_forward()
    assert running.due_in() == 0


def test_a_change_during_a_report_makes_another_one_due(running: Node) -> None:
    running.conversation.next_message()
    running.conversation.bring_forward()
    running.conversation.answered(Reply(200, Answer(server_time=0)))
    assert running.due_in() == 0


def test_lines_are_told_once_and_kept_if_nobody_takes_them(running: Node) -> None:
    talk = running.conversation
    running.say()
    talk.log_line("one", hurry=False)
    assert running.due_in() == 5.0
    talk.log_line("two", hurry=True)
    assert running.due_in() == pytest.approx(1.0)

    def lines() -> tuple[str, ...]:
        said = talk.next_message()
        assert isinstance(said, Report)
        return said.log

    assert lines() == ("one", "two")
    talk.log_line("three", hurry=False)
    talk.no_contact("refused")
    running.now += 1
    assert lines() == ("one", "two", "three")
    talk.answered(Reply(200, Answer(server_time=0)))
    assert lines() == ()
    talk.repeat_log()
    assert running.due_in() == 0
    assert lines() == ("one", "two", "three")


def test_a_report_holds_as_many_lines_as_fit(running: Node) -> None:
    for number in range(250):
        running.conversation.log_line(f"{number} {'x' * 1000}", hurry=False)
    first, second = running.say(), running.say()
    assert isinstance(first, Report)
    assert isinstance(second, Report)
    assert first.log[0].startswith("50 ")
    assert sum(map(len, first.log)) <= 32 * 1024
    assert int(second.log[0].split()[0]) == 50 + len(first.log)


def test_trouble_is_logged_once_a_minute(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        node.conversation.no_contact("refused")
    assert caplog.text.count("no contact to a proxy: refused") == 1
    node.now += 60
    node.conversation.no_contact("refused")
    assert caplog.text.count("no contact to a proxy: refused") == 2


def test_the_end_wakes_who_waits(running: Node) -> None:
    assert running.conversation.wait_until_due()
    running.conversation.end()
    assert not running.conversation.wait_until_due()
    assert not running.conversation.in_contact


def test_what_it_could_not_read_is_in_the_next_messages_until_it_can(node: Node) -> None:
    node.say(start_seq=7)
    node.conversation.not_understood("an answer " + 400 * "x")
    said = node.say(start_seq=7, spec=SPEC)
    assert said.not_understood.startswith("an answer x")
    assert node.say().not_understood == ""
