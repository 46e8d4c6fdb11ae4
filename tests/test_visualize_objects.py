"""Pictures of objects: what is drawn where, and that nothing else changes."""

import numpy as np
import pytest
from PIL import Image

from swiftformer.detections import Detections
from swiftformer.visualize import palette
from swiftformer.visualize_objects import _free_place, _overlap, draw_detections

NAMES = ["cat", "dog", "bird"]


def scene(*boxes, labels=None, masks=False, size=(400, 600), gray=90):
    corners = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    scores = np.linspace(0.95, 0.5, len(corners), dtype=np.float32)
    labels = np.zeros(len(corners), dtype=np.int64) if labels is None else np.array(labels)
    drawn = None
    if masks:
        y, x = np.mgrid[: size[0], : size[1]]
        drawn = np.array([(x >= a) & (y >= b) & (x < c) & (y < d) for a, b, c, d in corners]).reshape(-1, *size)
    return Image.new("RGB", size[::-1], (gray,) * 3), Detections(corners, scores, labels, drawn)


def changed(image, drawn):
    return (np.asarray(drawn) != np.asarray(image)).any(axis=2)


def test_only_lines_are_drawn_without_plates():
    image, found = scene((100, 100, 300, 250))
    drawn = draw_detections(image, found, NAMES, plates=False, fixed_size=True)
    different = changed(image, drawn)
    expected = np.zeros_like(different)
    expected[99:251, 99:301] = True
    expected[103:247, 103:297] = False
    assert np.array_equal(different, expected)
    assert drawn.getpixel((100, 150)) == tuple(palette(1)[0]) and drawn.getpixel((99, 150)) < (90, 90, 90)
    assert image.getpixel((100, 150)) == (90, 90, 90)  # the picture itself stays


def test_plates_lie_above_their_boxes_and_inside_the_picture():
    image, found = scene((100, 100, 300, 250), (0, 0, 80, 60), (500, 300, 600, 400), (250, 0, 260, 400))
    different = changed(image, draw_detections(image, found, NAMES))
    assert different[86:99, 104:140].all() and not different[:78, 101:200].any()
    assert different.shape == (400, 600)
    plain = changed(image, draw_detections(image, found, NAMES, plates=False, fixed_size=True))
    assert (different & ~plain).sum() > 4 * 500


def test_masks_are_tinted():
    image, found = scene((100, 100, 300, 250), (400, 100, 500, 200), labels=[0, 1], masks=True)
    drawn = draw_detections(image, found, NAMES, opacity=0.5, plates=False, fixed_size=True)
    colors = palette(2).astype(float)
    assert np.abs(np.array(drawn.getpixel((200, 180))) - (45 + colors[0] / 2)).max() <= 1
    assert np.abs(np.array(drawn.getpixel((450, 150))) - (45 + colors[1] / 2)).max() <= 1
    different = changed(image, drawn)
    assert different[100:250, 100:300].all() and not different[:95].any() and not different[:, 306:394].any()
    without = draw_detections(image, found, NAMES, masks=False, plates=False, fixed_size=True)
    assert without.getpixel((200, 180)) == (90, 90, 90)


def test_colours_of_classes_and_objects():
    boxes = [(50 + 100 * i, 50, 100 + 100 * i, 150) for i in range(4)]

    def lines(names, labels, **options):
        image, found = scene(*boxes, labels=labels)
        drawn = draw_detections(image, found, names, plates=False, fixed_size=True, **options)
        return [drawn.getpixel((int(box[0]), 100)) for box in boxes]

    assert lines(["cell"], [0] * 4) == [tuple(c) for c in palette(4).tolist()]
    first, second, *_ = palette(2).tolist()
    assert lines(NAMES, [0, 0, 1, 1]) == [tuple(first)] * 2 + [tuple(second)] * 2
    assert len({*lines(["cell"], [0] * 4, by_object=False)}) == 1
    given = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=np.uint8)
    assert lines(NAMES, [0, 2, 1, 0], colors=given) == [(1, 2, 3), (7, 8, 9), (4, 5, 6), (1, 2, 3)]
    image, found = scene(*boxes, labels=[0, 0, 1, 1])
    drawn = draw_detections(image, found, NAMES)
    shades = [drawn.getpixel((int(box[0]), 100)) for box in boxes]
    assert shades[0] == tuple(first) and len({*shades}) == 4  # objects of a class in shades


def test_crowded_pictures_have_fewer_plates_and_a_legend():
    boxes = [(x, y, x + 25, y + 25) for x in range(0, 570, 30) for y in range(0, 370, 30)]
    image, found = scene(*boxes, labels=[i % 2 for i in range(len(boxes))], masks=True)
    assert draw_detections(image, found, NAMES).height > 400
    assert draw_detections(image, found, NAMES, fixed_size=True).size == (600, 400)
    assert draw_detections(image, found, NAMES, plates=True).size == (600, 400)  # nothing is left to explain
    assert draw_detections(image, found, ["cell", "b"][:1] * 2).height > 400
    one = Detections(found.boxes, found.scores, found.labels * 0, found.masks)
    assert draw_detections(image, one, ["cell"]).size == (600, 400)


@pytest.mark.parametrize("size", [(7, 5), (32, 48), (10, 1900), (1900, 10), (1200, 900)])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_any_size(size, count):
    height, width = size
    boxes = np.random.default_rng(0).random((count, 4)) * [width, height, width, height]
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    image, found = scene(*boxes, size=size, masks=True, labels=np.arange(count) % 2)
    long = ["a class with a very long name that no small picture has room for", "b"]
    for plates in (None, True, False):
        drawn = draw_detections(image, found, long, plates=plates)
        assert drawn.width >= width and drawn.height >= height and drawn.width * drawn.height < 10**7
        assert draw_detections(image, found, long, plates=plates, fixed_size=True).size == (width, height)


def test_plates_make_room_for_each_other():
    taken = []
    for area in [(100, 100, 200, 200), (105, 102, 205, 202), (98, 104, 198, 204), (0, 0, 50, 50)]:
        place, hidden = _free_place(area, (60, 18), (600, 400), taken)
        assert hidden == 0 and all(_overlap(place, other) == 0 for other in taken)
        assert 0 <= place[0] < place[2] <= 600 and 0 <= place[1] < place[3] <= 400
        taken.append(place)
    assert taken[0] == (100, 82, 160, 100)


def test_what_does_not_fit():
    image, found = scene((10, 10, 50, 50), labels=[2], masks=True)
    with pytest.raises(ValueError, match="below the number of names, 2, found 2"):
        draw_detections(image, found, ["a", "b"])
    with pytest.raises(ValueError, match=r"masks of the picture's shape \(300, 600\), found \(400, 600\)"):
        draw_detections(image.crop((0, 0, 600, 300)), found, NAMES)
