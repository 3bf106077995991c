"""Files appear whole or not at all, and equal values have equal digests."""

import errno
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.files import (
    atomic,
    canonical_json,
    digest,
    fresh_folder,
    read_json,
    remove_stale,
    scratch,
    sha256_file,
    write_json,
    write_text,
)
from pipeline.readers.sample_key import content_key
from pipeline.store.links import link_or_copy


def names(folder: Path) -> list[str]:
    """Everything below a folder, hidden files included."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# One file ------------------------------------------------------------------------------------------------------------


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert str(os.getpid()) in temporary.name
    assert path.read_text() == "whole"
    assert names(path.parent) == ["a.txt"]


def test_a_new_file_replaces_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    write_text(tmp_path / "a.txt", "new: ä")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "new: ä"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a.txt").write_text("old")

    def fail() -> None:
        with atomic(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise error("stopped")

    with pytest.raises(error, match="stopped"):
        fail()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_exception_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        fail()
    assert names(tmp_path) == []


def test_a_file_that_was_never_written_is_an_error_and_keeps_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "a.txt"):
        pass
    assert (tmp_path / "a.txt").read_text() == "old"


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with atomic(tmp_path / "a.txt") as one, atomic(tmp_path / "a.txt") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a.txt").read_text() == "one"  # the last to be finished
    assert names(tmp_path) == ["a.txt"]


def test_a_scratch_file_is_gone_afterwards(tmp_path: Path) -> None:
    with scratch(tmp_path / "made", "x") as temporary:
        temporary.write_text("something")
    assert names(tmp_path) == ["made"]


# One folder ----------------------------------------------------------------------------------------------------------


def test_a_fresh_folder_replaces_all_of_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "below" / "f" / "old" / "a.txt", "old")
    with fresh_folder(tmp_path / "below" / "f") as new:
        assert names(new) == []
        write_text(new / "b.txt", "new")
        assert names(tmp_path / "below" / "f") == ["old", "old/a.txt"]
    assert names(tmp_path / "below") == ["f", "f/b.txt"]


def test_a_fresh_folder_is_made_where_none_was_with_the_usual_mode(tmp_path: Path) -> None:
    with fresh_folder(tmp_path / "below" / "f") as new:
        write_text(new / "b.txt", "new")
    (tmp_path / "plain").mkdir()
    assert names(tmp_path / "below") == ["f", "f/b.txt"]
    assert (tmp_path / "below" / "f").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_exception_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "f" / "a.txt", "old")

    def fail() -> None:
        with fresh_folder(tmp_path / "f") as new:
            write_text(new / "b.txt", "new")
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        fail()
    assert names(tmp_path) == ["f", "f/a.txt"]


# Second names --------------------------------------------------------------------------------------------------------


def test_a_link_is_the_same_file_under_a_second_name(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "text")
    assert link_or_copy(tmp_path / "a.txt", tmp_path / "new" / "b.txt") in ("hardlink", "reflink")
    assert (tmp_path / "new" / "b.txt").read_text() == "text"


def test_a_link_replaces_what_was_there_and_leaves_its_content_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "new")
    write_text(tmp_path / "old.txt", "old")
    link_or_copy(tmp_path / "old.txt", tmp_path / "b.txt")
    link_or_copy(tmp_path / "a.txt", tmp_path / "b.txt")
    assert (tmp_path / "b.txt").read_text() == "new"
    assert (tmp_path / "old.txt").read_text() == "old"


def test_where_linking_fails_a_read_only_copy_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    write_text(tmp_path / "a.txt", "text")
    write_text(tmp_path / "new" / "b.txt", "old")
    assert link_or_copy(tmp_path / "a.txt", tmp_path / "new" / "b.txt") == "copy"
    copy = tmp_path / "new" / "b.txt"
    assert copy.read_text() == "text"
    assert not copy.samefile(tmp_path / "a.txt")
    assert stat.S_IMODE(copy.stat().st_mode) == 0o444
    assert names(tmp_path / "new") == ["b.txt"]


def test_linking_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        link_or_copy(tmp_path / "a.txt", tmp_path / "b.txt")
    assert names(tmp_path) == []


# JSON and digests ----------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def turned(value: Any) -> Any:
    """The same value with all its mappings in the opposite order."""
    if isinstance(value, dict):
        return {key: turned(inner) for key, inner in reversed(value.items())}
    return [turned(inner) for inner in value] if isinstance(value, list) else value


def normal(value: Any) -> Any:
    """A value with sorted mappings, to compare by `repr`, for which 1, 1.0 and True are three values."""
    if isinstance(value, dict):
        return {key: normal(value[key]) for key in sorted(value)}
    return [normal(inner) for inner in value] if isinstance(value, list) else value


@settings(max_examples=50, deadline=None)
@given(VALUES)
def test_the_order_of_keys_does_not_matter_and_nothing_is_lost(value: Any) -> None:
    text = canonical_json(value)
    assert canonical_json(turned(value)) == text
    assert repr(normal(json.loads(text))) == repr(normal(value))
    assert digest(turned(value)) == digest(value) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("other", [{"a": 2}, {"b": 1}, {"a": 1, "b": 1}, {"a": 1.5}, {"a": "1"}, {"a": [1]}, {}])
def test_another_value_has_another_digest(other: dict[str, Any]) -> None:
    assert digest(other) != digest({"a": 1})


def test_canonical_json_has_no_spaces_and_keeps_letters_as_they_are() -> None:
    assert canonical_json({"b": [1, 2.5, None], "a": "ä"}) == '{"a":"ä","b":[1,2.5,null]}'


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_refused_and_the_old_file_stays(tmp_path: Path, number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json([number])
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"new": number})
    assert read_json(tmp_path / "a.json") == {"old": 1}


def test_json_for_people_keeps_the_order_of_keys(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "ä"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": "ä"\n}\n'


def test_damaged_json_is_an_error_with_the_name_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="Expecting property name") as caught:
        read_json(tmp_path / "a.json")
    assert caught.value.__notes__ == [f"while reading {tmp_path / 'a.json'}"]


def test_a_content_key_is_blake2b_of_16_bytes() -> None:
    # `printf abc | b2sum -l 128` of GNU coreutils
    assert content_key(b"abc") == "cf4ab791c62b8d2b2109c90275287816"
    assert content_key(b"") == "cae66941d9efbd404e4d88758ea67670"


@settings(max_examples=50, deadline=None)
@given(st.binary(), st.binary())
def test_equal_contents_and_only_those_have_equal_keys(one: bytes, other: bytes) -> None:
    assert len(content_key(one)) == 32
    assert content_key(bytes(bytearray(one))) == content_key(one)
    assert (content_key(one) == content_key(other)) == (one == other)


def test_the_sha256_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# What a kill leaves --------------------------------------------------------------------------------------------------


def test_only_temporary_files_of_our_own_names_are_swept(tmp_path: Path) -> None:
    strangers = [".x.tmp", ".tmp", ".a.b.c.d.tmp", ".x.0123abcd.notanumber.89abcdef.tmp"]
    for name in strangers:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    with subprocess.Popen([sys.executable, "-c", KILLED.format(folder=str(tmp_path))]) as dead:
        os.waitid(os.P_PID, dead.pid, os.WEXITED | os.WNOWAIT)  # it stays a zombie until the end of the block
        assert len(names(tmp_path)) == len(strangers) + 2  # a folder and a file in it
        with scratch(tmp_path, "live") as live:
            live.touch()
            assert remove_stale(tmp_path) == 1
            assert names(tmp_path) == sorted([*strangers, live.name])
    assert dead.returncode == -9


KILLED = """
import os, signal
from pathlib import Path
from pipeline.files import scratch
with scratch(Path({folder!r}), "f") as temporary:
    temporary.mkdir()
    (temporary / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("call", range(3))
def test_a_kill_at_any_rename_leaves_the_whole_old_or_the_whole_new_folder(
    tmp_path: Path, call: int, exchange: bool
) -> None:
    """The process ends in the place of its n-th rename; without an exchange the next call puts the old folder back."""
    folder = tmp_path / "f"
    write_text(folder / "a.txt", "old")
    arguments = [str(folder), str(call), str(exchange)]
    subprocess.run([sys.executable, "-c", EXCHANGED, *arguments], check=False, capture_output=True)
    if exchange:
        assert names(folder) in (["a.txt"], ["b.txt"])

    def fail() -> None:
        with fresh_folder(folder):
            assert names(folder) in (["a.txt"], ["b.txt"])
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        fail()
    assert names(tmp_path) in (["f", "f/a.txt"], ["f", "f/b.txt"])


EXCHANGED = """
import os, signal, sys
from pathlib import Path
from pipeline import files
folder, last, exchange = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
events = 0
def watch(event, arguments):
    global events
    if event in ("os.rename", "ctypes.dlopen", "os.rmdir", "shutil.rmtree"):
        events += 1
        if events > last:
            os.kill(os.getpid(), signal.SIGKILL)
if not exchange:
    files._exchange = lambda one, other: False
with files.fresh_folder(folder) as new:
    (new / "b.txt").write_text("new")
    sys.addaudithook(watch)
"""


def test_what_an_earlier_version_left_of_a_folder_is_put_back_or_swept(tmp_path: Path) -> None:
    write_text(tmp_path / ".f.ab12_xyz" / "replaced" / "a.txt", "old")
    write_text(tmp_path / ".f.ab12_xyz" / "f" / "b.txt", "half")
    write_text(tmp_path / ".f.stranger" / "notes.txt", "of a user")
    for left in (".f.ab12_xyz", ".f.stranger"):
        os.utime(tmp_path / left, (0, 0))
    with fresh_folder(tmp_path / "f"):
        assert (tmp_path / "f" / "a.txt").read_text() == "old"
        os.utime(tmp_path / ".f.ab12_xyz", (0, 0))
    with fresh_folder(tmp_path / "f"):
        assert not (tmp_path / ".f.ab12_xyz").exists()
    assert names(tmp_path) == [".f.stranger", ".f.stranger/notes.txt", "f"]


# Modes and owners ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("umask", "usual"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
@pytest.mark.parametrize("own", [0o600, 0o400])
def test_a_published_file_has_the_mode_that_the_umask_gives(tmp_path: Path, umask: int, usual: int, own: int) -> None:
    """Libraries make files with mode 0600, as safetensors does; what is read-only stays read-only."""
    earlier = os.umask(umask)
    try:
        with atomic(tmp_path / "a") as temporary:
            temporary.write_text("text")
            temporary.chmod(own)
    finally:
        os.umask(earlier)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == (usual if own == 0o600 else usual & 0o444)
    assert names(tmp_path) == ["a"]
