"""Make the service tables of ready-made workloads, such as ``workload = "qwen3-vl-webui"``.

They are the ``[[gpu.NAME.service]]`` tables that a person would write. A table of the file with the
same name changes single keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

CACHE = "/var/lib/qwenctl-models"
"""Where models are kept on the node: a directory of its own disk, or a mounted one."""

_HF_HOME = "/root/.cache/huggingface"

PRESET_OF = {
    "qwen3-vl-webui": "gradio",
    "vllm-openai": "openai",
    "open-webui+vllm": "open-webui",
}
"""The rule table that fits: what counts as use."""

_SHARED = {"shm_size": "8g"}
"""vLLM's processes share memory, and Docker's own 64 MiB are too little for that."""

_VLLM_METRICS = {
    "path": "/metrics",
    "metrics": ["vllm:num_requests_running", "vllm:num_requests_waiting"],
}


def services_of(workload: str, model: str, cache: str = CACHE) -> list[dict[str, Any]]:
    """Make the service tables of a workload; ``custom`` has none.

    Args:
        workload: ``custom``, or one of `PRESET_OF`.
        model: a name on Hugging Face, or a directory on the node.
        cache: the directory on the node that models are kept in.
    """
    if workload == "qwen3-vl-webui":
        return [_qwen_webui(model, cache)]
    if workload == "vllm-openai":
        return [_vllm(model, cache, bind="0.0.0.0")]
    if workload == "open-webui+vllm":
        return [_open_webui(), _vllm(model, cache, bind="127.0.0.1")]
    return []


def _qwen_webui(model: str, cache: str) -> dict[str, Any]:
    """Run Qwen's own image: no entry point, and the script is in its working directory."""
    return {
        "name": "webui",
        "command": [
            *("python", "web_demo_mm.py", "--backend", "vllm", "--checkpoint-path", model),
            *("--server-name", "0.0.0.0", "--server-port", "7860"),
        ],
        "container": {
            "image": "qwenllm/qwenvl:qwen3vl-cu128",
            "port": 7860,
            "volumes": _volumes(model, cache),
            **_SHARED,
        },
        "port": 7860,
        "weights": _weights(model, cache),
        # Work of a tab that was closed shows on the GPU only.
        "activity": {"gpu_percent": 20, "gpu_samples": 3},
        "stop_timeout": 30,
    }


def _vllm(model: str, cache: str, *, bind: str) -> dict[str, Any]:
    return {
        "name": "vllm",
        "command": [model, "--host", "0.0.0.0", "--port", "8000"],
        "container": {
            "image": "vllm/vllm-openai:v0.11.0",
            "port": 8000,
            # The entry point of the image differs from version to version.
            "entrypoint": ["vllm", "serve"],
            "bind": bind,
            "volumes": _volumes(model, cache),
            **_SHARED,
        },
        "port": 8000,
        "weights": _weights(model, cache),
        "readiness": {"path": "/health", "inference": "openai"},
        "activity": _VLLM_METRICS,
        "stop_timeout": 30,
    }


def _open_webui() -> dict[str, Any]:
    return {
        "name": "webui",
        "env": {
            "ENABLE_OLLAMA_API": "false",
            "OPENAI_API_BASE_URL": "http://vllm:8000/v1",
            "OPENAI_API_KEY": "none",
        },
        "container": {
            "image": "ghcr.io/open-webui/open-webui:main",
            "port": 8080,
            "gpus": "none",
            "volumes": ["open-webui:/app/backend/data"],
        },
        "port": 8080,
        "readiness": {"path": "/health"},
    }


def _is_path(model: str) -> bool:
    return model.startswith("/")


def _volumes(model: str, cache: str) -> list[str]:
    return [f"{model}:{model}:ro"] if _is_path(model) else [f"{cache}:{_HF_HOME}"]


def _weights(model: str, cache: str) -> str:
    """Return the directory whose files are read at start: one a model in Hugging Face's cache."""
    return model if _is_path(model) else f"{cache}/hub/models--{model.replace('/', '--')}"


def with_changes(
    made: Sequence[dict[str, Any]], given: Sequence[Any]
) -> tuple[list[Any], list[int | str]]:
    """Merge each made table with the given table of its name; the other given tables follow.

    Returns:
        The tables, and the place of each: its index among those given, or else its name.
    """
    left: dict[int | str, Any] = dict(enumerate(given))
    tables: list[Any] = []
    places: list[int | str] = []
    for table in made:
        same = (
            place
            for place, one in left.items()
            if isinstance(one, Mapping) and one.get("name", "webui") == table["name"]
        )
        place = next(same, table["name"])
        tables.append(_merged(table, left.pop(place, {})))
        places.append(place)
    return [*tables, *left.values()], [*places, *left]


def _merged(table: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(table)
    for key, value in change.items():
        before = merged.get(key)
        inner = isinstance(before, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(before, value) if inner else value  # type: ignore[arg-type]
    return merged
