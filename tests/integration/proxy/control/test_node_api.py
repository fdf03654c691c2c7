"""Node messages while the store does not answer."""

from __future__ import annotations

import json
import time

import pytest

from proxy.control.node_api import NodeApi
from proxy.http.metrics import Metrics
from qwenctl.config.deployment import Config
from qwenctl.protocol.messages import REPORT_PATH, Report
from qwenctl.protocol.signing import sign_message
from tests.integration.proxy.parts import SECRET, gone
from tests.simulation.puppets import GPU


@pytest.mark.parametrize(("in_flight", "status"), [(1, 200), (0, 503)])
def test_a_report_to_a_proxy_without_store(in_flight: int, status: int) -> None:
    config = Config.model_validate({"node_secret": SECRET, "gpu": {GPU: {}}})
    api = NodeApi(config, gone(), Metrics(), lambda _: in_flight)
    body = Report(gpu=GPU, boot_id="boot-0001", start_seq=7, state="ready").model_dump_json()
    signed = sign_message(SECRET, "POST", REPORT_PATH, body.encode(), now=time.time())
    assert api.refuse_forged(REPORT_PATH, body.encode(), signed) is None
    got, answer, _ = api.record(REPORT_PATH, body.encode(), signed)
    assert got == status
    assert status != 200 or json.loads(answer)["start_seq"] == 7
    forged = {**signed, "X-Qwenctl-Signature": "0" * 64}
    refusal = api.refuse_forged(REPORT_PATH, body.encode(), forged)
    assert refusal
    assert refusal[0] == 401
