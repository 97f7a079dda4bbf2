"""Downloads against a server that stalls, cuts, lies and redirects; npm and pip that fail."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY
from server import Answers, serving

from vilmedic_ssl.data.fetching import packages
from vilmedic_ssl.data.fetching.http import CHUNK, Https
from vilmedic_ssl.data.fetching.packages import Npm
from vilmedic_ssl.errors import UserError
from vilmedic_ssl.locks import only_one

BODY = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(BODY).hexdigest()
FAST = {"pause": 0.001, "stall": 5.0, "attempts": 3}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def source(*urls: str, **keys: object) -> Https:
    return Https(**{"archive": "file.bin", "md5": MD5, "urls": urls, **FAST, **keys})  # type: ignore[arg-type]


def refusal(where: Https, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        where.fetch(folder, name="toy")
    assert "\n" not in str(caught.value)
    assert not (folder / "file.bin").exists()
    return str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_fetched_once_and_alone(tmp_path: Path) -> None:
    with serving(Answers(BODY)) as answers:
        for _ in range(2):
            path = source(answers.url).fetch(tmp_path / "new", name="toy")
            assert path.read_bytes() == BODY
    assert len(answers.seen) == 1 and names(tmp_path / "new") == ["file.bin"]


@pytest.mark.parametrize("etags", [['"a"'], ['W/"a"'], []], ids=["etag", "weak", "none"])
def test_cut_at_ten_random_bytes_ends_equal(tmp_path: Path, etags: list[str]) -> None:
    cuts = sorted(np.random.default_rng(len(etags)).integers(1, len(BODY), 10).tolist())
    with serving(Answers(BODY, cuts=list(cuts), etags=etags)) as answers:
        path = source(answers.url).fetch(tmp_path, name="toy")
    assert path.read_bytes() == BODY and names(tmp_path) == ["file.bin"]
    assert [asked for asked, _ in answers.seen] == [None, *(f"bytes={cut}-" for cut in cuts)]
    assert {edition for _, edition in answers.seen[1:]} == {'"a"' if etags == ['"a"'] else None}


def test_ten_processes_killed_at_random_bytes_end_equal(tmp_path: Path) -> None:
    """Each process dies without warning; the next one goes on where it stopped."""
    cuts = sorted(np.random.default_rng(3).integers(1000, len(BODY), 10).tolist())
    for cut in cuts:
        with serving(Answers(BODY, cuts=[cut], etags=['"a"'])) as answers:
            refusal(source(answers.url, attempts=1), tmp_path)
        assert (tmp_path / "file.bin.partial").read_bytes() == BODY[:cut]
        assert len(answers.seen) == 1
    with serving(Answers(BODY, etags=['"a"'])) as answers:
        assert source(answers.url).fetch(tmp_path, name="toy").read_bytes() == BODY
    assert answers.seen[0][0] == f"bytes={cuts[-1]}-"
    assert names(tmp_path) == ["file.bin"]


def test_a_killed_process_is_continued(tmp_path: Path) -> None:
    with serving(Answers(BODY, stalls=[20.0])) as answers:
        code = (
            "from pathlib import Path\n"
            "from vilmedic_ssl.data.fetching.http import Https\n"
            f"Https(archive='file.bin', md5={MD5!r}, urls=({answers.url!r},)).fetch("
            f"Path({str(tmp_path)!r}), name='toy')"
        )
        running = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stderr=subprocess.DEVNULL,
        )
        partial, until = tmp_path / "file.bin.partial", time.monotonic() + 15
        while not (partial.exists() and partial.stat().st_size) and time.monotonic() < until:
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.wait()
        kept = partial.stat().st_size
        assert 0 < kept < len(BODY)
        assert source(answers.url).fetch(tmp_path, name="toy").read_bytes() == BODY
    assert answers.seen[-1][0] == f"bytes={kept}-"


def test_a_server_without_ranges_starts_over(tmp_path: Path) -> None:
    with serving(Answers(BODY, cuts=[1000, 2000], ranges=False)) as answers:
        assert source(answers.url).fetch(tmp_path, name="toy").read_bytes() == BODY
    with serving(Answers(BODY, cuts=[1000] * 99, ranges=False)) as answers:
        told = refusal(source(answers.url), tmp_path / "b")
    assert "ended after 1,000 of 300,000 bytes" in told and "1,000 bytes are kept" in told
    assert len(answers.seen) == 3


def test_all_had_arrived_before_the_kill(tmp_path: Path) -> None:
    (tmp_path / "file.bin.partial").write_bytes(BODY)
    with serving(Answers(BODY)) as answers:
        assert source(answers.url).fetch(tmp_path, name="toy").read_bytes() == BODY
    assert len(answers.seen) == 1


@pytest.mark.parametrize("kept", [b"x" * 5000, b"x" * 300_000, b"x" * 400_000])
def test_wrong_kept_bytes_are_thrown_away(tmp_path: Path, kept: bytes) -> None:
    (tmp_path / "file.bin.partial").write_bytes(kept)
    with serving(Answers(BODY)) as answers:
        assert source(answers.url).fetch(tmp_path, name="toy").read_bytes() == BODY
    assert len(answers.seen) == 2 and names(tmp_path) == ["file.bin"]


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    old = bytes(len(BODY))
    with serving(Answers(BODY, cuts=[5000], bodies=[old], etags=['"a"', '"b"'])) as answers:
        assert source(answers.url).fetch(tmp_path, name="toy").read_bytes() == BODY
    assert answers.seen == [(None, None), ("bytes=5000-", '"a"')]  # If-Range brought all of it
    unsure = Answers(BODY, cuts=[5000], bodies=[old])  # no ETag: only the checksum can tell
    with serving(unsure) as answers:
        assert source(answers.url).fetch(tmp_path / "b", name="toy").read_bytes() == BODY
    assert [asked for asked, _ in answers.seen] == [None, "bytes=5000-", None]


def test_wrong_checksum_is_refused_with_both(tmp_path: Path) -> None:
    wrong = b"x" * 1000
    with serving(Answers(wrong)) as answers:
        told = refusal(source(answers.url), tmp_path)
    assert MD5 in told and hashlib.md5(wrong).hexdigest() in told
    assert names(tmp_path) == [] and len(answers.seen) == 1
    with serving(Answers(wrong, cuts=[500])) as answers:  # resumed, so it gets a second chance
        told = refusal(source(answers.url), tmp_path)
    assert MD5 in told and len(answers.seen) == 3 and names(tmp_path) == []


def test_without_a_checksum_only_one_edition_is_joined(tmp_path: Path) -> None:
    old = bytes(len(BODY))
    for etags, requests in ((['"a"', '"b"'], 2), ([], 2)):
        answers = Answers(BODY, cuts=[5000], bodies=[old], etags=list(etags))
        with serving(answers):
            path = source(answers.url, md5="").fetch(tmp_path / str(len(etags)), name="toy")
        assert path.read_bytes() == BODY and len(answers.seen) == requests
    with serving(Answers(BODY, cuts=[5000], etags=['"a"'])) as answers:
        path = source(answers.url, md5="").fetch(tmp_path / "same", name="toy")
    assert path.read_bytes() == BODY and answers.seen[1] == ("bytes=5000-", '"a"')


def test_lies_about_length(tmp_path: Path) -> None:
    with serving(Answers(BODY, length=100)) as answers:
        told = refusal(source(answers.url), tmp_path)
    assert hashlib.md5(BODY[:100]).hexdigest() in told
    with serving(Answers(BODY, length=len(BODY) + 5)) as answers:
        assert source(answers.url).fetch(tmp_path / "b", name="toy").read_bytes() == BODY
    with serving(Answers(BODY, cuts=[5000], shift=7)) as answers:
        assert source(answers.url).fetch(tmp_path / "c", name="toy").read_bytes() == BODY


def test_more_than_allowed(tmp_path: Path) -> None:
    with serving(Answers(BODY)) as answers:
        told = refusal(source(answers.url, limit=1000), tmp_path)
    assert "announces 300,000 bytes" in told and names(tmp_path) == []


def test_a_stall_is_given_up_and_resumed(tmp_path: Path) -> None:
    with serving(Answers(BODY, stalls=[1.0, 1.0, 1.0])) as answers:
        begin = time.monotonic()
        path = source(answers.url, stall=0.2).fetch(tmp_path, name="toy")
    assert path.read_bytes() == BODY and len(answers.seen) == 4
    assert time.monotonic() - begin < 20
    assert len(BODY) > CHUNK  # or nothing would have been read before the stall


def test_answers_that_pass_and_answers_that_do_not(tmp_path: Path) -> None:
    with serving(Answers(BODY, codes=[503, 429])) as answers:
        assert source(answers.url).fetch(tmp_path, name="toy").read_bytes() == BODY
    with serving(Answers(BODY, codes=[404])) as answers:
        assert "404 Not Found" in refusal(source(answers.url), tmp_path / "b")
    assert len(answers.seen) == 1
    gone = source(answers.url)  # the server is down
    told = refusal(gone, tmp_path / "c")
    assert "refused" in told and f"into {tmp_path / 'c'} as file.bin yourself" in told


@pytest.mark.parametrize(
    ("asked", "waits"), [("7", [7.0, 7.0]), ("9999", [60.0, 60.0]), ("soon", [0.5, 1.0])]
)
def test_waits_as_long_as_it_is_asked_to(
    tmp_path: Path, asked: str, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("vilmedic_ssl.data.fetching.http.time.sleep", slept.append)
    with serving(Answers(BODY, codes=[503, 503], retry_after=asked)) as answers:
        source(answers.url, pause=0.5).fetch(tmp_path, name="toy")
    assert slept == waits


def test_a_second_mirror(tmp_path: Path) -> None:
    with serving(Answers(BODY, cuts=[5000, 5000, 5000])) as one, serving(Answers(BODY)) as two:
        path = source(one.url, two.url).fetch(tmp_path, name="toy")
    assert path.read_bytes() == BODY and two.seen[0] == ("bytes=5000-", None)
    with serving(Answers(b"wrong")) as one, serving(Answers(BODY)) as two:
        assert source(one.url, two.url).fetch(tmp_path / "b", name="toy").read_bytes() == BODY


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://example.org/x", "http://[::1"]
)
def test_redirects_leave_neither_https_nor_this_machine(tmp_path: Path, location: str) -> None:
    with serving(Answers(BODY, location=location)) as answers:
        told = refusal(source(answers.url), tmp_path)
    assert "could not be fetched" in told and names(tmp_path) == []


def test_redirects_on_this_machine_are_followed(tmp_path: Path) -> None:
    with serving(Answers(BODY)) as two, serving(Answers(b"", location=two.url)) as one:
        assert source(one.url).fetch(tmp_path, name="toy").read_bytes() == BODY


@pytest.mark.parametrize("url", ["http://example.org/x", "file:///etc/passwd", "ftp://x/y"])
def test_only_https(tmp_path: Path, url: str) -> None:
    assert "only https" in refusal(source(url), tmp_path)


def test_broken_notes_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "file.bin.partial").write_bytes(BODY[:5000])
    for notes in ("{", "[]", json.dumps({"url": 3})):
        (tmp_path / "file.bin.partial.json").write_text(notes)
    with serving(Answers(BODY)) as answers:
        assert source(answers.url).fetch(tmp_path, name="toy").read_bytes() == BODY
    assert answers.seen == [("bytes=5000-", None)]


# Two processes ----------------------------------------------------------------------------------

needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="no locks there")


def process(code: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE)


@needs_locks
@pytest.mark.parametrize("md5", [MD5, ""], ids=["checksum", "none"])
def test_processes_that_want_one_file_fetch_it_once(tmp_path: Path, md5: str) -> None:
    with serving(Answers(BODY, stalls=[5.0])) as answers:
        code = (
            "from pathlib import Path\n"
            "from vilmedic_ssl.data.fetching.http import Https\n"
            f"Https(archive='file.bin', md5={md5!r}, urls=({answers.url!r},)).fetch("
            f"Path({str(tmp_path)!r}), name='toy')"
        )
        told = [p.communicate(timeout=60)[1] for p in [process(code) for _ in range(3)]]
    assert (tmp_path / "file.bin").read_bytes() == BODY and names(tmp_path) == ["file.bin"]
    assert len(answers.seen) == 1
    waited = f"another process is fetching {tmp_path / 'file.bin'}; waiting\n"
    assert sorted(text == waited for text in told) == [False, True, True]


@needs_locks
def test_a_lock_ends_with_its_process(tmp_path: Path, capsys) -> None:
    code = (
        "import time\nfrom pathlib import Path\n"
        "from vilmedic_ssl.locks import only_one\n"
        f"with only_one(Path({str(tmp_path / 'toy')!r}), 'making toy'):\n"
        f"    Path({str(tmp_path / 'in')!r}).touch()\n    time.sleep(60)"
    )
    holding, until = process(code), time.monotonic() + 30
    while not (tmp_path / "in").exists() and time.monotonic() < until:
        time.sleep(0.02)
    threading.Timer(0.5, holding.kill).start()
    begin = time.monotonic()
    with only_one(tmp_path / "toy", "making toy"):
        assert 0.3 < time.monotonic() - begin < 20
        assert names(tmp_path) == [".toy.lock", "in"]
    holding.communicate()
    assert names(tmp_path) == ["in"]
    assert capsys.readouterr().err == "another process is making toy; waiting\n"


@needs_locks
def test_only_one_is_inside(tmp_path: Path) -> None:
    """Locks are taken away when let go; nobody may end up with the lock of a file that is gone."""
    inside: list[int] = []
    seen: list[int] = []

    def enter() -> None:
        for _ in range(50):
            with only_one(tmp_path / "toy", "making toy"):
                inside.append(1)
                seen.append(len(inside))
                time.sleep(0.0005)
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 300 and names(tmp_path) == []


@needs_locks
def test_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def flock(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    with serving(Answers(BODY)) as answers:
        assert source(answers.url).fetch(tmp_path, name="toy").read_bytes() == BODY
    assert "cannot be locked" in capsys.readouterr().err and names(tmp_path) == ["file.bin"]


# Packages ---------------------------------------------------------------------------------------

TOY = Npm(spec="toy@1", archive="toy-1.tgz", sha256="0" * 64)


def test_no_npm_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="npm is needed to fetch toy@1.*install Node.js") as caught:
        TOY.fetch(tmp_path, name="toy")
    assert "\n" not in str(caught.value) and f"toy-1.tgz into {tmp_path}" in str(caught.value)
    assert names(tmp_path) == []


def test_npm_that_fails_and_npm_that_brings_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if len(commands) > 1:
            folder = command[-1].removeprefix("--pack-destination=")
            (Path(folder) / "toy-1.tgz").write_bytes(b"something else")
        told = "npm error code E404\nnpm error 404 Not Found - GET https://r/toy\n"
        return subprocess.CompletedProcess(command, int(len(commands) == 1), "", told)

    monkeypatch.setattr(packages.shutil, "which", lambda _: "/usr/bin/npm")
    monkeypatch.setattr(packages.subprocess, "run", run)
    with pytest.raises(UserError, match="404 Not Found - GET"):
        TOY.fetch(tmp_path, name="toy")
    with pytest.raises(UserError, match="expected sha256 000"):
        TOY.fetch(tmp_path, name="toy")
    assert "--ignore-scripts" in commands[0] and names(tmp_path) == []
