"""Downloads against a server that does everything wrong: the right file in the end, or none and one line."""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from file_server import Script, serve

from mmzoo.checkpoints import download as module
from mmzoo.checkpoints import transfer
from mmzoo.checkpoints.download import Policy, Wanted, download, local_path, present
from mmzoo.errors import CheckpointError, ConfigError, DownloadError

BODY = random.Random(0).randbytes(100_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
FAST = Policy(attempts=3, backoff_s=0.001, longest_wait_s=2.0, timeout_s=5.0)


@pytest.fixture(autouse=True)
def _network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("MMZOO_OFFLINE", raising=False)


@pytest.fixture
def target(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "cache" / "weights.bin"


def names(target: pathlib.Path) -> set[str]:
    return {p.name for p in target.parent.iterdir()} if target.parent.is_dir() else set()


def starts(script: Script) -> list[int]:
    return [int(h.get("Range", "bytes=0-")[6:-1]) for _, h in script.requests]


def test_a_file_arrives_whole_with_a_receipt_and_is_not_fetched_twice(target: pathlib.Path):
    script, heard = Script(BODY), []
    with serve(script) as url:
        wanted = Wanted([url], len(BODY), SHA256)
        first = download(wanted, target, lambda done, total: heard.append((done, total)), FAST)
        second = download(wanted, target, policy=FAST)
    assert target.read_bytes() == BODY
    assert (first.sha256, first.size, first.checked, first.cached) == (
        SHA256, len(BODY), ("sha256", "size"), False,
    )  # fmt: skip
    assert second.cached
    assert second.sha256 == SHA256
    assert len(script.requests) == 1
    assert heard[0] == (0, len(BODY))
    assert heard[-1] == (len(BODY), len(BODY))
    assert names(target) == {"weights.bin", ".weights.bin.json"}
    assert json.loads(target.with_name(".weights.bin.json").read_text())["url"] == url


@pytest.mark.parametrize("chunked", [False, True])
def test_twenty_cuts_end_with_the_right_bytes_each_sent_once(target: pathlib.Path, chunked: bool):
    script = Script(BODY, cuts=20, cut_after=4096, chunked=chunked)
    with serve(script) as url:
        download(Wanted([url], sha256=SHA256), target, policy=FAST)
    assert target.read_bytes() == BODY
    assert starts(script) == [4096 * i for i in range(21)]
    assert all(h.get("If-Range") == '"one"' for _, h in script.requests[1:])


def test_cuts_do_not_need_a_known_hash_where_the_server_confirms_the_file(target: pathlib.Path):
    script = Script(BODY, cuts=5)
    with serve(script) as url:
        assert download(Wanted([url]), target, policy=FAST).checked == ()
    assert target.read_bytes() == BODY
    assert starts(script) == [1000 * i for i in range(6)]


def test_without_hash_or_validator_a_cut_starts_again(target: pathlib.Path):
    script = Script(BODY, cuts=2, etag=None)
    with serve(script) as url:
        download(Wanted([url]), target, policy=FAST)
    assert target.read_bytes() == BODY
    assert starts(script) == [0, 0, 0]


def test_a_server_that_ignores_ranges_sends_everything_again(target: pathlib.Path):
    script = Script(BODY, cuts=2, ranges=False)
    with serve(script) as url:
        download(Wanted([url], sha256=SHA256), target, policy=FAST)
    assert target.read_bytes() == BODY
    assert starts(script) == [0, 1000, 1000]


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("sha256", [SHA256, ""])
def test_a_file_that_changes_midway_is_fetched_anew(target: pathlib.Path, honest: bool, sha256: str):
    old = bytes(len(BODY))
    script = Script(old, cuts=1, swap_after=1, swap=BODY, honours_if_range=honest)
    with serve(script) as url:
        download(Wanted([url], sha256=sha256), target, policy=FAST)
    assert target.read_bytes() == BODY


def test_a_continued_file_with_the_wrong_hash_is_fetched_once_more_whole(target: pathlib.Path):
    target.parent.mkdir()
    target.with_name(".weights.bin.part").write_bytes(bytes(5000))
    script = Script(BODY, etag=None)
    with serve(script) as url:
        download(Wanted([url], sha256=SHA256), target, policy=FAST)
    assert target.read_bytes() == BODY
    assert starts(script) == [5000, 0]


def test_wrong_bytes_never_get_the_name_and_the_next_mirror_is_asked(target: pathlib.Path):
    wrong, right = Script(BODY[::-1]), Script(BODY)
    with serve(wrong) as bad, serve(right) as good:
        receipt = download(Wanted([bad, good], sha256=SHA256), target, policy=FAST)
        assert receipt.url == good
        target.unlink()
        with pytest.raises(DownloadError, match=f"sha256 {wrong.sha256}; expected {SHA256}.*thrown away"):
            download(Wanted([bad], sha256=SHA256), target, policy=FAST)
    assert names(target) <= {".weights.bin.json"}
    assert len(wrong.requests) == 2


def test_a_wrong_size_is_refused_before_a_byte_is_taken(target: pathlib.Path):
    with serve(Script(BODY)) as url, pytest.raises(DownloadError, match="100,000 bytes; expected 99,999"):
        download(Wanted([url], 99_999), target, policy=FAST)
    with (
        serve(Script(BODY, length=False)) as url,
        pytest.raises(DownloadError, match="100,000 bytes; expected 7"),
    ):
        download(Wanted([url], 7), target, policy=FAST)
    assert names(target) == set()


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_passing_failures_are_waited_out(target: pathlib.Path, status: int):
    script = Script(BODY, statuses=[(status, {}), (status, {})])
    with serve(script) as url:
        download(Wanted([url], sha256=SHA256), target, policy=FAST)
    assert target.read_bytes() == BODY


def test_retry_after_is_obeyed_as_seconds_and_as_a_date(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    date = email.utils.formatdate(time.time() + 1.5, usegmt=True)
    script = Script(BODY, statuses=[(429, {"Retry-After": "1"}), (503, {"Retry-After": date})])
    with serve(script) as url:
        download(Wanted([url], sha256=SHA256), target, policy=FAST)
    assert pauses[0] == 1.0
    assert 0.0 <= pauses[1] <= 1.5


def test_a_server_that_asks_for_too_long_is_given_up(target: pathlib.Path):
    script = Script(BODY, statuses=[(429, {"Retry-After": "3600"})])
    with serve(script) as url, pytest.raises(DownloadError, match=r"answers 429.* asks to wait 3600 s"):
        download(Wanted([url]), target, policy=FAST)


def test_failures_that_stay_end_with_every_address_and_its_cause(target: pathlib.Path):
    gone, down = Script(BODY, statuses=[(404, {})]), Script(BODY, statuses=[(500, {})] * 9)
    with serve(gone) as first, serve(down) as second:
        with pytest.raises(DownloadError) as caught:
            download(Wanted([first, f"{second}?token=secret"]), target, policy=FAST)
        assert not target.exists()
    line = str(caught.value)
    assert f"{first}: the server answers 404 Not Found" in line
    assert f"{second}: the server answers 500" in line
    assert "secret" not in line
    assert len(line.splitlines()) == 1
    assert caught.value.exit_code == 1
    assert len(gone.requests) == 1, "a refusal is no reason to ask again"
    assert len(down.requests) == FAST.attempts


def test_cuts_that_bring_nothing_new_end(target: pathlib.Path):
    script = Script(BODY, cuts=99, cut_after=100, ranges=False)
    with serve(script) as url, pytest.raises(DownloadError, match="ended at byte 100 of 100,000"):
        download(Wanted([url]), target, policy=FAST)
    assert len(script.requests) == 1 + FAST.attempts


def test_nobody_there_is_a_line(target: pathlib.Path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x"
        with pytest.raises(DownloadError, match="refused"):
            download(Wanted([url]), target, policy=FAST)


def test_a_part_that_is_whole_already_is_not_sent_again(target: pathlib.Path):
    target.parent.mkdir()
    target.with_name(".weights.bin.part").write_bytes(BODY)
    script = Script(BODY)
    with serve(script) as url:
        download(Wanted([url], sha256=SHA256), target, policy=FAST)
    assert target.read_bytes() == BODY
    assert starts(script) == [len(BODY)]


def test_a_part_goes_on_at_another_mirror(target: pathlib.Path):
    dying, other = Script(BODY, cuts=1, cut_after=30_000), Script(BODY, etag='"other"')
    with serve(dying) as first, serve(other) as second:
        with pytest.raises(DownloadError):
            download(Wanted([first], sha256=SHA256), target, policy=Policy(attempts=0, backoff_s=0.001))
        download(Wanted([second], sha256=SHA256), target, policy=FAST)
    assert starts(other) == [30_000]
    assert "If-Range" not in other.requests[0][1], "its tag belongs to the other mirror"
    assert target.read_bytes() == BODY


def test_a_full_disk_is_said_before_anything_is_written(
    target: pathlib.Path, monkeypatch: pytest.MonkeyPatch
):
    usage = transfer.shutil.disk_usage
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: usage(path)._replace(free=99_000))
    with (
        serve(Script(BODY)) as url,
        pytest.raises(CheckpointError, match=r"0.00 GB free; expected room") as e,
    ):
        download(Wanted([url]), target, policy=FAST)
    assert e.value.exit_code == 2
    assert not target.exists()


def test_offline_takes_what_is_here_and_nothing_else(target: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    script = Script(BODY)
    with serve(script) as url:
        monkeypatch.setenv("MMZOO_OFFLINE", "1")
        with pytest.raises(CheckpointError, match="not here, and MMZOO_OFFLINE is set"):
            download(Wanted([url]), target, policy=FAST)
        monkeypatch.setenv("MMZOO_OFFLINE", "0")
        download(Wanted([url]), target, policy=FAST)
        monkeypatch.setenv("MMZOO_OFFLINE", "1")
        assert download(Wanted([url]), target, policy=FAST).cached
    assert len(script.requests) == 1


def test_a_local_file_is_copied_and_checked(target: pathlib.Path, tmp_path: pathlib.Path):
    source = tmp_path / "a b.bin"
    source.write_bytes(BODY)
    assert local_path(source.as_uri()) == source
    assert download(Wanted([source.as_uri()], sha256=SHA256), target).sha256 == SHA256
    assert target.read_bytes() == BODY
    target.unlink()
    with pytest.raises(DownloadError, match="sha256"):
        download(Wanted([f"file:{source}"], sha256="0" * 64), target)
    with pytest.raises(CheckpointError, match="no such file"):
        download(Wanted([f"file:{tmp_path}/none"]), target)
    assert not target.exists()


def test_another_file_under_the_name_is_left_alone(target: pathlib.Path):
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(CheckpointError, match=f"expected sha256 {SHA256}. Remove it"):
        download(Wanted(["http://127.0.0.1:1/"], sha256=SHA256), target)
    assert target.read_bytes() == b"mine"
    assert present(Wanted([], size=4), target).sha256 == hashlib.sha256(b"mine").hexdigest()


def test_a_file_touched_since_its_receipt_is_hashed_again(target: pathlib.Path):
    with serve(Script(BODY)) as url:
        download(Wanted([url], sha256=SHA256), target, policy=FAST)
        target.write_bytes(BODY[:-1] + b"x")
        with pytest.raises(CheckpointError, match="Remove it"):
            download(Wanted([url], sha256=SHA256), target, policy=FAST)


def test_a_check_that_fails_leaves_nothing(target: pathlib.Path):
    def refuse(path: pathlib.Path) -> None:
        assert path.read_bytes() == BODY
        raise CheckpointError("not a model")

    with serve(Script(BODY)) as url, pytest.raises(CheckpointError, match="not a model"):
        download(Wanted([url], checks={"layout": refuse}), target, policy=FAST)
    assert names(target) == set()


def test_a_token_is_sent_to_its_host_only(target: pathlib.Path):
    files = Script(BODY)
    with serve(files) as url:
        hub = Script(BODY, statuses=[(302, {"Location": url.replace("127.0.0.1", "localhost")})])
        with serve(hub) as first:
            headers = {"Authorization": "Bearer t"}
            download(Wanted([first], sha256=SHA256, headers=headers), target, policy=FAST)
    assert hub.requests[0][1]["Authorization"] == "Bearer t"
    assert "Authorization" not in files.requests[0][1]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Wanted(["ftp://x/y"]), "expected https"),
        (lambda: Wanted(["https://x/y"], sha256="abc"), "64 hexadecimal digits"),
    ],
)
def test_what_cannot_be_wanted_is_said(make: Callable[[], Wanted], said: str):
    with pytest.raises(ConfigError, match=said):
        make()


CHILD = """
import pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background may have it ignored
from mmzoo.checkpoints.download import Wanted, download
receipt = download(Wanted([sys.argv[1]], sha256=sys.argv[2]), pathlib.Path(sys.argv[3]))
print("cached" if receipt.cached else "fetched")
"""


def child(url: str, target: pathlib.Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, url, SHA256, str(target)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "no_proxy": "*"},
    )


def test_of_two_processes_one_fetches_and_the_other_waits(target: pathlib.Path):
    script = Script(BODY, slow_s=0.1)
    with serve(script) as url:
        both = [child(url, target), child(url, target)]
        said = sorted(p.communicate(timeout=60)[0].strip() for p in both)
    assert said == ["cached", "fetched"]
    assert len(script.requests) == 1
    assert target.read_bytes() == BODY


def test_ctrl_c_leaves_a_part_that_the_next_call_continues(target: pathlib.Path):
    script = Script(BODY, slow_s=0.2)
    part = target.with_name(".weights.bin.part")
    with serve(script) as url:
        process = child(url, target)
        while not (part.is_file() and part.stat().st_size > 8000):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode != 0
        assert not target.exists()
        kept = part.stat().st_size
        script.slow_s = 0.0
        download(Wanted([url], sha256=SHA256), target, policy=FAST)
    assert kept > 8000
    assert starts(script) == [0, kept]
    assert target.read_bytes() == BODY
