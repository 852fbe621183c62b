"""Requests that two readers could understand differently. Each must be refused, never carried: written for these tests,
one for each way in which lenient readers have been led apart."""

from __future__ import annotations

_HOST = b"Host: mac.local\r\n"
_POST = b"POST /v1/chat/completions HTTP/1.1\r\n" + _HOST
_NEXT = b"GET /metrics HTTP/1.1\r\n" + _HOST + b"\r\n"


def _head(*lines: bytes) -> bytes:
    return _POST + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def _chunked(body: bytes) -> bytes:
    return _head(b"Transfer-Encoding: chunked") + body


HEADS: dict[str, bytes] = {
    # Which of two lengths?
    "two lengths": _head(b"Content-Length: 5", b"Content-Length: 6") + b"hello" + _NEXT,
    "the same length twice": _head(b"Content-Length: 5", b"content-length: 5") + b"hello",
    "two lengths in one line": _head(b"Content-Length: 5, 5") + b"hello",
    "a signed length": _head(b"Content-Length: +5") + b"hello",
    "a negative length": _head(b"Content-Length: -1") + _NEXT,
    "a hexadecimal length": _head(b"Content-Length: 0x5") + b"hello",
    "an octal length": _head(b"Content-Length: 010") + b"hello" + _NEXT,
    "a length with a space in it": _head(b"Content-Length: 1 0") + b"hello",
    "a length with an underscore": _head(b"Content-Length: 1_0") + b"hello",
    "a length in other digits": _head("Content-Length: \u00b2".encode("latin-1")) + b"he",
    "an empty length": _head(b"Content-Length:") + _NEXT,
    "a length of sixteen digits": _head(b"Content-Length: 1000000000000000") + _NEXT,
    # Length or chunks?
    "length, then chunked": _head(b"Content-Length: 5", b"Transfer-Encoding: chunked") + b"0\r\n\r\n" + _NEXT,
    "chunked, then length": _head(b"Transfer-Encoding: chunked", b"Content-Length: 5") + b"0\r\n\r\n" + _NEXT,
    "chunked twice": _head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "chunked in a list": _head(b"Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n",
    "chunked last": _head(b"Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "chunked first": _head(b"Transfer-Encoding: chunked, identity") + b"0\r\n\r\n",
    "another coding": _head(b"Transfer-Encoding: gzip") + b"0\r\n\r\n",
    "identity": _head(b"Transfer-Encoding: identity", b"Content-Length: 5") + b"hello",
    "nearly chunked": _head(b"Transfer-Encoding: xchunked") + b"0\r\n\r\n",
    "chunked in quotes": _head(b'Transfer-Encoding: "chunked"') + b"0\r\n\r\n",
    "chunked after a vertical tab": _head(b"Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n",
    "chunked with a parameter": _head(b"Transfer-Encoding: chunked;q=1") + b"0\r\n\r\n",
    "an empty coding": _head(b"Transfer-Encoding:", b"Content-Length: 5") + b"hello",
    "chunked in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + _NEXT,
    # Where does a line end, and a name?
    "bare LF after the request line": b"POST / HTTP/1.1\nHost: x\r\n\r\n",
    "bare LF after a field": _POST + b"A: b\nContent-Length: 5\r\n\r\nhello",
    "bare LF throughout": b"POST / HTTP/1.1\nHost: x\nContent-Length: 5\n\nhello",
    "bare LF as the empty line": _POST + b"A: b\r\n\nGET / HTTP/1.1\r\n\r\n",
    "bare CR in a value": _head(b"A: b\rContent-Length: 5"),
    "bare CR between lines": b"POST / HTTP/1.1\rHost: x\r\n\r\n",
    "CR CR LF": _POST + b"A: b\r\r\nContent-Length: 5\r\n\r\n",
    "a folded value": _head(b"A: b", b" c"),
    "a length by folding": _head(b"Content-Length:", b" 5") + b"hello",
    "chunked by folding": _head(b"Transfer-Encoding:", b"\tchunked") + b"0\r\n\r\n",
    "a folded first field": b"POST / HTTP/1.1\r\n Host: x\r\n\r\n",
    "a space before the colon": _head(b"Content-Length : 5") + b"hello",
    "a tab before the colon": _head(b"Transfer-Encoding\t: chunked") + b"0\r\n\r\n",
    "a space in a name": _head(b"Content Length: 5"),
    "no name": _head(b": 5"),
    "no colon": _head(b"Content-Length 5"),
    "NUL in a name": _head(b"Content-\0Length: 5"),
    "NUL in a value": _head(b"A: b\0c"),
    "a control character in a value": _head(b"A: b\x01c"),
    "DEL in a value": _head(b"A: b\x7fc"),
    "a name outside ASCII": _head("Content-Lengt\u00e9: 5".encode("latin-1")),
    # Which request is it?
    "no host": b"POST /v1/chat/completions HTTP/1.1\r\n\r\n",
    "two hosts": _head(b"Host: evil.example"),
    "two spaces in the request line": b"POST  / HTTP/1.1\r\n" + _HOST + b"\r\n",
    "a tab in the request line": b"POST\t/ HTTP/1.1\r\n" + _HOST + b"\r\n",
    "a space after the version": b"POST / HTTP/1.1 \r\n" + _HOST + b"\r\n",
    "a space in the target": b"POST /a b HTTP/1.1\r\n" + _HOST + b"\r\n",
    "a raw byte in the target": b"POST /\xe9 HTTP/1.1\r\n" + _HOST + b"\r\n",
    "NUL in the target": b"POST /\0 HTTP/1.1\r\n" + _HOST + b"\r\n",
    "no version": b"POST /\r\n" + _HOST + b"\r\n",
    "a small http": b"POST / http/1.1\r\n" + _HOST + b"\r\n",
    "a method in small letters": b"Post / HTTP/1.1\r\n" + _HOST + b"\r\n",
    "white space first": b" POST / HTTP/1.1\r\n" + _HOST + b"\r\n",
    "two empty lines first": b"\r\n\r\n" + _head(),
    "LF first": b"\n" + _head(),
    "another protocol": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}

BODIES: dict[str, bytes] = {
    "no size": _chunked(b"\r\nhello\r\n0\r\n\r\n"),
    "a size that is no number": _chunked(b"xyz\r\nhello\r\n0\r\n\r\n"),
    "a size with 0x": _chunked(b"0x5\r\nhello\r\n0\r\n\r\n"),
    "a signed size": _chunked(b"+5\r\nhello\r\n0\r\n\r\n"),
    "a negative size": _chunked(b"-5\r\nhello\r\n0\r\n\r\n"),
    "a size after a space": _chunked(b" 5\r\nhello\r\n0\r\n\r\n"),
    "a size before a space": _chunked(b"5 \r\nhello\r\n0\r\n\r\n"),
    "a size with an underscore": _chunked(b"1_0\r\nhello\r\n0\r\n\r\n"),
    "a size past 32 bits": _chunked(b"100000005\r\nhello\r\n0\r\n\r\n"),
    "a size past 64 bits": _chunked(b"10000000000000005\r\nhello\r\n0\r\n\r\n"),
    "a size after many zeros": _chunked(b"000000005\r\nhello\r\n0\r\n\r\n"),
    "an extension that is too long": _chunked(b"5;" + b"x" * 200 + b"\r\nhello\r\n0\r\n\r\n"),
    "bare LF in an extension": _chunked(b"5;x\nhello\r\n0\r\n\r\n"),
    "bare CR in an extension": _chunked(b"5;x\ry\r\nhello\r\n0\r\n\r\n"),
    "NUL in an extension": _chunked(b"5;\0\r\nhello\r\n0\r\n\r\n"),
    "bare LF after a size": _chunked(b"5\nhello\r\n0\r\n\r\n"),
    "bare LF throughout": _chunked(b"5\nhello\n0\n\n"),
    "CR CR LF after a size": _chunked(b"5\r\r\nhello\r\n0\r\n\r\n"),
    "a chunk longer than its size": _chunked(b"5\r\nhellothere\r\n0\r\n\r\n"),
    "a chunk without its CRLF": _chunked(b"5\r\nhello0\r\n\r\n"),
    "a chunk with a bare LF after it": _chunked(b"5\r\nhello\n0\r\n\r\n"),
    "a chunk with a bare CR after it": _chunked(b"5\r\nhello\r0\r\n\r\n"),
    "a trailer with a bare LF": _chunked(b"0\r\nA: b\n\r\n"),
    "a folded trailer": _chunked(b"0\r\nA: b\r\n c\r\n\r\n"),
    "a trailer without a name": _chunked(b"0\r\n: b\r\n\r\n"),
    "a trailer that is a request": _chunked(b"0\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"),
}

# Requests that mean one thing. They are carried, however odd some are, and so must be what follows them.
PLAIN: dict[str, bytes] = {
    "a length": _head(b"Content-Length: 5") + b"hello" + _NEXT,
    "no body": _head() + _NEXT,
    "no body, a length of nothing": _head(b"Content-Length: 0") + _NEXT,
    "chunks": _chunked(b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n") + _NEXT,
    "a chunk extension": _chunked(b'5;a="b c";d\r\nhello\r\n0;last\r\n\r\n') + _NEXT,
    "trailers": _chunked(b"5\r\nhello\r\n0\r\nX-Sum: 1\r\nContent-Length: 99\r\n\r\n") + _NEXT,
    "a size with zeros before it": _chunked(b"005\r\nhello\r\n000\r\n\r\n") + _NEXT,
    "CHUNKED": _head(b"TRANSFER-ENCODING: Chunked") + b"0\r\n\r\n" + _NEXT,
    "an empty line first": b"\r\n" + _head(b"Content-Length: 5") + b"hello" + _NEXT,
    "a value with tabs around it": _head(b"Content-Length:\t5 \t") + b"hello" + _NEXT,
    "a value outside ASCII": _head("X-Name: K\u00fcche".encode()) + _NEXT,
    "HTTP/1.0": b"POST / HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.0 that stays": b"POST / HTTP/1.0\r\nConnection: Keep-Alive\r\nContent-Length: 5\r\n\r\nhello" + _NEXT,
    "close among others": _head(b"Connection: x-hop, Close", b"Content-Length: 5") + b"hello",
    "an absolute target": b"POST http://mac.local/v1/chat/completions HTTP/1.1\r\n" + _HOST + b"\r\n" + _NEXT,
    "an asterisk": b"OPTIONS * HTTP/1.1\r\n" + _HOST + b"\r\n" + _NEXT,
    "asked whether it may": _head(b"Expect: 100-continue", b"Content-Length: 5") + b"hello" + _NEXT,
    "an upgrade": _head(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 5") + b"hello" + _NEXT,
    "a body that is a request": _head(b"Content-Length: %d" % len(_NEXT)) + _NEXT + _NEXT,
    "a chunk that is a request": _chunked(b"%x\r\n%b\r\n0\r\n\r\n" % (len(_NEXT), _NEXT)) + _NEXT,
}
