from swiftformer.data.folders import files_below
from swiftformer.predict import find_images


def test_linked_folders_are_followed_and_circles_are_not(tmp_path):
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    for file in (elsewhere / "b.png", elsewhere / ".hidden.png", root / "a.png", root / ".git" / "c.png"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (root / "linked").symlink_to(elsewhere)
    (root / "again").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (root / "self").symlink_to(root)
    found = [file.relative_to(root).as_posix() for file in files_below(root)]
    assert found == ["a.png", "again/b.png", "linked/b.png"]
    assert [name for name, _ in find_images([str(root)])] == [str(root / name) for name in found]
