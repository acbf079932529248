"""Models on the hub: `hf://org/repo[@revision]`, asked through huggingface_hub, fetched by our downloader.

Why: the hub's client knows endpoints, tokens and revisions; ours resumes, and compares every byte with the
sha256 (large files) or git hash (small ones) that the hub states. HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE
are respected. What was fetched is kept by commit, so that a revision once fetched loads offline.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mmzoo.checkpoints.disk import write_atomic
from mmzoo.checkpoints.download import Receipt, Wanted, download
from mmzoo.checkpoints.transfer import AGAIN, Watch
from mmzoo.errors import CheckpointError, ConfigError, DownloadError
from mmzoo.home import home, is_offline

log = logging.getLogger(__name__)
PREFIXES = ("hf://", "hf-hub:")
REFERENCE = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?/?")
NEEDED = ("config.json", "model.safetensors")
FILES = (*NEEDED, "preprocessor_config.json", "golden.json", "README.md")
"""What a model's repository holds of use here."""
PUBLIC = "https://huggingface.co"
ATTEMPTS, BACKOFF_S = 4, 0.5
T = TypeVar("T")


@dataclass(frozen=True)
class Repo:
    """A model repository at a revision."""

    name: str
    revision: str = "main"

    @property
    def folder(self) -> Path:
        """Where what is fetched of it is kept."""
        return home() / "zoo" / "hub" / self.name.replace("/", "--")

    @property
    def remembered(self) -> Path:
        """The file that says which commit the revision was when it was last asked for."""
        return self.folder / "refs" / self.revision.replace("/", "--")


def is_reference(text: str) -> bool:
    """Say whether a source names the hub."""
    return text.startswith(PREFIXES)


def parse(text: str) -> Repo:
    """Read `hf://org/repo[@revision]`."""
    bare = next((text.removeprefix(p) for p in PREFIXES if text.startswith(p)), text)
    found = REFERENCE.fullmatch(bare)
    if found is None:
        raise ConfigError.at(repr(text), "no repository", "hf://org/repo[@revision]", "Check the name.")
    return Repo(found["repo"], found["revision"] or "main")


def endpoint() -> str:
    """Return the hub's address: HF_ENDPOINT (a mirror) or the public one."""
    return (os.environ.get("HF_ENDPOINT") or PUBLIC).rstrip("/")


def api() -> Any:
    """Return the hub's client."""
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars
    except ImportError as error:
        do = "Run `pip install huggingface_hub`."
        raise ConfigError.at("hub", "huggingface_hub is not installed", "it to be there", do) from error
    if not sys.stderr.isatty():  # its bars are redrawn everywhere
        disable_progress_bars()
    return HfApi(endpoint=endpoint(), library_name="mmzoo")


def fetch(repo: Repo, watch: Watch | None = None) -> tuple[Path, list[Receipt]]:
    """Return the folder of the repository's files at its revision, fetched unless they are here."""
    if is_offline():
        return _kept(repo), []
    info = ask(
        f"hf://{repo.name}", lambda: api().model_info(repo.name, revision=repo.revision, files_metadata=True)
    )
    held = {s.rfilename: s for s in info.siblings or ()}
    missing = [name for name in NEEDED if name not in held]
    if missing:
        found, do = f"no {' and no '.join(missing)}", "Name a repository that `mmzoo push` wrote."
        raise CheckpointError.at(f"hf://{repo.name}", found, " and ".join(NEEDED), do)
    folder = repo.folder / str(info.sha)
    receipts = [
        download(_wanted(repo, str(info.sha), held[name]), folder / name, watch)
        for name in FILES
        if name in held
    ]
    write_atomic(repo.remembered, f"{info.sha}\n".encode())
    return folder, receipts


def _kept(repo: Repo) -> Path:
    """Return the folder of what was fetched before."""
    try:
        commit = repo.remembered.read_text().strip()
    except OSError:
        commit = repo.revision
    folder = repo.folder / commit
    if not all((folder / name).is_file() for name in NEEDED):
        do = "Unset MMZOO_OFFLINE and HF_HUB_OFFLINE, or fetch it where there is a network."
        found = f"{repo.revision} is not here, and the network is forbidden"
        raise CheckpointError.at(f"hf://{repo.name}", found, "a repository that is here", do)
    return folder


def _wanted(repo: Repo, commit: str, file: Any) -> Wanted:
    from huggingface_hub import get_token

    url = f"{endpoint()}/{repo.name}/resolve/{commit}/{file.rfilename}"
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if file.lfs is not None:
        return Wanted([url], file.lfs.size, file.lfs.sha256, headers)
    checks = {"git": _GitHash(file.blob_id)} if file.blob_id else {}
    return Wanted([url], file.size, headers=headers, checks=checks)


@dataclass(frozen=True)
class _GitHash:
    """Compares a small file with the hash by which git knows it."""

    expected: str

    def __call__(self, path: Path) -> None:
        content = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        if found != self.expected:
            raise CheckpointError.at(path.name, f"git hash {found}", self.expected, "Try again.")


def ask(where: str, call: Callable[[], T]) -> T:
    """Put a question to the hub, patiently; turn what goes wrong into a line."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # pyright: ignore[reportPrivateImportUsage] its client's

    attempt = 1
    while True:
        try:
            return call()
        except (HTTPError, OSError) as error:  # noqa: PERF203 a handful of attempts
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if isinstance(error, HfHubHTTPError) and status not in AGAIN:
                raise _refused(where, status, error) from error
            if attempt == ATTEMPTS:
                do = f"Try again later, or set HF_ENDPOINT (now {endpoint()})."
                raise DownloadError.at(where, _line(error), "an answer of the hub", do) from error
            log.info("%s: %s; again", where, _line(error))
            time.sleep(BACKOFF_S * 2 ** (attempt - 1))
            attempt += 1
        except RuntimeError as error:  # an upload that its client gave up
            found = f"{_line(error)} ({_line(error.__cause__ or error)})"
            raise DownloadError.at(where, found, "a hub that takes it", "Try again later.") from error


def _refused(where: str, status: int, error: Exception) -> CheckpointError:
    if status in (401, 403, 404):
        found = f"no such repository or revision, or no right to it ({status})"
        do = "Check the name; for a private one set HF_TOKEN or run `hf auth login`."
        return CheckpointError(str(CheckpointError.at(where, found, "a repository that you may use", do)))
    return DownloadError(
        str(DownloadError.at(where, _line(error), "an answer of the hub", "Try again later."))
    )


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
