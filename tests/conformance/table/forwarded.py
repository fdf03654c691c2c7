"""What the node is told of the client: by its peer, and by a trusted proxy in front (RFC 7239)."""

from tests.conformance.case import FROM_CLIENT, HOST, Case, Got, Headers, Value, passes, raw

EVERYWHERE = ("direct", "nginx-gate", "nginx-tls", "caddy-gate", "caddy-tls")


def told(
    name: str,
    *lines: str,
    on: tuple[str, ...] = EVERYWHERE,
    rfc: str = "7239 §8.1",
    **expected: Value,
) -> Case:
    """A GET with these lines; ``expected``: what the node gets, with underscores for hyphens."""
    headers: Headers = {key.replace("_", "-"): value for key, value in expected.items()}
    return Case(
        name,
        rfc,
        raw("GET /x HTTP/1.1", HOST, *lines, "", ""),
        passes(Got("GET", "/x", headers=headers)),
        on=on,
    )


TRUSTED = ("trusted",)

FORWARDED = [
    told("the client's address and scheme", x_forwarded_for=FROM_CLIENT, x_forwarded_proto="http"),
    told("X-Forwarded-For of a client", "X-Forwarded-For: 192.0.2.66", x_forwarded_for=FROM_CLIENT),
    told(
        "X-Forwarded-For of a client, in several lines",
        "X-Forwarded-For: 192.0.2.66",
        "x-forwarded-for: 192.0.2.67",
        x_forwarded_for=FROM_CLIENT,
    ),
    told("X-Forwarded-Proto of a client", "X-Forwarded-Proto: https", x_forwarded_proto="http"),
    told(
        "X-Forwarded-Host of a client",
        "X-Forwarded-Host: evil.example",
        on=("direct",),
        x_forwarded_host="gpu.example",
    ),
    told(
        "Forwarded of a client",
        "Forwarded: for=192.0.2.66;host=evil.example;proto=https",
        forwarded=None,
        x_forwarded_for=FROM_CLIENT,
    ),
    told(
        "X-Real-IP of a client",
        "X-Real-IP: 192.0.2.66",
        on=("direct", "caddy-gate", "caddy-tls"),
        x_real_ip=None,
    ),
    Case(
        "a name with underscores, which many servers read as hyphens",
        "7239 §8.1",
        raw("GET /x HTTP/1.1", HOST, "X_Forwarded_For: 192.0.2.66", "", ""),
        passes(Got("GET", "/x", headers={"x-forwarded-for": FROM_CLIENT, "x_forwarded_for": None})),
        on=("direct", "nginx-gate", "nginx-tls", "caddy-tls"),
    ),
    told(
        "Connection that names X-Forwarded-For",
        "Connection: x-forwarded-for, x-forwarded-proto",
        x_forwarded_for=FROM_CLIENT,
        x_forwarded_proto="http",
    ),
    told(
        "a trusted proxy's client",
        "X-Forwarded-For: 203.0.113.7",
        on=TRUSTED,
        x_forwarded_for="203.0.113.7, 127.0.0.1",
    ),
    told(
        "a trusted proxy's chain",
        "X-Forwarded-For: 192.0.2.1, 203.0.113.7",
        on=TRUSTED,
        x_forwarded_for="192.0.2.1, 203.0.113.7, 127.0.0.1",
    ),
    told(
        "a trusted proxy's chain, in several lines",
        "X-Forwarded-For: 192.0.2.1",
        "X-Forwarded-For: 203.0.113.7",
        on=TRUSTED,
        x_forwarded_for="192.0.2.1, 203.0.113.7, 127.0.0.1",
    ),
    told(
        "a trusted proxy's IPv6 client",
        "X-Forwarded-For: 2001:db8::7",
        on=TRUSTED,
        x_forwarded_for="2001:db8::7, 127.0.0.1",
    ),
    told(
        "a trusted proxy's scheme",
        "X-Forwarded-Proto: https",
        on=TRUSTED,
        x_forwarded_proto="https",
    ),
    told(
        "a trusted proxy's host",
        "X-Forwarded-Host: gpu.example",
        on=TRUSTED,
        x_forwarded_host="gpu.example",
    ),
    told(
        "a trusted proxy that says nothing",
        on=TRUSTED,
        x_forwarded_for="127.0.0.1",
        x_forwarded_proto="http",
        x_forwarded_host="gpu.example",
    ),
    told(
        "the scheme of a trusted proxy's Forwarded",
        "Forwarded: for=203.0.113.7;proto=https;host=gpu.example",
        on=TRUSTED,
        rfc="7239 §5",
        x_forwarded_proto="https",
    ),
]
