"""A local HTTP server that misbehaves on purpose: cuts, refusals, wrong bytes, no ranges, changing files."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from dataclasses import dataclass, field

from local_server import LocalServer, QuietHandler, running


@dataclass
class Script:
    """What the server holds and how it behaves; every request that came is in `requests`."""

    body: bytes
    cuts: int = 0
    """connections still to be cut"""
    cut_after: int = 1000
    """bytes that such a connection brings"""
    statuses: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """answers to give first"""
    ranges: bool = True
    etag: str | None = '"one"'
    length: bool = True
    chunked: bool = False
    slow_s: float = 0.0
    swap_after: int | None = None
    """requests after which the file is `swap` with another ETag"""
    swap: bytes = b""
    honours_if_range: bool = True
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


class Handler(QuietHandler):
    """Follows the script of its server."""

    server: FileServer

    def do_GET(self) -> None:  # noqa: N802 a name of the base class
        script = self.server.script
        with script.lock:
            script.requests.append((self.path, dict(self.headers)))
            refusal = script.statuses.pop(0) if script.statuses else None
            cut = script.cuts > 0 and refusal is None
            script.cuts -= cut
            if script.swap_after is not None and len(script.requests) > script.swap_after:
                script.body, script.etag = script.swap, '"two"'
        if refusal is not None:
            self.send_response(refusal[0])
            for key, value in refusal[1].items():
                self.send_header(key, value)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = self._start(script)
        if start is not None and start >= len(script.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(script.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._send(script, start, cut)

    def _start(self, script: Script) -> int | None:
        asked = self.headers.get("Range")
        condition = self.headers.get("If-Range")
        if not asked or not script.ranges:
            return None
        if condition and condition != script.etag and script.honours_if_range:
            return None
        return int(asked.removeprefix("bytes=").removesuffix("-"))

    def _send(self, script: Script, start: int | None, cut: bool) -> None:
        body = script.body[start or 0 :]
        self.send_response(200 if start is None else 206)
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(script.body) - 1}/{len(script.body)}")
        if script.etag:
            self.send_header("ETag", script.etag)
        if script.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif script.length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        sent = body[: script.cut_after] if cut else body
        with contextlib.suppress(OSError):
            for at in range(0, len(sent), 4096):
                block = sent[at : at + 4096]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if script.chunked else block)
                if script.slow_s:
                    self.server.pause.wait(script.slow_s)
            if script.chunked and not cut:
                self.wfile.write(b"0\r\n\r\n")
            if cut or not (script.length or script.chunked):
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)


class FileServer(LocalServer):
    """Serves one script."""

    def __init__(self, script: Script) -> None:
        super().__init__(Handler)
        self.script, self.pause = script, threading.Event()

    @property
    def url(self) -> str:
        return f"{super().url}/weights.bin"


def serve(script: Script) -> contextlib.AbstractContextManager[str]:
    """Serve a script and return the address of its file."""
    return running(FileServer(script))
