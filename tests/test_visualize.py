import numpy as np
import pytest
from PIL import Image

from swiftformer.visualize import READABLE, draw_legend, draw_segmentation, overlay_mask, palette, text_size

VOID = 255


def scene(height=400, width=500):
    """A gray picture, its left third of class 0, its right of class 2, and void at the bottom."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, width // 3 :] = 2
    mask[-height // 4 :] = VOID
    return Image.new("RGB", (width, height), (90, 90, 90)), mask


def lab(colors):
    from swiftformer.visualize import _oklab

    return _oklab(colors)


def test_colours_are_stable_and_distinct():
    many = palette(150)
    assert many.shape == (150, 3) and many.dtype == np.uint8
    for count in (1, 2, 11, 21, 149):
        assert np.array_equal(palette(count), many[:count])
    assert len({tuple(color) for color in palette(3000).tolist()}) > 1000 and len(palette(10_000)) == 10_000
    for count, apart in ((11, 0.1), (21, 0.09), (150, 0.03)):
        values = lab(palette(count))
        distance = np.linalg.norm(values[:, None] - values[None], axis=2)
        assert distance[~np.eye(count, dtype=bool)].min() > apart
    first = palette(3)
    first[:] = 0
    assert palette(3).any()  # a copy


def test_oklab_of_known_colours():
    # White, and red as given in the description of the colour space.
    assert np.allclose(lab(np.array([[255, 255, 255]])), [[1, 0, 0]], atol=1e-3)
    assert np.allclose(lab(np.array([[255, 0, 0]])), [[0.628, 0.225, 0.126]], atol=1e-3)


def test_overlay_tints_classes_and_leaves_void_alone():
    image, mask = scene()
    colors = np.array([[255, 0, 0], [0, 0, 0], [0, 0, 255]], dtype=np.uint8)
    found = np.asarray(overlay_mask(image, mask, colors, opacity=0.5, outline=0))
    assert found.shape == (400, 500, 3)
    assert found[10, 10].tolist() == [183, 55, 55] and found[10, 400].tolist() == [55, 55, 183]
    assert (found[350:] == 90).all() and image.getpixel((10, 10)) == (90, 90, 90)
    outlined = np.asarray(overlay_mask(image, mask, colors, opacity=0.5, outline=1))
    changed = (outlined != found).any(axis=2)
    expected = np.zeros_like(changed)
    expected[:300, 165] = expected[299] = True
    assert np.array_equal(changed, expected)
    thick = (np.asarray(overlay_mask(image, mask, colors, opacity=0.5, outline=3)) != found).any(axis=2)
    assert thick[100].sum() == 3 and thick[:, 50].sum() == 3
    assert np.array_equal(np.asarray(overlay_mask(image, np.full_like(mask, VOID))), np.asarray(image))


def test_legend_below_the_picture_has_the_classes_that_occur():
    image, mask = scene()
    drawn = draw_segmentation(image, mask, ["sky", "tree", "road"])
    assert drawn.width == 500 and drawn.height > 400 + text_size(500, 400)
    colors = {color for _, color in drawn.crop((0, 400, *drawn.size)).getcolors(100_000)}
    present = [tuple(color) for color in palette(3).tolist()]
    assert present[0] in colors and present[2] in colors and present[1] not in colors
    assert draw_segmentation(image, mask, ["sky", "tree", "road"], legend=False).size == image.size
    assert draw_segmentation(image, np.full_like(mask, VOID), ["sky"]).size == image.size


@pytest.mark.parametrize("size", [(32, 48), (7, 5), (10, 1900), (1900, 10), (1200, 900)])
def test_any_size(size):
    image, mask = scene(*size)
    names = ["a", "b", "a class with a very long name that no small picture has room for"]
    drawn = draw_segmentation(image, mask, names)
    factor = max(min(-(-READABLE // min(size)), 2000 // max(size)), 1)
    assert drawn.height > factor * size[0] and drawn.width >= factor * size[1]
    assert drawn.width * drawn.height < 10**7


def test_many_classes_and_masks_of_many_bits():
    mask = np.arange(300, dtype=np.int32).repeat(2000).reshape(600, 1000)
    drawn = draw_segmentation(Image.new("RGB", (1000, 600)), mask, [f"name {i}" for i in range(300)])
    assert drawn.width == 1000 and drawn.height > 1000


def test_legend_breaks_into_even_rows():
    entries = [("name", (i, 0, 0)) for i in range(6)]
    heights = [draw_legend(entries[:count], 300, 16).height for count in range(1, 7)]
    assert heights == sorted(heights) and draw_legend([], 300, 16).width == 300
    legend = np.asarray(draw_legend([("x" * 500, (255, 0, 0))], 200, 16))
    assert legend.shape[1] == 200 and (legend[:, -2:] == 255).all()


def test_masks_that_do_not_fit():
    image, mask = scene()
    with pytest.raises(ValueError, match=r"picture's shape \(400, 500\), found \(399, 500\)"):
        draw_segmentation(image, mask[1:], ["a", "b", "c"])
    with pytest.raises(ValueError, match="below the number of names, 2, found 2"):
        draw_segmentation(image, mask, ["a", "b"])
    with pytest.raises(ValueError, match="expected colours for 3 classes, found 1"):
        overlay_mask(image, mask, palette(1))
