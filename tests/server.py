"""A web server on this machine that stalls, cuts, lies and redirects, for tests of downloads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Answers:
    """How requests are answered. Lists are used up, one entry per request; then all goes well.

    Attributes:
        body: the file; bodies: other editions of it, sent first.
        cuts: close the connection at this byte of the file.
        codes: answer with this code and nothing else (0 = answer); retry_after: header of these.
        etags: ETag of each answer; the last one stays.
        stalls: seconds before the second half of what is sent.
        ranges: honour Range. length: announced instead of the true one.
        location: redirect there. shift: bytes that ranges are off by.
        seen: Range and If-Range of each request.
    """

    body: bytes
    cuts: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    retry_after: str = ""
    etags: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    ranges: bool = True
    length: int | None = None
    stalls: list[float] = field(default_factory=list)
    location: str = ""
    shift: int = 0
    seen: list[tuple[str | None, str | None]] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked, edition = handler.headers["Range"], handler.headers["If-Range"]
        self.seen.append((asked, edition))
        code = self.codes.pop(0) if self.codes else 0
        body = self.bodies.pop(0) if self.bodies else self.body
        etag = (self.etags.pop(0) if len(self.etags) > 1 else self.etags[0]) if self.etags else ""
        if code or self.location:
            handler.send_response(code or 302)
            if self.location:
                handler.send_header("Location", self.location)
            if self.retry_after:
                handler.send_header("Retry-After", self.retry_after)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        begin, partial = 0, False
        if asked and self.ranges and (not edition or edition == etag):
            begin, partial = int(asked.removeprefix("bytes=").rstrip("-")) + self.shift, True
        if partial and begin >= len(body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(body)}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        handler.send_response(206 if partial else 200)
        announced = len(body) - begin if self.length is None else self.length
        handler.send_header("Content-Length", str(announced))
        if partial:
            handler.send_header("Content-Range", f"bytes {begin}-{len(body) - 1}/{len(body)}")
        if etag:
            handler.send_header("ETag", etag)
        handler.end_headers()
        self._send(handler, body, begin)

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes, begin: int) -> None:
        end = self.cuts.pop(0) if self.cuts else len(body)
        stall = self.stalls.pop(0) if self.stalls else 0.0
        middle = (begin + len(body)) // 2 if stall else begin
        try:
            handler.wfile.write(body[begin : min(middle, end)])
            handler.wfile.flush()
            if stall:
                time.sleep(stall)
            handler.wfile.write(body[middle:end])
        except OSError:  # the client went away
            pass
        handler.close_connection = True


class _Handler(BaseHTTPRequestHandler):
    answers: Answers

    def do_GET(self) -> None:
        self.answers.answer(self)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(answers: Answers) -> Iterator[Answers]:
    """The server runs inside; `answers.url` is its address."""
    handler = type("Handler", (_Handler,), {"answers": answers})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    answers.url = f"http://127.0.0.1:{server.server_address[1]}/file"
    try:
        yield answers
    finally:
        server.shutdown()
        server.server_close()
