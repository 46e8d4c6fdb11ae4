"""Files that are whole or absent, in folders of every kind."""

import os
import subprocess

import pytest

from swiftformer.files import atomic_folder
from test_cli import cli, model_folder  # noqa: F401


def fill(folder, text):
    with atomic_folder(folder) as temporary:
        (temporary / "parts").mkdir()
        (temporary / "parts" / "a.bin").write_text(text)
        (temporary / "metadata.json").write_text(text)


def fail(folder):
    with atomic_folder(folder) as temporary:
        (temporary / "metadata.json").write_text("3")
        raise RuntimeError


def content(folder):
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def test_a_new_folder_appears_at_once(tmp_path):
    with atomic_folder(tmp_path / "new") as temporary:
        (temporary / "a").write_text("1")
        assert not (tmp_path / "new").exists()
    assert content(tmp_path) == {"new/a": "1"}
    with pytest.raises(RuntimeError):
        fail(tmp_path / "broken")
    assert content(tmp_path) == {"new/a": "1"} and len(list(tmp_path.iterdir())) == 1


def test_two_writers_of_a_new_folder(tmp_path):
    """The second one replaces the files of the first, as in a folder that was there."""
    with atomic_folder(tmp_path / "new") as temporary:
        fill(tmp_path / "new", "1")
        (temporary / "metadata.json").write_text("2")
    assert content(tmp_path) == {"new/parts/a.bin": "1", "new/metadata.json": "2"}


def test_a_folder_that_exists_keeps_its_other_files(tmp_path):
    (tmp_path / "note").write_text("mine")
    fill(tmp_path, "1")
    fill(tmp_path, "2")
    assert content(tmp_path) == {"note": "mine", "parts/a.bin": "2", "metadata.json": "2"}
    with pytest.raises(RuntimeError):
        fail(tmp_path)
    assert content(tmp_path)["metadata.json"] == "2" and not list(tmp_path.glob(".*"))


def test_a_link_to_a_folder(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    fill(tmp_path / "link", "1")
    assert (tmp_path / "link").is_symlink() and content(tmp_path / "far") == {"parts/a.bin": "1", "metadata.json": "1"}


def test_a_folder_on_another_file_system(tmp_path):
    """As containers mount one for what they write: nothing can be moved into it from beside it."""
    place = tmp_path / "mounted"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "none", place], capture_output=True).returncode:
        pytest.skip("this test mounts a file system, which it may not do here")
    try:
        fill(place, "1")
        assert content(place) == {"parts/a.bin": "1", "metadata.json": "1"}
    finally:
        subprocess.run(["umount", place], check=True)


def test_what_cannot_be_written_to_is_found_before_the_work(tmp_path, monkeypatch, cli, model_folder, image_folder):  # noqa: F811
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    train = ("train", "--recipe", "smoke", "--data", image_folder, "--output")
    export = ("export", "--model", model_folder, "--format", "onnx", "--output")
    benchmark = ("benchmark", "--output")
    for command in (train, export, benchmark):
        code, _, err = cli(*command, tmp_path / "new" / "output")
        assert code == 2 and f"{tmp_path}: expected a folder that can be written to" in err
        code, _, err = cli(*command, tmp_path / "file" / "output")
        assert code == 2 and f"{tmp_path / 'file'}: expected a folder, found a file" in err
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_in_one_that_cannot_be_written_to(tmp_path):
    (tmp_path / "output").mkdir()
    tmp_path.chmod(0o555)
    try:
        fill(tmp_path / "output", "1")
    finally:
        tmp_path.chmod(0o755)
