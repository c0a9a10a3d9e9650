"""Requests at the level of bytes: what servers may read differently is refused, and its connection closed."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.serve.settings import Limits
from tests.serve.serving import Running, Serve, raw

BODY = b'{"prompt": "a", "max_tokens": 1}'
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
SECOND = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def impatient(serve: Serve) -> Iterator[Running]:
    limits = Limits(head_timeout_seconds=0.5, body_timeout_seconds=1.0, keep_alive_seconds=0.5)
    with serve(limits=limits) as server:
        yield server


def length(value: bytes, *more: bytes) -> bytes:
    lines = b"".join(b"Content-Length:%s\r\n" % each for each in (value, *more))
    return HEAD + lines + b"\r\n" + BODY


def coding(value: bytes, *more: bytes) -> bytes:
    lines = b"".join(b"Transfer-Encoding:%s\r\n" % each for each in (value, *more))
    return HEAD + lines + b"\r\n20\r\n" + BODY + b"\r\n0\r\n\r\n"


def get(lines: bytes, target: bytes = b"/health", version: bytes = b"HTTP/1.1") -> bytes:
    return b"GET " + target + b" " + version + b"\r\n" + lines + b"\r\n"


REFUSED = {
    "length and chunked": (400, length(b" 32\r\nTransfer-Encoding: chunked")),
    "chunked and length": (400, HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"),
    "two lengths": (400, length(b" 32", b" 5")),
    "one length twice": (400, length(b" 32", b" 32")),
    "lengths in a list": (400, length(b" 32, 32")),
    "different lengths in a list": (400, length(b" 32, 5")),
    "signed length": (400, length(b" +32")),
    "negative length": (400, length(b" -1")),
    "hexadecimal length": (400, length(b" 0x20")),
    "underscored length": (400, length(b" 3_2")),
    "split length": (400, length(b" 3 2")),
    "no length": (400, length(b" ")),
    "vertical tab": (400, length(b" \x0b32")),
    "length of 30 digits": (400, length(b" " + b"1" * 30)),
    "space before the colon": (400, HEAD + b"Content-Length : 32\r\n\r\n" + BODY),
    "unknown coding": (501, coding(b" gzip")),
    "coding beside chunked": (501, coding(b" gzip, chunked")),
    "identity": (501, coding(b" identity")),
    "chunked twice": (501, coding(b" chunked", b" chunked")),
    "misspelt chunked": (501, coding(b" xchunked")),
    "chunked after a tab": (400, coding(b"\x0bchunked")),
    "chunked in HTTP/1.0": (400, CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n"),
    "chunk size of 30 digits": (400, CHUNKED + b"f" * 30 + b"\r\n"),
    "chunk size with 0x": (400, CHUNKED + b"0x20\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "signed chunk size": (400, CHUNKED + b"+20\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "no chunk size": (400, CHUNKED + b"\r\n\r\n"),
    "chunk longer than its size": (400, CHUNKED + b"1\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk ends in LF": (400, CHUNKED + b"20\n" + BODY + b"\n0\n\n"),
    "chunk extension of a megabyte": (431, CHUNKED + b"1;" + b"a" * (1 << 20) + b"\r\na\r\n0\r\n\r\n"),
    "trailers of a megabyte": (431, CHUNKED + b"0\r\n" + b"a: b\r\n" * (1 << 18) + b"\r\n"),
    "request line of a megabyte": (431, get(b"Host: a\r\n", b"/" + b"a" * (1 << 20))),
    "10,000 headers": (431, get(b"Host: a\r\n" + b"a: b\r\n" * 10_000)),
    "300 headers": (431, get(b"Host: a\r\n" + b"a: b\r\n" * 300)),
    "header of 100 kB": (431, get(b"Host: a\r\na: " + b"b" * 100_000 + b"\r\n")),
    "LF": (400, get(b"Host: a\n").replace(b"\r\n", b"\n")),
    "one LF": (400, b"GET /health HTTP/1.1\nHost: a\r\n\r\n"),
    "LF before the body": (400, HEAD + b"Content-Length: 32\n\r\n" + BODY),
    "CR in a header": (400, get(b"Host: a\r\na: b\rc: d\r\n")),
    "folded header": (400, get(b"Host: a\r\na: b\r\n c\r\n")),
    "folded coding": (400, HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n"),
    "NUL in a header": (400, get(b"Host: a\r\na: \x00\r\n")),
    "NUL in a name": (400, get(b"Host: a\r\na\x00: b\r\n")),
    "header without a colon": (400, get(b"Host: a\r\nabc\r\n")),
    "HTTP/0.9": (400, b"GET /health\r\n\r\n"),
    "HTTP/2": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "HTTP/3.1": (505, get(b"Host: a\r\n", version=b"HTTP/3.1")),
    "HTTP/11": (400, get(b"Host: a\r\n", version=b"HTTP/11")),
    "lower case": (400, get(b"Host: a\r\n", version=b"http/1.1")),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "no host": (400, get(b"")),
    "host twice": (400, get(b"Host: a\r\nHost: b\r\n")),
    "absolute target": (400, get(b"Host: a\r\n", b"http://a/health")),
    "target of CONNECT": (400, b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n"),
    "asterisk": (400, get(b"Host: a\r\n", b"*")),
    "target with a space": (400, get(b"Host: a\r\n", b"/health /")),
    "target in UTF-8": (400, get(b"Host: a\r\n", "/é".encode())),
    "blank first line": (400, b"\r\n" + get(b"Host: a\r\n")),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_servers_may_read_differently_is_refused_and_closed(server: Running, name: str) -> None:
    status, sent = REFUSED[name]
    received = raw(server.port, sent + SECOND)
    assert received.startswith(b"HTTP/1.1 %d " % status), received[:300]
    assert received.count(b"HTTP/1.1 ") == 1, received
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    assert json.loads(body)["error"]["message"].count("; ") >= 1


ACCEPTED = {
    "length": length(b" 32"),
    "length without a space": length(b"32"),
    "length with tabs": length(b"\t32 \t"),
    "length with zeros": length(b" 00032"),
    "chunked": coding(b" chunked"),
    "chunked in capitals": coding(b" CHUNKED"),
    "chunk extension": CHUNKED + b'20;a=b;c="d"\r\n' + BODY + b"\r\n0\r\n\r\n",
    "trailers": CHUNKED + b"20\r\n" + BODY + b"\r\n0\r\na: b\r\n\r\n",
    "single bytes": CHUNKED + b"".join(b"1\r\n%c\r\n" % each for each in BODY) + b"0\r\n\r\n",
    "a fold in the body": HEAD + b"Content-Length: 34\r\n\r\n" + BODY.replace(b", ", b",\n \r"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_plain_is_answered_and_the_connection_kept(server: Running, name: str) -> None:
    received = raw(server.port, ACCEPTED[name] + b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    assert received.count(b"HTTP/1.1 200 OK") == 2, received


def test_a_chunk_of_absurd_size_is_refused_as_it_streams(serve: Serve) -> None:
    with serve(limits=Limits(body_bytes=4000)) as server:
        received = raw(server.port, CHUNKED + b"f" * 20 + b"\r\n" + b" " * 5000)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in received.lower()


def test_a_client_that_expects_100_continue_gets_it(server: Running) -> None:
    head = HEAD + b"Content-Length: 32\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    received = raw(server.port, head, BODY, pause=0.2)
    assert received.startswith(b"HTTP/1.1 100 ")
    assert b"HTTP/1.1 200 OK" in received


def test_faults_are_counted_and_not_logged(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    before = server.metric('fathom_connections_closed_total{reason="malformed"}')
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            raw(server.port, b"\x00\r\n\r\n")
    assert server.metric('fathom_connections_closed_total{reason="malformed"}') == before + 5
    assert not caplog.records


@pytest.mark.parametrize("pause", [0.0, 0.3])
def test_a_fault_after_the_answer_closes_the_connection_quietly(
    server: Running, caplog: pytest.LogCaptureFixture, pause: float
) -> None:
    with caplog.at_level(logging.ERROR):
        received = raw(server.port, get(b"Host: a\r\nTransfer-Encoding: chunked\r\n"), b"zz\r\n", pause=pause)
    assert received.count(b"HTTP/1.1 ") == 1
    assert not caplog.records


WHOLE = [*ACCEPTED.values(), *(sent for _, sent in REFUSED.values() if len(sent) < 10_000), get(b"Host: a\r\n")]
PIECES = (b"\r\n", b"\n", b"\r", b"\x00", b" ", b":", b";", b",", b"0", b"chunked", b"\r\n\r\n", b"\xff", b"HTTP/1.1")


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """Requests, whole or not, one after another, with parts left out, repeated, replaced and inserted."""
    rng = random.Random(draw(st.integers(0, 2**64)))
    sent = bytearray(b"".join(rng.choice(WHOLE) for _ in range(rng.randint(1, 3))))
    for _ in range(rng.randint(0, 6)):
        at, other = sorted((rng.randint(0, len(sent)), rng.randint(0, len(sent))))
        match rng.randint(0, 3):
            case 0:
                sent[at:at] = rng.choice(PIECES)
            case 1:
                del sent[at : min(other, at + 20)]
            case 2:
                sent[at:at] = sent[at : min(other, at + 50)]
            case 3 if sent:
                sent[min(at, len(sent) - 1)] = rng.randrange(256)
    return bytes(sent)


@settings(max_examples=30)
@given(st.one_of(mutated(), st.binary(max_size=2000)), st.integers(1, 3), st.booleans())
def test_any_bytes_are_answered_or_their_connection_closed(
    impatient: Running, sent: bytes, parts: int, half_closed: bool
) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = records.append  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        size = len(sent) // parts + 1
        raw(impatient.port, *(sent[at : at + size] for at in range(0, len(sent), size)), half_closed=half_closed)
        with impatient.http() as http:
            assert http.get("/health").json() == {"status": "ok"}
    finally:
        logging.getLogger().removeHandler(handler)
    assert not records, [record.getMessage() for record in records]


@pytest.mark.parametrize("size", [1, 2, 16, 100])
def test_a_body_of_thousands_of_tiny_chunks_is_refused(impatient: Running, size: int) -> None:
    chunk = b"%x\r\n%s\r\n" % (size, b" " * size)
    answer = raw(impatient.port, CHUNKED + chunk * 50_000 + b"0\r\n\r\n")
    assert b" 400 " in answer.partition(b"\r\n")[0]
    assert b"too small; send it with Content-Length" in answer


def test_chunks_security_as_clients_send_them_are_read(impatient: Running) -> None:
    letters = b"".join(b"1\r\n%c\r\n" % each for each in BODY)
    spaces = (b"200\r\n" + b" " * 512 + b"\r\n") * 3000
    for _ in range(2):
        answer = raw(
            impatient.port,
            CHUNKED.replace(b"Host: a", b"Host: a\r\nConnection: close") + spaces + letters + b"0\r\n\r\n",
        )
        assert b" 200 " in answer.partition(b"\r\n")[0], answer
