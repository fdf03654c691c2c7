"""The routes of servers that people put behind the proxy: which class each is of, by its preset.

docs/servers.toml lists them by server and version, for the table of docs/activity.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qwenctl.core.presets import PRESETS
from qwenctl.core.rules import Activity, RuleTable

JSON = {"content-type": "application/json; charset=utf-8"}
KEY = {"authorization": "Bearer qk_0123"}
X_KEY = {"x-api-key": "qk_0123"}
OTHER_KEY = {"authorization": "Bearer sk-0123"}

RULES = {name: RuleTable(rules) for name, rules in PRESETS.items()}

INFERENCE = {
    "openai": """
    POST /rerank /v1/rerank /v2/rerank /reranking /v1/reranking /score /v1/score /pooling /classify
    POST /generative_scoring /invocations /tokenize /v1/tokenize /detokenize /chat_tokenize /decode
    POST /v1/audio/transcriptions /v1/audio/translations /v1/audio/speech /audio/transcriptions
    POST /v1/responses /responses /v1/messages /v1/messages/count_tokens /responses/input_tokens
    POST /v1/chat/completions /v1/chat/completions/batch /chat/completions /v1/completions /v2/embed
    POST /completion /completions /infill /embedding /embeddings /v1/embeddings /apply-template
    POST /generate /generate_stream /vertex /vertex_generate /encode /v1/encode /get_ppl /embed
    POST /embed_all /embed_sparse /similarity /predict /predict_tokens /cohere/v2/chat
    POST /inference/v1/generate /v2/models/qwen/infer /v2/models/qwen/versions/1/infer
    POST /v1/load_lora_adapter /openai/v1/chat/completions /chat/completions/input_tokens /inference
    POST /api/generate /api/chat /api/embed /api/embeddings /api/pull /api/push /api/create
    POST /api/blobs/sha256:00ff /rerank/
    PUT /generate /classify /encode /v1/rerank
    """,
    "gradio": """
    POST /gradio_api/run/predict /gradio_api/run/predict/ /run/predict /gradio_api/api/predict
    POST /api/predict /gradio_api/call/chat /gradio_api/call/v2/chat /call/chat /queue/join
    POST /gradio_api/queue/join /gradio_api/upload /upload /gradio_api/component_server
    POST /gradio_api/process_recording /gradio_api/mcp /gradio_api/mcp/ /gradio_api/mcp/http
    POST /gradio_api/mcp/messages/
    """,
    "open-webui": """
    POST /api/chat/completions /api/v1/chat/completions /api/embeddings /api/v1/embeddings
    POST /api/message /api/v1/messages /api/v1/messages/count_tokens /api/message/count_tokens
    POST /ollama/api/chat /ollama/api/generate/0 /ollama/api/embed /ollama/api/embeddings/1
    POST /ollama/v1/chat/completions/0 /ollama/v1/completions /ollama/v1/embeddings
    POST /ollama/v1/messages /ollama/v1/responses /openai/chat/completions /openai/responses
    POST /openai/audio/speech /api/v1/images/generations /api/v1/images/edit
    POST /api/v1/audio/transcriptions /api/v1/audio/speech /api/v1/tasks/moa/completions
    """,
}

IN_USE = {
    "openai": """
    POST /v1/responses/resp_1/cancel /v1/unload_lora_adapter /v1/chat/completions/control
    POST /v2/repository/models/qwen/load
    GET /v1/responses/resp_1 /v1/stream/c1 /v1/videos/video_1
    DELETE /v1/stream/c1 /api/delete /v1/responses/resp_1
    """,
    "gradio": """
    GET /gradio_api/call/chat/0123 /gradio_api/queue/data /queue/data /gradio_api/upload_progress
    POST /gradio_api/stream/0123 /gradio_api/stream/0123/close
    """,
    "open-webui": """
    POST /api/v1/tasks/title/completions /api/v1/retrieval/process/file /api/v1/files/
    POST /ollama/api/pull /api/tasks/stop/1 /api/chat/completed
    DELETE /api/v1/chats/1
    """,
}

NO_USE = {
    "openai": """
    GET / /v1/models /v1/models/qwen /models /health /v1/health /health_generate /ping /version
    GET /metrics /load /server_info /get_server_info /tokenizer_info /info /props /slots
    GET /api/tags /api/ps /api/version /api/status /v1/streams /models/sse /is_sleeping /terminate
    GET /rerank /generate /invocations
    HEAD / /api/blobs/sha256:00ff
    POST /ping /health /api/show /api/me /sleep /wake_up /reset_prefix_cache /flush_cache
    POST / /api/v1/pods /login.php /api/v1/generate /foo/rerank /scores /x/v1/chat /generate/x
    """,
    "gradio": """
    GET /config /gradio_api/info /info /gradio_api/openapi.json /gradio_api/mcp/ /gradio_api/mcp/sse
    GET /gradio_api/mcp/schema /gradio_api/startup-events /gradio_api/queue/status
    GET /gradio_api/heartbeat/0123 /gradio_api/app_id /monitoring/summary
    POST /gradio_api/cancel /gradio_api/reset /login /gradio_api/mcp/x /mcp/
    DELETE /gradio_api/mcp/
    """,
    "open-webui": """
    GET /api/models /api/config /api/version /health /ready /ollama/api/tags /api/events
    GET /api/chat/completions
    """,
}


def listed(table: dict[str, str]) -> list[tuple[str, str, str]]:
    """The rows of a table: preset, method and path."""

    def rows() -> Iterator[tuple[str, str, str]]:
        for preset, text in table.items():
            for line in text.split("\n"):
                method, *paths = line.split() or [""]
                yield from ((preset, method, path) for path in paths)

    return list(rows())


def activity(preset: str, method: str, path: str, headers: dict[str, str]) -> Activity:
    return RULES[preset].classify_sent(method, path, headers)


@pytest.mark.parametrize(("preset", "method", "path"), listed(INFERENCE))
@pytest.mark.parametrize("headers", [{}, JSON, {"content-type": "multipart/form-data; boundary=x"}])
def test_what_needs_the_model_wakes(
    preset: str, method: str, path: str, headers: dict[str, str]
) -> None:
    assert activity(preset, method, path, headers) is Activity.WAKES


@pytest.mark.parametrize(("preset", "method", "path"), listed(IN_USE))
def test_what_belongs_to_running_work_keeps_on(preset: str, method: str, path: str) -> None:
    assert activity(preset, method, path, {}) is Activity.KEEPS_ON


@pytest.mark.parametrize(("preset", "method", "path"), listed(NO_USE))
def test_what_monitors_lists_and_scanners_send_is_no_use(
    preset: str, method: str, path: str
) -> None:
    assert activity(preset, method, path, {}) is Activity.PASSIVE


@pytest.mark.parametrize("preset", ["openai", "gradio"])
@pytest.mark.parametrize("path", ["/", "/custom", "/collective_rpc", "/v9", "/copy"])
def test_a_route_that_no_rule_names_is_not_cut(preset: str, path: str) -> None:
    """A JSON body is answered by somebody's own code, perhaps for long."""
    assert activity(preset, "POST", path, JSON) is Activity.KEEPS_ON
    assert activity(preset, "POST", path, {}) is Activity.PASSIVE


@pytest.mark.parametrize("path", ["/api/show", "/api/me", "/health", "/ping"])
def test_a_client_that_lists_models_does_not_keep_it_on(path: str) -> None:
    assert activity("openai", "POST", path, JSON) is Activity.PASSIVE


@pytest.mark.parametrize("path", ["/config", "/config/", "/gradio_api/info", "/info"])
def test_a_program_with_a_key_that_opens_a_gradio_app_wakes_it(path: str) -> None:
    for headers in (KEY, X_KEY, {"authorization": "bearer  qk_0123"}):
        assert activity("gradio", "GET", path, headers) is Activity.WAKES
    for headers in ({}, OTHER_KEY, {"cookie": "qk_0123"}, {"x-api-key": "sk-0123"}):
        assert activity("gradio", "GET", path, headers) is Activity.PASSIVE
    assert activity("gradio", "HEAD", path, KEY) is Activity.PASSIVE


@pytest.mark.parametrize("path", ["/", "/gradio_api/heartbeat/0123", "/gradio_api/mcp/sse"])
def test_a_key_makes_no_other_get_wake(path: str) -> None:
    assert activity("gradio", "GET", path, KEY) is Activity.PASSIVE
