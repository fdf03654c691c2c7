"""Where a front goes its own way, before or after anything of ours, and what fails today."""

from collections.abc import Mapping

READS_ITSELF: Mapping[str, tuple[str, ...]] = {
    "nginx": (
        "targets: line with a byte over 127",
        "targets: line with a fragment",
        "targets: line without a version",
        "targets: line with version 1.10",
        "targets: method that nobody knows",
        "targets: host with a user",
        "targets: host that is not the target's",
        "hop-by-hop: what Connection names",
        "hop-by-hop: what Connection names, in several lines",
        "hop-by-hop: a name of every kind of byte",
        "interim: hints of the node",
        "interim: hints of the node, in two segments",
        "interim: hints of the node for HTTP/1.0",
        "trailers: a trailer that is a length",
        "trailers: a trailer that is a coding",
        "answers: a header of 20 KiB",
        "connections: whose client has no more to say",
        "connections: whose client has no more to say, after a body",
        "http10: HTTP/0.9",
    ),
    "nginx-gate": (
        "hop-by-hop: Proxy-Connection",
        "hop-by-hop: what an answer's Connection names",
        "hop-by-hop: an answer's Upgrade",
        "interim: 101 of the node, for which nobody asked",
        "answers: that is no HTTP",
        "answers: with lengths that differ",
        "answers: with a length that is none",
    ),
    "caddy": (
        "targets: method that nobody knows",
        "targets: method in lower case",
        "targets: method CONNECT",
        "targets: line of GET *",
        "targets: line with an authority alone",
        "targets: line with a fragment",
        "targets: line with a byte over 127",
        "targets: line of HTTP/2",
        "targets: host on a folded line",
        "targets: host that is not the target's",
        "targets: host of a target with a user",
        "hop-by-hop: Connection that names Cookie",
        "hop-by-hop: an answer's coding of content",
        "interim: an expectation of HTTP/1.0",
        "interim: hints of the node for HTTP/1.0",
        "interim: 101 of the node, for which nobody asked",
        "interim: a final answer instead of 100",
        "answers: cut, in chunks",
        "answers: cut, in a chunk",
        "answers: with a chunk that is none",
        "connections: whose client has no more to say",
        "connections: whose client has no more to say, after a body",
    ),
}
"""By plane or front: rows that it decides itself. What it passes on may be read in one way only."""

UPGRADES = "Caddy passes on an upgrade that is none to WebSocket, nginx its HTTP2-Settings"
GATES = ("nginx-gate", "caddy-gate")

FAILS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "interim: hints of the node": (("direct", "caddy-tls"), "103 is dropped"),
    "interim: hints of the node, in two segments": (("direct", "caddy-tls"), "103 is dropped"),
    "upgrade: to h2c, with a length": (GATES, UPGRADES),
    "upgrade: to h2c, in chunks": (GATES, UPGRADES),
    "upgrade: to h2c, of a GET": (GATES, UPGRADES),
    "upgrade: to h2c, and another request": (GATES, UPGRADES),
    "upgrade: to TLS": (("caddy-gate",), UPGRADES),
    "upgrade: to one of several": (("caddy-gate",), UPGRADES),
    "upgrade: to WebSocket, of a POST": (("caddy-gate",), UPGRADES),
    "upgrade: to WebSocket, of a POST in chunks": (("caddy-gate",), UPGRADES),
    "targets: line with a byte over 127": (("nginx-gate",), "nginx passes such bytes on"),
}
"""By row: the planes on which it fails today, and why."""
