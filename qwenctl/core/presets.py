"""Rule tables for each kind of WebUI (see `qwenctl.core.rules`).

They follow recorded requests of Chromium (docs/activity.md): an idle Gradio tab holds one
``GET /gradio_api/heartbeat/…`` with a data event every 15 s; a message is ``POST …/queue/join``
followed by ``GET …/queue/data``. A module of its own, since commands that only read the state need
no rules, and building them takes time.
"""

from __future__ import annotations

from qwenctl.core.rules import Rule

_BROWSER_NAVIGATION = Rule(
    activity="keeps_on",
    methods=("GET",),
    headers={
        "sec-fetch-mode": "^navigate$",
        "sec-fetch-user": r"^\?1$",
        "sec-purpose": "^$",
        "purpose": "^$",
    },
)
"""A person opened a page. Only browsers send these headers (https://www.w3.org/TR/fetch-metadata/);
a page that reloads itself lacks Sec-Fetch-User, a prefetch adds a purpose."""

_LAST = (
    _BROWSER_NAVIGATION,
    Rule(activity="passive", methods=("GET", "HEAD", "OPTIONS")),
    Rule(activity="messages", methods=("WEBSOCKET",)),
)

_WRITES = ("POST", "PUT", "PATCH", "DELETE")

_JSON_KEEPS_ON = Rule(
    activity="keeps_on", methods=_WRITES, headers={"content-type": "(?i)^application/json"}
)
"""A route that no rule names may run long; it must not be cut. Most scanners send no JSON."""

_CLIENT_OPENS_APP = tuple(
    Rule(
        activity="wakes",
        methods=("GET",),
        path=r"^(/config|(/gradio_api)?/info)/?$",
        headers={name: pattern},
    )
    for name, pattern in (("authorization", "(?i)^bearer +qk_"), ("x-api-key", "^qk_"))
)
"""With one of our keys, which no browser sends by itself: ``gradio_client`` begins so."""

_GRADIO = (
    # A tab whose answer broke off polls app_id until the app is back (Gradio 6 then reloads).
    Rule(activity="passive", path=r"^(/gradio_api)?/(heartbeat|monitoring|app_id)(/|$)"),
    Rule(
        activity="wakes",
        methods=("POST",),
        # One segment after run, call and api: scanners post to /api/v1/… and deeper.
        path=r"^(/gradio_api)?/((run|call(/v2)?|api)/[^/]+|queue/join|upload|component_server"
        r"|process_recording)/?$",
    ),
    # MCP (https://modelcontextprotocol.io/specification): each call is a POST, to mcp/ or, by the
    # older transport, to mcp/messages/. Its GET is a stream that an idle client holds open.
    Rule(activity="wakes", methods=("POST",), path=r"^/gradio_api/mcp(/|/http/?|/messages/?)?$"),
    *_CLIENT_OPENS_APP,
    Rule(
        activity="keeps_on",
        methods=("GET",),
        path=r"^(/gradio_api)?/(queue/data|call|upload_progress)(/|$)",
    ),
    # Pieces of a microphone or camera stream that is being answered.
    Rule(activity="keeps_on", methods=("POST",), path=r"^(/gradio_api)?/stream/"),
    _JSON_KEEPS_ON,
    *_LAST,
)

_ANSWERS = (
    # A packet of engine.io (4) and of socket.io: an event, 2, or one with attachments, 5-.
    r"(^|\x1e)4(2|5\d+-)\d*\["
    r'("(chat-)?events"|"(events:channel|channel-events)".*"type": ?"message)'
)
"""The events of Open WebUI's socket with which an answer arrives (``backend/open_webui/socket/main.py``
of 0.5 to 0.6: ``chat-events``, later ``events``; in channels each new or changed message). An idle
tab gets ``2`` (ping), ``usage``, ``user-list``, ``typing`` and the like.
https://socket.io/docs/v4/engine-io-protocol/, https://socket.io/docs/v4/socket-io-protocol/"""

_OPEN_WEBUI = (
    # The answer to a question comes here, over WebSocket or long polling; so does all chatter.
    Rule(
        activity="passive",
        methods=("GET", "WEBSOCKET"),
        path=r"^/ws/socket\.io",
        kept_on_by=_ANSWERS,
    ),
    Rule(activity="passive", path=r"^/ws/socket\.io"),
    Rule(activity="passive", path=r"^/(health|api/(config|version|usage))(/|$)"),
    Rule(
        activity="wakes",
        methods=("POST",),
        path=r"^/(api|ollama|openai)(/api)?(/v\d+)?/(chat/completions|completions|responses|chat"
        r"|generate|embed|embeddings|rerank|messages?(/count_tokens)?|images/(generations|edits?)"
        r"|audio/(speech|transcriptions|translations)|tasks/moa/completions)(/\d+)?/?$",
    ),
    Rule(activity="keeps_on", methods=("POST", "PUT", "PATCH", "DELETE")),
    *_LAST,
)

_OPENAI = (
    Rule(activity="passive", path=r"^/(health|ping|version|metrics)$"),
    # Model cards, which clients of Ollama ask for as they list its models; who is signed in.
    Rule(activity="passive", methods=("POST",), path=r"^/api/(show|me|signout)/?$"),
    # What ends or concerns only work that is running.
    Rule(
        activity="keeps_on",
        methods=("POST",),
        path=r"^/v\d+/(responses/[^/]+/cancel|chat/completions/control|unload_lora_adapter"
        r"|repository/.*)/?$",
    ),
    Rule(
        activity="wakes",
        methods=("POST", "PUT"),
        path=r"^(/(anthropic|cohere|inference|openai))?/v\d+/",
    ),
    # vLLM, SGLang, TGI, TEI, LMDeploy, llama.cpp (docs/servers.toml has their routes).
    Rule(
        activity="wakes",
        methods=("POST", "PUT"),
        path=r"^/(generate(_stream)?|completions?|chat/completions|responses|infill"
        r"|embed(_all|_sparse)?|embeddings?|encode|pooling|rerank(ing)?|score|similarity|classify"
        r"|generative_scoring|get_ppl|invocations|predict(ions|_tokens)?|vertex(_generate)?|inference"
        r"|audio/(speech|transcriptions|translations)"
        r"|tokenize|detokenize|decode|chat_tokenize|apply-template"
        r"|(chat/completions|responses)/input_tokens)/?$",
    ),
    # Ollama; llama.cpp and SGLang answer to some of these, too.
    Rule(
        activity="wakes",
        methods=("POST",),
        path=r"^/api/(generate|chat|embed|embeddings|pull|push|create|blobs/[^/]+)/?$",
    ),
    # An answer that is made in the background, or read again from its beginning.
    Rule(activity="keeps_on", methods=("GET",), path=r"^/v\d+/(responses|stream|videos)/[^/]"),
    _JSON_KEEPS_ON,
    Rule(activity="keeps_on", methods=("DELETE",), path=r"^/(v\d+|api)/"),
    *_LAST,
)

_GENERIC = (
    # Scanners post to every public address and any path, so a request wakes only if it comes from a
    # page's script or form (each wake is checked to be same-origin), has one of our keys, or a body
    # in JSON; scanners send forms and XML.
    Rule(activity="wakes", methods=_WRITES, headers={"sec-fetch-site": "^same-origin$"}),
    Rule(activity="wakes", methods=_WRITES, headers={"origin": "^https?://"}),
    Rule(activity="wakes", methods=_WRITES, headers={"authorization": "(?i)^bearer +qk_"}),
    Rule(activity="wakes", methods=_WRITES, headers={"x-api-key": "^qk_"}),
    Rule(activity="wakes", methods=_WRITES, headers={"content-type": "(?i)^application/json"}),
    Rule(activity="keeps_on", methods=_WRITES),
    *_LAST,
)

PRESETS: dict[str, tuple[Rule, ...]] = {
    "gradio": _GRADIO,
    "open-webui": _OPEN_WEBUI,
    "openai": _OPENAI,
    "generic": _GENERIC,
}
