"""Files and folders that are whole or absent: killed at every point, written twice at once, refused by the system."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cfg_distill import files
from cfg_distill.errors import ConfigError
from cfg_distill.files import expanded, problems_of_out, staged, staged_folder, strangers, write_text

# A child is killed at the n-th thing that python asks of the system, for n = 1, 2, ... until a child comes through. After each
# kill the folder is looked at as a reader would, then written again as by the next run.
KILLED = """
import os, signal, sys
from pathlib import Path
from cfg_distill.files import staged

if sys.argv[2] == "renames":
    staged.exchanged = lambda one, other: False
out = Path(sys.argv[1], "student")

def write(value):
    with staged.staged_folder(out) as folder:
        for name in ("config.json", "model.safetensors"):
            (folder / name).write_text(value)

def whole():
    values = {name: (out / name).read_text() for name in ("config.json", "model.safetensors")}
    assert len(set(values.values())) == 1 and len(os.listdir(out)) == 2, values
    return values["config.json"]

def killed_at(number):
    count = 0
    def hook(event, arguments):
        nonlocal count
        if event.split(".")[0] in ("os", "open", "shutil", "ctypes", "fcntl"):
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    write(f"new {number}")
    os._exit(0)

write("old 0")
number, seen, absent = 0, set(), 0
while True:
    number += 1
    child = os.fork()
    if not child:
        killed_at(number)
    _, status = os.waitpid(child, 0)
    if not out.exists():
        absent += 1
        assert sys.argv[2] == "renames"
        assert (out.parent / ".student.replaced").exists()
        try:
            with staged.staged_folder(out):
                raise KeyError  # the next run restores the old folder before all else
        except KeyError:
            pass
    value = whole()
    assert value in (f"old {number - 1}", f"new {number}"), (number, value)
    seen.add(value.split()[0])
    write(f"old {number}")
    assert whole() == f"old {number}" and os.listdir(out.parent) == ["student"], os.listdir(out.parent)
    if status == 0:
        break
print(number, *sorted(seen), absent)
"""


@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_a_kill_at_any_point_leaves_the_old_folder_or_the_new_one(tmp_path: Path, way: str) -> None:
    words = [sys.executable, "-c", KILLED, str(tmp_path), way]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    points, *seen, absent = done.stdout.split()
    assert int(points) > 20 and seen == ["new", "old"]
    assert int(absent) == 0 if way == "exchange" else int(absent) >= 1


def test_one_process_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "student"
    with staged_folder(out) as folder:
        (folder / "config.json").write_text("first")
        with pytest.raises(ConfigError, match="is being written by another process"), staged_folder(out):
            raise AssertionError
        assert (folder / "config.json").read_text() == "first"
    assert (out / "config.json").read_text() == "first"
    assert os.listdir(tmp_path) == ["student"]


def test_many_processes_at_once_leave_one_whole_folder(tmp_path: Path) -> None:
    script = f"""
import os, time
from cfg_distill.errors import ConfigError
from cfg_distill.files import staged_folder
while time.time() < {{start}}:
    pass
written = 0
for turn in range(40):
    try:
        with staged_folder({str(tmp_path / "student")!r}) as folder:
            for name in "abc":
                (folder / name).write_text(str(os.getpid()))
        written += 1
    except ConfigError:
        pass
print(written)
"""
    start = time.time() + 1.5
    words = [sys.executable, "-c", script.format(start=start)]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    results = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], results
    assert sum(int(out) for out, _ in results) >= 3  # how many get in is up to the scheduler
    assert sorted(os.listdir(tmp_path / "student")) == ["a", "b", "c"]
    assert len({(tmp_path / "student" / name).read_text() for name in "abc"}) == 1
    assert os.listdir(tmp_path) == ["student"]


def test_an_exception_leaves_the_old_folder(tmp_path: Path) -> None:
    out = tmp_path / "student"
    with staged_folder(out) as folder:
        (folder / "config.json").write_text("old")

    def interrupted() -> None:
        with staged_folder(out) as folder:
            (folder / "config.json").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (out / "config.json").read_text() == "old" and os.listdir(tmp_path) == ["student"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "student").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "student")
    with staged_folder(tmp_path / "link") as folder:
        (folder / "config.json").write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "student" / "config.json").exists()


def test_what_the_system_refuses_is_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for out in ("file", "file/student"):
        with (
            pytest.raises(ConfigError, match=rf"Key `out`: `.*{out}` cannot be written: "),
            staged_folder(tmp_path / out),
        ):
            raise AssertionError

    def refuse(*arguments: object, **settings: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    for name in ("mkdir", "open", "rename"):
        with monkeypatch.context() as patched:
            patched.setattr(os, name, refuse)
            with (
                pytest.raises(ConfigError, match="cannot be written: Permission denied"),
                staged_folder(tmp_path / "new"),
            ):
                pass
    with pytest.raises(ConfigError, match="cannot be written: No space left"), staged_folder(tmp_path / "new"):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError), staged_folder(tmp_path / "new"):
        refuse()  # of what the block reads
    assert os.listdir(tmp_path) == ["file"]


def test_files_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    sync, exchange = staged.sync, staged.exchanged
    monkeypatch.setattr(staged, "sync", lambda path: (order.append(f"sync {path.name}"), sync(path)))
    monkeypatch.setattr(staged, "exchanged", lambda *names: (order.append("exchange"), exchange(*names))[1])
    (tmp_path / "student").mkdir()
    with staged_folder(tmp_path / "student") as folder:
        (folder / "config.json").touch()
    assert order == ["sync config.json", "sync .student.partial", "exchange", f"sync {tmp_path.name}"]


# What may be replaced


def test_strangers(tmp_path: Path) -> None:
    for name in ("config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "LICENSE.txt"):
        (tmp_path / name).touch()
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").touch()
    assert strangers(tmp_path) == []
    (tmp_path / "notes").mkdir()
    (tmp_path / "0.5" / "deep").mkdir(parents=True)
    (tmp_path / "0.5" / "deep" / "config.json").touch()
    (tmp_path / "generation_config.json").symlink_to(tmp_path / "config.json")
    for name in ("README.md", ".hidden", "model.bin"):
        (tmp_path / name).touch()
    found = [".hidden", "0.5", "0.5/deep", "0.5/deep/config.json", "README.md", "generation_config.json", "model.bin"]
    assert strangers(tmp_path) == [*found, "notes"]
    assert "0.5/deep/config.json" not in strangers(tmp_path, [*files.MODEL_FILES, "*/*/config.json"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"carried": 3}', '{"carried": ["*"]}', '{"carried": ["../x", null]}'])
def test_a_record_that_says_nonsense_excuses_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "merge.json").write_text(text)
    (tmp_path / "thesis.tex").touch()
    assert strangers(tmp_path) == ["thesis.tex"]


def test_problems_of_out(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert problems_of_out(out, [tmp_path / "elsewhere"], overwrite=False) == []
    out.mkdir()
    assert problems_of_out(out, [], overwrite=False) == []
    (out / "config.json").touch()
    (problem,) = problems_of_out(out, [], overwrite=False)
    told = problem.told({"out": "--out", "overwrite": "--overwrite"})
    assert (
        told
        == f"Option `--out`: expected a new folder, but `{out}` exists. Name another, or allow it with `--overwrite`."
    )
    assert problems_of_out(out, [], overwrite=True) == []
    (problem,) = problems_of_out(out / "config.json", [], overwrite=True)
    assert "is a file" in str(problem)
    for number in range(5):
        (out / f"{number}.tex").touch()
    (problem,) = problems_of_out(out, [], overwrite=True)
    assert "does not write 0.tex, 1.tex, 2.tex and 2 more there" in str(problem)


@pytest.mark.parametrize("out", [".", "..", "../here", "../link"])
def test_the_current_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    """The shell that stands in it would stand in a folder that is gone."""
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    (problem,) = problems_of_out(out, [], overwrite=True)
    how = "holds" if out == ".." else "is"
    assert (
        f"`{out}` {how} the current folder. Name a folder that is not the current one: `{Path(out, 'NAME')}`."
        in str(problem)
    )
    assert problems_of_out(".", [], overwrite=True, whole=False) == [] == problems_of_out("inside", [], overwrite=True)


def test_a_leading_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert expanded("~/x") == tmp_path / "home" / "x"
    assert expanded("~no-such-user/x") == Path("~no-such-user/x")
    with staged_folder("~/x") as folder:
        (folder / "a").touch()
    assert (tmp_path / "home" / "x" / "a").exists() and not Path("~").exists()


def test_text_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "deep" / "a.json", "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "deep" / "a.json", "new")
    assert (tmp_path / "deep" / "a.json").read_text() == "old" and os.listdir(tmp_path / "deep") == ["a.json"]
