"""One attempt to get one file over HTTP into its part file, from where the last attempt stopped.

A part file is only continued if it is sure to be the same file: the server confirms it (If-Range with a
strong ETag or a date), or the whole file's sha256 is known and decides at the end. Whatever is doubtful (a
server that ignores Range, a changed ETag, a range that was not asked for) starts again from the first byte.
Standard library only. Ref: RFC 9110, sections 13.1.5 (If-Range) and 14 (range requests).
"""

from __future__ import annotations

import email.utils
import errno
import http.client
import json
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mmzoo import __version__
from mmzoo.errors import CheckpointError

Watch = Callable[[int, int | None], None]
"""Hears the bytes that are there and those there will be, None where the server does not say."""
BLOCK = 1 << 18
AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))
"""Answers that another attempt may change."""
NETWORK = (OSError, http.client.HTTPException)
"""What a broken connection raises; URLError and TimeoutError are OSErrors."""


class AttemptError(Exception):
    """An attempt that did not bring the whole file.

    `again`: another at this address may; `wrong`: another file came; `wait_s`: the server asked for it.
    """

    def __init__(
        self, cause: str, *, again: bool = False, wrong: bool = False, wait_s: float | None = None
    ) -> None:
        """Say why."""
        super().__init__(cause)
        self.again, self.wrong, self.wait_s = again, wrong, wait_s


@dataclass(frozen=True)
class Source:
    """An address, what to send with each request, and what is known of the file beforehand."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    size: int | None = None
    sha256: str = ""
    timeout_s: float = 30.0


class Part:
    """An unfinished file and the note beside it that says what it is a part of."""

    def __init__(self, path: Path) -> None:
        """Name the file; the note has the same name and `.json`."""
        self.path, self.note_path = path, path.with_name(f"{path.name}.json")

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def note(self) -> dict[str, Any]:
        """Return what it is a part of: url, validator, total; empty where that is unknown."""
        try:
            found = json.loads(self.note_path.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def begin(self, note: Mapping[str, Any]) -> None:
        """Forget the bytes and start a part of another file."""
        self.path.unlink(missing_ok=True)
        self.note_path.write_text(json.dumps(note))
        self.path.touch()

    def discard(self) -> None:
        """Remove it."""
        self.path.unlink(missing_ok=True)
        self.note_path.unlink(missing_ok=True)


def attempt(source: Source, part: Part, watch: Watch) -> int:
    """Bring `part` to its end and return at which byte that began; AttemptError where it is not whole."""
    note = part.note()
    start = part.size if _continues(source, note) else 0
    with _open(source, part, start, note) as response:
        if response is None:
            return start
        total = _begin(source, part, response, start)
        if response.status == http.client.OK:
            start = 0
        _check_space(part.path, (total or source.size or start) - start)
        _copy(response, part, total, watch)
    if total is not None and part.size != total:
        raise AttemptError(f"the connection ended at byte {part.size:,} of {total:,}", again=True)
    return start


def _continues(source: Source, note: Mapping[str, Any]) -> bool:
    """Say whether the rest of a part may come from this source."""
    return bool(source.sha256) or (note.get("url") == source.url and bool(note.get("validator")))


class _Answer:
    """A response as a context that may hold none: the part was whole already."""

    def __init__(self, response: http.client.HTTPResponse | None) -> None:
        self.response = response

    def __enter__(self) -> http.client.HTTPResponse | None:
        return self.response

    def __exit__(self, *_: object) -> None:
        if self.response is not None:
            self.response.close()


def _open(source: Source, part: Part, start: int, note: Mapping[str, Any]) -> _Answer:
    headers = {"User-Agent": f"mmzoo/{__version__}", "Accept-Encoding": "identity", **source.headers}
    if start:
        headers["Range"] = f"bytes={start}-"
        if note.get("validator") and note.get("url") == source.url:
            headers["If-Range"] = note["validator"]
    request = urllib.request.Request(source.url, headers=headers)  # noqa: S310,RUF100 the caller allows http(s) only
    try:
        opener = urllib.request.build_opener(_Redirects)
        return _Answer(opener.open(request, timeout=source.timeout_s))
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
                if _total(error.headers) == start:
                    return _Answer(None)
                part.discard()
                raise AttemptError("the part was longer than the file", again=True) from error
            raise _refusal(error) from error
    except NETWORK as error:
        again = not isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError)
        raise AttemptError(_cause(error), again=again) from error


def _begin(source: Source, part: Part, response: http.client.HTTPResponse, start: int) -> int | None:
    """Check an answer's head, make the part ready for its body, return how long the file is."""
    head = response.headers
    if head.get("Content-Encoding", "identity").lower() != "identity":
        found = f"the server compresses ({head['Content-Encoding']}), so bytes cannot be counted"
        raise AttemptError(found)
    total = _total(head) if response.status == http.client.PARTIAL_CONTENT else _length(head)
    if None not in (total, source.size) and total != source.size:
        raise AttemptError(f"it holds {total:,} bytes; expected {source.size:,}")
    if response.status == http.client.PARTIAL_CONTENT:
        known = part.note()
        same = known.get("url") != source.url or _validator(head) in ("", known.get("validator"))
        if not start or _first(head) != start or not same:
            part.discard()
            raise AttemptError("the file changed on the server", again=True)
    elif response.status == http.client.OK:
        part.begin({"url": source.url, "validator": _validator(head), "total": total})
    else:
        raise AttemptError(f"the server answers {response.status}")
    return total


def _copy(response: http.client.HTTPResponse, part: Part, total: int | None, watch: Watch) -> None:
    done = part.size
    with part.path.open("ab") as file:
        watch(done, total)
        while block := _read(response):
            _write(file, block, part.path)
            done += len(block)
            watch(done, total)


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(BLOCK)
    except NETWORK as error:
        raise AttemptError(_cause(error), again=True) from error


def _write(file: IO[bytes], block: bytes, path: Path) -> None:
    try:
        file.write(block)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        do = "Free some, or choose another MMZOO_HOME; what came so far is kept."
        raise CheckpointError.at(str(path.parent), "the disk is full", "room for the file", do) from error


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        found = f"{free / 1e9:.2f} GB free"
        do = "Free some, choose another MMZOO_HOME, or give -o PATH on another disk."
        raise CheckpointError.at(str(path.parent), found, f"room for {needed / 1e9:.2f} GB more", do)


def _refusal(error: urllib.error.HTTPError) -> AttemptError:
    cause = f"the server answers {error.code} {error.reason or ''}".rstrip()
    return AttemptError(cause, again=error.code in AGAIN, wait_s=_retry_after(error.headers))


def _retry_after(head: Any) -> float | None:
    """Return the seconds that Retry-After asks for, given as a number or as a date."""
    text = (head.get("Retry-After") or "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _validator(head: Any) -> str:
    """Return what If-Range may use: a strong ETag, else the date of the last change."""
    tag = head.get("ETag") or ""
    return tag if tag.startswith('"') else head.get("Last-Modified") or ""


def _length(head: Any) -> int | None:
    text = head.get("Content-Length") or ""
    return int(text) if text.isdigit() else None


def _total(head: Any) -> int | None:
    found = re.fullmatch(r"bytes (?:\d+-\d+|\*)/(\d+)", head.get("Content-Range") or "")
    return int(found.group(1)) if found else None


def _first(head: Any) -> int | None:
    found = re.match(r"bytes (\d+)-", head.get("Content-Range") or "")
    return int(found.group(1)) if found else None


def _cause(error: Exception) -> str:
    reason = getattr(error, "reason", None) or error
    return str(reason) or type(error).__name__


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but takes a token to no other host (a hub sends one on to its file servers)."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Return the request to make instead."""
        made = super().redirect_request(req, fp, code, msg, headers, newurl)
        if (
            made is not None
            and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc
        ):
            made.remove_header("Authorization")
        return made
