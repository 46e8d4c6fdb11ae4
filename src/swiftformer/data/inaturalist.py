"""iNaturalist 2018 and 2019 as the competitions distribute them and DeiT's code reads them.

`train2018.json` and `val2018.json` list images, annotations and categories as COCO does; `categories.json` has the
taxonomy: https://github.com/visipedia/inat_comp.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swiftformer.data.image_folder import FileSource
from swiftformer.data.splits import Splits


def find(root: Path, level: str) -> Splits:
    """The splits of a folder with `train2018.json`, `val2018.json` or those of another year.

    Raises:
        ValueError: there are files of several years.
    """
    matches = [
        m for file in sorted(root.glob("*.json")) if (m := re.fullmatch(r"(train|val|test)(20\d\d)\.json", file.name))
    ]
    years = sorted({match[2] for match in matches})
    if len(years) > 1:
        raise ValueError(f"{root}: expected the files of one year, found {', '.join(years)}")
    # The categories of one file for all splits, so that a label means the same in each.
    listed = [m[0] for split in ("train", "val", "test") for m in matches if m[1] == split]
    return {
        match[1]: lambda file=root / match[0]: _open(root, file, root / listed[0], level)  # type: ignore[misc]
        for match in matches
    }


def _open(root: Path, file: Path, listing: Path, level: str) -> FileSource:
    try:
        return _listed(root, file, listing, level)
    except KeyError as error:
        raise ValueError(f"{file}: expected entries with {error}, found one without") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{file}: expected an object with lists of objects, found something else") from error


def _listed(root: Path, file: Path, listing: Path, level: str) -> FileSource:
    content = _read(file)
    categories = (content if listing == file else _read(listing)).get("categories") or []
    taxonomy = root / "categories.json"
    if taxonomy.is_file():
        categories = _read(taxonomy)
    names = _names(categories, level, taxonomy if taxonomy.is_file() else listing)
    classes = list(dict.fromkeys(names.values()))
    place = {name: label for label, name in enumerate(classes)}
    images = content.get("images") or []
    if not images:
        raise ValueError(f"{file}: expected images, found none")
    annotated = {a["image_id"]: a["category_id"] for a in content.get("annotations") or []}
    files: list[str] = []
    labels: list[int] = []
    for image in images:
        category = annotated[image["id"]] if image.get("id") in annotated else _category_in(image["file_name"], file)
        if category not in names:
            raise ValueError(f"{file}: expected a category of {len(names)}, found {category} ({image['file_name']})")
        files.append(image["file_name"])
        labels.append(place[names[category]])
    return FileSource(root, _where(root, files), labels, classes)


def _names(categories: Sequence[dict[str, Any]], level: str, file: Path) -> dict[int, str]:
    """The class of each category, in the order of their ids."""
    names = {}
    for category in sorted(categories, key=lambda category: category["id"]):
        if level not in category:
            raise ValueError(f"{file}: expected categories with {level!r}, found {', '.join(map(str, category))}")
        names[category["id"]] = str(category[level])
    if not names:
        raise ValueError(f"{file}: expected categories, found none")
    return names


def _category_in(name: str, file: Path) -> int:
    parts = name.split("/")
    if len(parts) < 4 or not parts[2].isascii() or not parts[2].isdigit():
        raise ValueError(
            f"{file}: expected annotations, or file names such as train_val2018/Plantae/7477/x.jpg, found {name}"
        )
    return int(parts[2])


def _where(root: Path, files: list[str]) -> list[str]:
    """The paths as they are on disk: DeiT's code leaves out the second folder, the supercategory."""
    parts = files[0].split("/")
    if len(parts) == 4 and not (root / files[0]).exists() and (root / parts[0] / parts[2]).is_dir():
        return ["/".join((p := name.split("/"))[:1] + p[2:]) for name in files]
    return files


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: expected a JSON file ({error})") from error
