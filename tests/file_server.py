"""A server on this machine that serves one file, well or badly, and remembers what it was asked."""

import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HTML = b"<!DOCTYPE html>\n<html><body><h1>503</h1>come back later</body></html>\n"


class FileServer:
    """``address(name, ...)`` is where the file is served in the manner of that name; see ``MANNERS``.

    requests   (manner, Range header or None), as they came        sent   bytes of bodies, by manner
    """

    def __init__(self, content: bytes):
        self.content = content
        self.requests: list[tuple[str, str | None]] = []
        self.sent: dict[str, int] = {}
        self.closing = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                manner = self.path.split("/")[1]
                server.requests.append((manner, self.headers.get("Range")))
                Answer(server, self, manner).give()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # clients that leave are what the tests are about
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def address(self, manner: str, name: str = "cifar-10-binary.tar.gz") -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{manner}/{name}"

    def close(self):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class Answer:
    """One answer. A manner is words joined by "-": ``slow-norange`` trickles and knows no Range."""

    def __init__(self, server: FileServer, handler: BaseHTTPRequestHandler, manner: str):
        self.server, self.handler, self.manner = server, handler, manner
        self.words = manner.split("-")

    def give(self):
        for word in self.words:
            if word in MANNERS:
                MANNERS[word](self)
                return
        self.serve(self.server.content)

    def serve(self, content: bytes, kind: str = "application/x-gzip"):
        found = re.fullmatch(r"bytes=(\d+)-", self.handler.headers.get("Range", ""))
        start = int(found[1]) if found and "norange" not in self.words else 0
        if start >= len(content):
            self.handler.send_response(416)
            self.handler.send_header("Content-Length", "0")
            self.handler.end_headers()
            return
        self.handler.send_response(206 if start else 200)
        self.handler.send_header("Content-Type", kind)
        if start:
            first = start + ("shifted" in self.words)
            self.handler.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        if "labelled" in self.words:  # the archive's own compression told as the connection's
            self.handler.send_header("Content-Encoding", "gzip")
        if "chunked" in self.words:
            self.handler.send_header("Transfer-Encoding", "chunked")
        else:
            self.handler.send_header("Content-Length", str(len(content) - start))
        self.handler.end_headers()
        self.body(content[start:])

    def body(self, content: bytes):
        half = len(content) // 2
        step = 2000 if "slow" in self.words else 20000
        for at in range(0, len(content), step):
            piece = content[at : at + step]
            if at + len(piece) > half:
                if "drop" in self.words:
                    self.handler.close_connection = True
                    return
                if "stall" in self.words:
                    self.server.closing.wait(60)
                    self.handler.close_connection = True
                    return
            if "slow" in self.words:
                time.sleep(0.02)
            try:
                if "chunked" in self.words:
                    piece = b"%x\r\n%s\r\n" % (len(piece), piece)
                self.handler.wfile.write(piece)
            except OSError:  # the client has gone
                self.handler.close_connection = True
                return
            self.server.sent[self.manner] = self.server.sent.get(self.manner, 0) + min(step, len(content) - at)
        if "chunked" in self.words:
            self.handler.wfile.write(b"0\r\n\r\n")

    def error(self, status: int):
        self.handler.send_response(status)
        self.handler.send_header("Content-Type", "text/html; charset=utf-8")
        self.handler.send_header("Content-Length", str(len(HTML)))
        self.handler.end_headers()
        self.handler.wfile.write(HTML)

    def redirect(self):
        self.handler.send_response(302)
        self.handler.send_header("Location", self.server.address("good"))
        self.handler.send_header("Content-Length", "0")
        self.handler.end_headers()

    def circle(self):
        self.handler.send_response(302)
        self.handler.send_header("Location", self.handler.path)
        self.handler.send_header("Content-Length", "0")
        self.handler.end_headers()

    def padded_page(self):
        """A web page of the right size."""
        self.serve(HTML + bytes(len(self.server.content) - len(HTML)), "text/html")

    def wrong(self):
        """The right size and a gzip header, yet other bytes."""
        content = bytearray(self.server.content)
        content[len(content) // 3] ^= 1
        self.serve(bytes(content))


MANNERS: dict[str, Callable[[Answer], None]] = {
    "busy": lambda answer: answer.error(503),
    "gone": lambda answer: answer.error(404),
    "page": lambda answer: answer.serve(HTML, "text/html"),
    "bigpage": Answer.padded_page,
    "wrong": Answer.wrong,
    "short": lambda answer: answer.serve(answer.server.content[:-1000]),
    "long": lambda answer: answer.serve(answer.server.content + b"more"),
    "empty": lambda answer: answer.serve(b"\x1f"),
    "redirect": Answer.redirect,
    "circle": Answer.circle,
}
