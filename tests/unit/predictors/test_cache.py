"""The cache of weights: its owner and modes, files that are whole or made again, and its lock."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from spark_aesthetic.errors import WeightsError
from spark_aesthetic.predictors import cache

NOBODY = 65_534


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SPARK_AESTHETIC_CACHE", str(folder))
    return folder


@pytest.fixture
def umask() -> Iterator[None]:
    """Set the umask of machines where each user has a group, to which some add other users."""
    before = os.umask(0o002)
    yield
    os.umask(before)


def published(name: str = "prepared/file", content: bytes = b"content") -> Path:
    target = cache.cache_path() / name
    with cache.locked(target):
        cache.publish(target, lambda path: path.write_bytes(content))
    return target


@pytest.mark.usefixtures("umask")
def test_the_cache_is_readable_by_all_and_writable_by_its_user_alone(own_cache: Path) -> None:
    target = published()
    for folder in (own_cache, target.parent):
        assert folder.stat().st_mode & 0o777 == 0o755
    for file in (target, target.with_name("file.b3")):
        assert file.stat().st_mode & 0o777 == 0o644
    assert cache.is_whole(target)


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o2775], ids=oct)
@pytest.mark.parametrize("place", ["cache", "cache/prepared", "cache/prepared/file", "cache/prepared/file.b3"])
def test_what_others_can_write_to_is_refused(mode: int, place: str, tmp_path: Path) -> None:
    target = published()
    (tmp_path / place).chmod(mode)
    with pytest.raises(
        WeightsError, match=rf"{place}' to be writable only by the user .*, found mode .*SPARK_AESTHETIC_"
    ):
        cache.is_whole(target)
    if (tmp_path / place).is_dir():
        with pytest.raises(WeightsError, match="writable only by the user"), cache.locked(target):
            pass


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user, which takes root")
@pytest.mark.parametrize("place", ["cache", "cache/prepared", "cache/prepared/file", "cache/prepared/file.b3"])
def test_what_belongs_to_another_user_is_refused(place: str, tmp_path: Path) -> None:
    target = published()
    os.chown(tmp_path / place, NOBODY, NOBODY)
    with pytest.raises(WeightsError, match=f"found one owned by the user with the id {NOBODY}"):
        cache.is_whole(target)


def test_in_a_folder_for_everyone_each_user_has_a_subfolder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)
    monkeypatch.setenv("SPARK_AESTHETIC_CACHE", str(shared))
    assert cache.cache_dir() == shared / f"spark-aesthetic-{os.getuid()}"
    assert cache.is_whole(published())


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")
def test_two_users_of_one_machine_do_not_meet() -> None:
    # Other users cannot enter pytest's own folder, so the cache is in a different one.
    with tempfile.TemporaryDirectory() as shared:
        Path(shared).chmod(0o1777)
        told = [_published_by(user, shared) for user in (0, NOBODY)]
    assert [whole for whole, _ in told] == ["True", "True"]
    assert len({path for _, path in told}) == 2


def _published_by(user: int, shared: str) -> list[str]:
    code = (
        "import os, sys, blake3; from spark_aesthetic.predictors import cache\n"
        "os.setuid(int(sys.argv[1])); target = cache.cache_path() / 'prepared' / 'file'\n"
        "with cache.locked(target): cache.publish(target, lambda path: path.write_bytes(b'content'))\n"
        "print(cache.is_whole(target), target)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(user)], env={**os.environ, "SPARK_AESTHETIC_CACHE": shared},
        check=True, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.stdout.split()


def test_without_a_home_folder_the_cache_is_in_the_folder_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SPARK_AESTHETIC_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    # The home folder is a file, in which even root cannot make a folder.
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cache.tempfile, "tempdir", str(tmp_path))
    assert cache.cache_dir().is_relative_to(tmp_path)


@pytest.mark.parametrize("damage", ["shortened", "altered", "digest lost", "digest emptied", "digest altered", "lost"])
def test_a_file_that_is_not_whole_is_known(damage: str) -> None:
    target = published()
    digest = target.with_name("file.b3")
    if damage == "shortened":
        target.write_bytes(b"conten")
    elif damage == "altered":
        target.write_bytes(b"Content")
    elif damage == "digest emptied":
        digest.write_text("")
    elif damage == "digest altered":
        digest.write_bytes(b"\xff\xfe" + digest.read_bytes())
    else:
        (target if damage == "lost" else digest).unlink()
    assert not cache.is_whole(target)
    assert cache.is_whole(published())


def test_the_digest_is_of_the_format_that_b3sum_checks() -> None:
    # BLAKE3 of b"abc", from the test vectors of the digest's own authors.
    target = published(content=b"abc")
    expected = "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
    assert target.with_name("file.b3").read_text() == f"{expected}  file\n"


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("no weights")]
)
def test_a_write_that_fails_leaves_nothing(error: BaseException) -> None:
    def write(path: Path) -> None:
        path.write_bytes(b"half of it")
        raise error

    target = cache.cache_path() / "prepared" / "file"
    expected = WeightsError if isinstance(error, OSError) else type(error)
    with cache.locked(target), pytest.raises(expected) as caught:
        cache.publish(target, write)
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
        assert "Make space" in str(caught.value)
    assert [path.name for path in target.parent.iterdir() if path.suffix != ".lock"] == []


def test_a_disk_that_is_full_is_one_line_with_the_remedy() -> None:
    code = (
        "import resource, signal; from spark_aesthetic.predictors import cache\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "target = cache.cache_path() / 'prepared' / 'file'\n"
        "try:\n"
        "    with cache.locked(target): cache.publish(target, lambda path: path.write_bytes(bytes(5000)))\n"
        "except cache.WeightsError as error: print(error)\n"
        "print(*sorted(path.name for path in target.parent.iterdir()))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    message, left = done.stdout.splitlines()
    assert "File too large. Make space in the cache of weights" in message
    assert set(left.split()) <= {"file.lock"}


def test_a_lock_that_another_process_holds_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "_WAITING_SECONDS", 0.2)
    target = cache.cache_path() / "prepared" / "file"
    code = (
        "import sys; from pathlib import Path; from spark_aesthetic.predictors import cache\n"
        "with cache.locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(target)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    threading.Timer(1.0, holder.stdin.close).start()
    with caplog.at_level(logging.WARNING), cache.locked(target):
        pass
    assert f"waiting for file: another process holds {target}.lock" in caplog.text
    assert holder.wait(30) == 0
    holder.stdout.close()
