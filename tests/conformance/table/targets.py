"""Methods, targets and hosts (RFC 9110 §7.2 and §9, RFC 9112 §3)."""

from tests.conformance.case import HOST, Answer, Case, Got, Outcome, Reply, passes, raw, refused

FRONTS = ("nginx", "caddy")


def method(name: str, rfc: str) -> Case:
    """A method that passes."""
    length = () if name in ("GET", "DELETE", "OPTIONS") else ("Content-Length: 0",)
    return Case(
        f"method {name}",
        rfc,
        raw(f"{name} /x HTTP/1.1", HOST, *length, "", ""),
        passes(Got(name, "/x")),
    )


def target(sent: str, rfc: str = "9112 §3.2.1", got: str = "") -> Case:
    """A target that passes byte by byte, or becomes ``got``."""
    return Case(
        f"target {sent}",
        rfc,
        raw(f"GET {sent} HTTP/1.1", HOST, "", ""),
        passes(Got("GET", got or sent)),
    )


def line(name: str, request_line: str | bytes, rfc: str = "9112 §3") -> Case:
    """A request line that is none."""
    return Case(f"line {name}", rfc, raw(request_line, HOST, "", ""), refused())


def host(
    name: str, *lines: str, request_line: str = "GET /x HTTP/1.1", rfc: str = "9112 §3.2"
) -> Case:
    """Hosts that are to be refused."""
    return Case(f"host {name}", rfc, raw(request_line, *lines, "", ""), refused())


TARGETS = [
    method("GET", "9110 §9.3.1"),
    method("POST", "9110 §9.3.3"),
    method("PUT", "9110 §9.3.4"),
    method("DELETE", "9110 §9.3.5"),
    method("OPTIONS", "9110 §9.3.7"),
    method("PATCH", "5789 §2"),
    method("PROPFIND", "4918 §9.1"),
    Case(
        "method HEAD",
        "9110 §9.3.2",
        raw("HEAD /x HTTP/1.1", HOST, "", ""),
        passes(Got("HEAD", "/x"), Answer(200, b"", {"content-length": "9"})),
        reply=Reply(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
    ),
    Case(
        "method HEAD of chunks",
        "9112 §6.3 (1)",
        raw("HEAD /x HTTP/1.1", HOST, "", "GET /y HTTP/1.1", HOST, "", ""),
        passes((Got("HEAD", "/x"), Got("GET", "/y")), Answer(200, b""), Answer(200, b"ok")),
        reply=(Reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"), Reply()),
    ),
    Case(
        "method TRACE",
        "9110 §9.3.8",
        raw("TRACE /x HTTP/1.1", HOST, "", ""),
        (passes(Got("TRACE", "/x")), refused(405), Outcome(client=(Answer(405),))),
    ),
    Case(
        "method that nobody knows",
        "9110 §9.1",
        raw("BREW /x HTTP/1.1", HOST, "", ""),
        (passes(Got("BREW", "/x")), refused(400, 405, 501)),
    ),
    Case(
        "method in lower case",
        "9110 §9.1",
        raw("get /x HTTP/1.1", HOST, "", ""),
        (passes(Got("get", "/x")), refused(400, 405, 501)),
    ),
    Case(
        "method CONNECT",
        "9110 §9.3.6",
        raw("CONNECT gpu.example:443 HTTP/1.1", "Host: gpu.example:443", "", ""),
        refused(400, 405, 421, 501),
    ),
    target("/"),
    target("/a/b.c?d=e&f=g"),
    target("/a%20b%2Fc%3f?d=%00"),
    target("/a//b"),
    target("/a;b=c"),
    Case(
        "target /x? with an empty query, which aiohttp leaves out",
        "9110 §7.7",
        raw("GET /x? HTTP/1.1", HOST, "", ""),
        (passes(Got("GET", "/x?")), passes(Got("GET", "/x"))),
    ),
    target("/x??a?b=/../c"),
    target("/x?a=b%zz"),
    target('/x?a|b{c}^`"<>\\'),
    target("/~a!$&'()*+,;=:@-._"),
    target("http://gpu.example/x?y", "9112 §3.2.2", "/x?y"),
    target("HTTP://GPU.example/x", "9112 §3.2.2", "/x"),
    target("http://gpu.example", "9112 §3.2.2", "/"),
    target("http://gpu.example?y", "9112 §3.2.2", "/?y"),
    Case(
        "target *",
        "9112 §3.2.4",
        raw("OPTIONS * HTTP/1.1", HOST, "", ""),
        Outcome(client=(Answer((200, 204, 400)),)),
    ),
    Case(
        "line of GET *",
        "9112 §3.2.4",
        raw("GET * HTTP/1.1", HOST, "", ""),
        (refused(), Outcome(client=(Answer(400),))),
    ),
    line("with an authority alone", "GET gpu.example:80 HTTP/1.1", "9112 §3.2.3"),
    line("with a path that does not begin with a slash", "GET x HTTP/1.1", "9112 §3.2.1"),
    line("with a fragment", "GET /x#y HTTP/1.1", "9112 §3.2.1"),
    line("with white space in the target", "GET /x y HTTP/1.1"),
    line("with a tab", "GET\t/x HTTP/1.1"),
    line("with a control character", b"GET /x\x01y HTTP/1.1"),
    line("with NUL", b"GET /x\x00 HTTP/1.1"),
    line("with a byte over 127", b"GET /\xe9 HTTP/1.1"),
    line("without a version", "GET /x", "9112 §2.3"),
    line("with a version in lower case", "GET /x http/1.1", "9112 §2.3"),
    line("with version 2.0", "GET /x HTTP/2.0", "9112 §2.3"),
    line("with version 0.9", "GET /x HTTP/0.9", "9112 §2.3"),
    line("with version 1.10", "GET /x HTTP/1.10", "9112 §2.3"),
    line("with version 1", "GET /x HTTP/1", "9112 §2.3"),
    line("with version 01.1", "GET /x HTTP/01.1", "9112 §2.3"),
    line("with white space before", " GET /x HTTP/1.1", "9112 §2.2"),
    line("without a target", "GET HTTP/1.1"),
    line("without a method", "/x HTTP/1.1"),
    line("of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    line("of HTTP/2", "PRI * HTTP/2.0", "9113 §3.4"),
    host("none"),
    host("two", HOST, HOST),
    host("two that differ", HOST, "Host: evil.example"),
    host("two that differ, apart", HOST, "X-A: b", "HOST: evil.example"),
    host("a list", "Host: gpu.example, evil.example"),
    host("with a user", "Host: gpu.example@evil.example"),
    host("with a path", "Host: gpu.example/x"),
    host("with white space before the colon", "Host : gpu.example"),
    host("on a folded line", "Host:", " gpu.example"),
    host(
        "that is not the target's",
        HOST,
        request_line="GET http://evil.example/x HTTP/1.1",
        rfc="9112 §3.2.2",
    ),
    host(
        "of a target with a user",
        HOST,
        request_line="GET http://gpu.example@evil.example/x HTTP/1.1",
        rfc="9110 §4.2.4",
    ),
]
