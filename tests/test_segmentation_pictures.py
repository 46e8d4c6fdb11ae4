"""Masks and overlays of pictures that are stored turned, or with more than 8 bits."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from swiftformer import Preprocessing
from swiftformer.cli_segment import write_pictures
from swiftformer.engines import Engine
from swiftformer.predict_segmentation import segment
from swiftformer.visualize import palette
from test_cli import cli  # noqa: F401

LABELS = ("red", "green", "blue")


class Strongest(Engine):
    """The class of a pixel is its strongest channel; of gray ones red where they are dark, otherwise green."""

    labels, outputs, input_shape = LABELS, ("logits",), (None, 3, None, None)
    preprocessing = Preprocessing(resize="whole", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))

    def run(self, batch):
        gray = (batch.max(axis=1) == batch.min(axis=1)) * np.where(batch[:, 0] > 0.5, 1.0, -1.0)
        return [batch + np.stack([-gray, gray, 0 * gray], axis=1)]


@pytest.fixture
def classes():
    """Upright, no part like another turned or mirrored; large enough not to be enlarged in overlays."""
    classes = np.zeros((400, 500), dtype=np.uint8)
    classes[:150, 320:] = 1
    classes[230:, :120] = 2
    return classes


def stored(picture, orientation):
    """A picture as a camera that was turned stores it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Those that swap the sides by a quarter turn are each other's inverse.
    turned = ImageOps.exif_transpose(_tagged(picture, {6: 8, 8: 6}.get(orientation, orientation)))
    return turned, exif


def _tagged(picture, orientation):
    picture = picture.copy()
    picture.getexif()[0x0112] = orientation
    return picture


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "jpg", "16-bit"])
def test_masks_are_upright(classes, tmp_path, orientation, kind):
    if kind == "16-bit":
        values = np.where(classes == 1, 60000, 2000).astype(np.uint16)
        classes, picture, path = (classes == 1).astype(np.uint8), Image.fromarray(values), tmp_path / "p.png"
    else:
        picture, path = Image.fromarray(220 * np.eye(3, dtype=np.uint8)[classes]), tmp_path / f"p.{kind}"
    turned, exif = stored(picture, orientation)
    assert turned.size == (picture.size if orientation < 5 else picture.size[::-1])
    turned.save(path, exif=exif, **({"quality": 95, "subsampling": 0} if kind == "jpg" else {}))
    with Image.open(path) as again:
        assert again.size == turned.size and (again.mode == "RGB" or (kind == "16-bit" and again.mode == "I;16"))
    [result] = segment(path, Strongest())
    assert result.mask.shape == (400, 500) and (result.mask == classes).mean() > (0.98 if kind == "jpg" else 0.9999)
    written = write_pictures(path, result, LABELS, tmp_path / "o" / "p", 1.0, True)
    with Image.open(written["mask"]) as mask:
        assert mask.mode == "P" and np.array_equal(np.asarray(mask), result.mask)
    overlay = np.asarray(Image.open(written["overlay"]))
    assert overlay.shape[1] == 500 and overlay.shape[0] > 400  # the legend lies below
    tints = palette(3)[classes]
    assert (overlay[:400] == tints).all(axis=2).mean() > 0.95, "but for the outlines"


def test_picture_and_overlay_agree_where_the_colours_are_faint(classes, tmp_path):
    """What shines through the tint is the picture, upright, of 16 bits as of 8."""
    ramp = np.linspace(0, 65535, 500)[None].repeat(400, axis=0).astype(np.uint16)
    turned, exif = stored(Image.fromarray(ramp), 6)
    turned.save(tmp_path / "p.png", exif=exif)
    [result] = segment(tmp_path / "p.png", Strongest())
    assert result.mask[0, 0] == 0 and result.mask[0, -1] == 1 and {c.label for c in result.classes} == {"red", "green"}
    assert (result.mask == result.mask[:1]).all()
    written = write_pictures(tmp_path / "p.png", result, LABELS, tmp_path / "p-overlay", 0.0, False)
    shown = np.asarray(Image.open(written["overlay"]))[200, :500, 0].astype(int)
    inside = np.abs(np.arange(500) - 250) > 5  # the outline
    assert (np.diff(shown[inside]) >= 0).all() and shown[0] < 10 and shown[-1] > 245


def test_command_line(classes, tmp_path, cli, monkeypatch):  # noqa: F811
    monkeypatch.setattr("swiftformer.predict_segmentation.open_segmenter", lambda *options: Strongest())
    turned, exif = stored(Image.fromarray(220 * np.eye(3, dtype=np.uint8)[classes]), 6)
    turned.save(tmp_path / "p.jpg", exif=exif, quality=95, subsampling=0)
    code, out, err = cli(
        *("segment", tmp_path / "p.jpg", "--model", "any", "--output", tmp_path / "o", "--masks", "--json")
    )
    assert code == 0, err
    [found] = json.loads(out)
    assert (found["height"], found["width"]) == (400, 500)
    assert (np.asarray(Image.open(found["mask"])) == classes).mean() > 0.98


def test_long_names_and_bad_places(classes, tmp_path, cli, monkeypatch):  # noqa: F811
    """Names as long as file systems take are cut; a place that cannot be written to is told before work begins."""
    monkeypatch.setattr("swiftformer.predict_segmentation.open_segmenter", lambda *options: Strongest())
    picture = tmp_path / (125 * "é" + ".png")
    Image.fromarray(220 * np.eye(3, dtype=np.uint8)[classes]).save(picture)
    code, out, err = cli("segment", picture, picture, "--model", "any", "--output", tmp_path / "o", "--masks", "--json")
    assert code == 0, err
    assert {Path(found["overlay"]).name for found in json.loads(out)} == {f"{100 * 'é'}.png", f"{100 * 'é'}-2.png"}
    monkeypatch.setattr("swiftformer.predict_segmentation.open_segmenter", lambda *options: pytest.fail("opened"))
    (tmp_path / "file").touch()
    code, _, err = cli("segment", picture, "--model", "any", "--output", tmp_path / "file" / "below")
    assert code == 2 and err == f"error: {tmp_path / 'file'}: expected a folder, found a file\n"
    code, _, err = cli("segment", picture, "--model", "any", "--window", 1)
    assert code == 2 and err == "error: --window: expected at least 32 pixels, or 0 for whole pictures, found 1\n"
