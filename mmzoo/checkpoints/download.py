"""Fetches a file whole and right, or not at all: mirrors, retries, resumption, sha256, one rename at the end.

Beside the target `NAME` live `.NAME.lock` (while someone is at it), `.NAME.part` and `.NAME.part.json` (what
came so far, kept when an attempt or the process ends) and `.NAME.json`, the receipt: where the file came from
and what was checked. Only a file that passed every check gets the name; Ctrl-C leaves a part that the same
call continues.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import random
import shutil
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmzoo.checkpoints.disk import sha256_of, write_atomic
from mmzoo.checkpoints.locks import locked
from mmzoo.checkpoints.transfer import AttemptError, Part, Source, Watch, attempt
from mmzoo.errors import CheckpointError, ConfigError, DownloadError
from mmzoo.home import is_offline

log = logging.getLogger(__name__)
Check = Callable[[Path], None]
"""Looks into a complete file; raises CheckpointError where it is not what it should be."""
SCHEMES = ("http", "https", "file")
HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Wanted:
    """A file to fetch: its addresses in order of preference, and what is known of it beforehand."""

    urls: Sequence[str]
    size: int | None = None
    sha256: str = ""
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    checks: Mapping[str, Check] = field(default_factory=dict[str, Check])
    """name -> look into the file, before it gets its name"""

    def __post_init__(self) -> None:
        """Check what a person may have typed."""
        if self.sha256 and (len(self.sha256) != 64 or set(self.sha256) - HEX):
            do = "Copy it whole from where the file is described."
            raise ConfigError.at("sha256", repr(self.sha256), "64 hexadecimal digits in lower case", do)
        for url in self.urls:
            if urllib.parse.urlsplit(url).scheme not in SCHEMES:
                raise ConfigError.at(
                    "download", repr(url), "https://…, http://… or file:…", "Check the address."
                )


@dataclass(frozen=True)
class Policy:
    """How patient to be with each address."""

    attempts: int = 6
    """attempts in a row that bring nothing new, after which the address is given up"""
    backoff_s: float = 0.5
    """wait after the first failure; it doubles each time, with jitter"""
    longest_wait_s: float = 60.0
    """longest wait; a server that asks for more with Retry-After is given up"""
    timeout_s: float = 30.0
    """silence after which a connection counts as broken"""


@dataclass(frozen=True)
class Receipt:
    """What is known of a file that is here."""

    path: Path
    url: str
    size: int
    sha256: str
    checked: tuple[str, ...]
    """what was compared: sha256, size, and the names of further checks"""
    cached: bool = False
    """it was here before"""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**dataclasses.asdict(self), "path": str(self.path), "checked": list(self.checked)}


def download(
    wanted: Wanted, target: Path, watch: Watch | None = None, policy: Policy | None = None
) -> Receipt:
    """Return the file at `target`, fetched unless it is there; of two processes one fetches, one waits."""
    found = present(wanted, target)
    if found is not None:
        return found
    if is_offline() and any(urllib.parse.urlsplit(u).scheme != "file" for u in wanted.urls):
        do = "Unset MMZOO_OFFLINE, or fetch it where there is a network."
        raise CheckpointError.at(str(target), "not here, and MMZOO_OFFLINE is set", "a file that is here", do)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(
            _beside(target, "lock"), lambda: log.info("%s: another process fetches it; waiting", target)
        ):
            found = present(wanted, target)
            return found or _fetch(wanted, target, watch or (lambda done, total: None), policy or Policy())
    except OSError as error:
        found, do = f"cannot write ({error.strerror or error})", "Choose another MMZOO_HOME or -o PATH."
        raise CheckpointError.at(str(target), found, "a writable place", do) from error


def present(wanted: Wanted, target: Path) -> Receipt | None:
    """Return the receipt of a file that is at `target` already, or None; other contents are an error."""
    if not target.is_file():
        return None
    kept = _receipt(target)
    sha256 = kept.sha256 if kept else sha256_of(target)
    size = target.stat().st_size
    for name, is_, should in (("sha256", sha256, wanted.sha256), ("bytes", size, wanted.size)):
        if should and is_ != should:
            found = f"it is here with {name} {is_}"
            raise CheckpointError.at(
                str(target), found, f"{name} {should}", "Remove it, or choose another -o PATH."
            )
    if kept:
        return dataclasses.replace(kept, cached=True)
    return Receipt(target, "", size, sha256, _compared(wanted, ()), cached=True)


def _fetch(wanted: Wanted, target: Path, watch: Watch, policy: Policy) -> Receipt:
    part, faults, wrong = Part(_beside(target, "part")), list[str](), False
    for url in wanted.urls:
        try:
            if urllib.parse.urlsplit(url).scheme == "file":
                _copy(url, part)
                return _admit(wanted, url, part, target)
            return _from(_Address(wanted, url, policy), part, target, watch)
        except AttemptError as fault:  # noqa: PERF203 a handful of mirrors
            wrong |= fault.wrong
            faults.append(f"{_shown(url)}: {fault}")
            log.warning("%s: %s", _shown(url), fault)
    kept = f"; {part.size:,} bytes are kept" if part.size else ""
    found = " · ".join(faults) + kept
    do = "What came was thrown away: check sha256 and address." if wrong else "Try again later."
    raise DownloadError.at(target.name, found, "an address that serves the file", do)


@dataclass(frozen=True)
class _Address:
    wanted: Wanted
    url: str
    policy: Policy


def _from(address: _Address, part: Part, target: Path, watch: Watch) -> Receipt:
    """Bring the file from one address, patiently; a continued one that is wrong is fetched again whole."""
    wanted, policy = address.wanted, address.policy
    source = Source(address.url, wanted.headers, wanted.size, wanted.sha256, policy.timeout_s)
    failures, most, continued = 0, part.size, bool(part.size)
    while True:
        try:
            continued |= attempt(source, part, watch) > 0
        except AttemptError as fault:
            failures = 0 if part.size > most else failures + 1
            most = max(most, part.size)
            continued |= bool(part.size)
            if not fault.again or failures >= policy.attempts:
                raise
            _wait(fault, failures, policy)
            continue
        try:
            return _admit(wanted, address.url, part, target)
        except AttemptError:
            if not continued:
                raise
            log.warning("%s: the continued file is wrong; once more from the first byte", target.name)
            continued, most = False, 0


def _wait(fault: AttemptError, failures: int, policy: Policy) -> None:
    if fault.wait_s is not None and fault.wait_s > policy.longest_wait_s:
        raise AttemptError(f"{fault} and asks to wait {fault.wait_s:.0f} s", again=False) from fault
    longest = min(policy.longest_wait_s, policy.backoff_s / 2 * 2**failures)
    pause = longest * (0.5 + random.random() / 2) if fault.wait_s is None else fault.wait_s  # noqa: S311,RUF100
    log.info("%s; again in %.1f s", fault, pause)
    time.sleep(pause)


def _copy(url: str, part: Part) -> None:
    """Copy a local file to the part."""
    source = local_path(url)
    if not source.is_file():
        raise CheckpointError.at(str(source), "no such file", "a file", "Check the path.")
    part.discard()
    try:
        shutil.copyfile(source, part.path)
    except OSError:  # a copy is not continued
        part.discard()
        raise


def local_path(url: str) -> Path:
    """Return the path that a `file:` address names, relative ones included."""
    return Path(urllib.parse.unquote(url.removeprefix("file:").removeprefix("//localhost"))).expanduser()


def _admit(wanted: Wanted, url: str, part: Part, target: Path) -> Receipt:
    """Check a complete part and give it its name; an error, and no part left, where it is not the file."""
    sha256, size = sha256_of(part.path), part.size
    try:
        if wanted.size is not None and size != wanted.size:
            raise AttemptError(f"it holds {size:,} bytes; expected {wanted.size:,}", wrong=True)
        if wanted.sha256 and sha256 != wanted.sha256:
            raise AttemptError(f"sha256 {sha256}; expected {wanted.sha256}", wrong=True)
        for check in wanted.checks.values():
            check(part.path)
    except (AttemptError, CheckpointError):
        part.discard()
        raise
    _to_disk(part.path)
    made = Receipt(target, url, size, sha256, _compared(wanted, wanted.checks))
    part.path.replace(target)
    part.discard()
    note = {**made.to_dict(), "path": target.name, "mtime_ns": target.stat().st_mtime_ns}
    write_atomic(_beside(target, "json"), (json.dumps(note, indent=2) + "\n").encode())
    return made


def _compared(wanted: Wanted, checks: Mapping[str, Check] | Sequence[str]) -> tuple[str, ...]:
    known = (("sha256", wanted.sha256), ("size", wanted.size))
    return (*(name for name, value in known if value), *checks)


def _receipt(target: Path) -> Receipt | None:
    """Return the receipt kept beside a file, unless the file was touched since."""
    try:
        note = json.loads(_beside(target, "json").read_text())
        state = target.stat()
        if (note["size"], note["mtime_ns"]) != (state.st_size, state.st_mtime_ns):
            return None
        return Receipt(target, note["url"], note["size"], note["sha256"], tuple(note["checked"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def fetched_sha256(target: Path) -> str:
    """Return the sha256 that a file had when it was fetched, whatever became of it; empty if it was not."""
    try:
        return str(json.loads(_beside(target, "json").read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _beside(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}")


def _shown(url: str) -> str:
    """Return an address without its query, which may hold a signature or a token."""
    return urllib.parse.urlsplit(url)._replace(query="").geturl()
