"""What a detector gives, in the pixels of a picture; COCO's and supervision's forms of it."""

import builtins
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from conftest import shared
from swiftformer.detections import Detections, encode_masks, paste_masks, post_process
from swiftformer.image_processing import Preprocessing


def blobs(count: int, side: int = 28, seed: int = 0) -> np.ndarray:
    """Smooth random probabilities `(count, side, side)`."""
    coarse = torch.from_numpy(np.random.default_rng(seed).random((count, 1, 5, 5), dtype=np.float32))
    return F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)[:, 0].numpy()


def random_boxes(count: int, size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Boxes with sides of 3 to 40 % of the picture's, some of which reach beyond it."""
    rng = np.random.default_rng(seed)
    centre, sides = rng.random((count, 2)), 0.03 + 0.37 * rng.random((count, 2))
    return np.concatenate([centre - sides / 2, centre + sides / 2], axis=1) * np.array(size[::-1] * 2)


def some(count: int = 4, size: tuple[int, int] | None = (40, 60)) -> Detections:
    boxes = random_boxes(count, size or (40, 60)).clip(0, 40).astype(np.float32)
    masks = None if size is None else np.random.default_rng(0).random((count, *size)) < 0.5
    return Detections(boxes, np.linspace(0.9, 0.1, count, dtype=np.float32), np.arange(count) % 3, masks)


def test_outputs_become_pixels():
    outputs = {
        "scores": np.array([0.2, 0.9, 0.6, 0.5, 0.0]),
        "labels": np.array([1.0, 2.0, 0.0, 1.0, 0.0], dtype=np.float32),  # as an engine gives them
        "boxes": np.array([[0.5] * 4, [0.1, 0.5, 0.4, 0.2], [1.5, 0.5, 0.2, 0.2], [0.5] * 4, [0] * 4]),
    }
    found = post_process(outputs, (100, 200))
    assert found.scores.tolist() == pytest.approx([0.9, 0.5, 0.2]) and found.labels.tolist() == [2, 1, 1]
    assert found.boxes.tolist() == [[0, 40, 60, 60], [50, 25, 150, 75], [50, 25, 150, 75]]  # clipped; one lies outside
    assert [a.dtype for a in (found.boxes, found.scores, found.labels)] == [np.float32, np.float32, np.int64]
    assert found.masks is None and len(post_process(outputs, (100, 200), 0.5)) == 2
    assert len(found.keep(0.5)) == 2 and len(found.keep(0.95)) == 0 and found[1:].labels.tolist() == [1, 1]
    with pytest.raises(ValueError, match="expected the outputs scores, labels and boxes, found no labels"):
        post_process({"scores": [], "boxes": []}, (1, 1))


def test_a_picture_without_objects():
    outputs = {"scores": np.zeros(3), "labels": np.zeros(3), "boxes": np.zeros((3, 4)), "masks": np.zeros((3, 8, 8))}
    found = post_process(outputs, (10, 20))
    assert len(found) == 0 and found.boxes.shape == (0, 4) and found.masks.shape == (0, 10, 20)
    assert found.coco_results(1, [1]) == [] and len(found.keep(0.5)) == 0


def test_masks_go_with_their_boxes():
    masks = np.zeros((2, 28, 28))
    masks[0], masks[1, :, :14] = 1, 1
    outputs = {"scores": [0.5, 0.9], "labels": [0, 0], "boxes": [[0.5, 0.5, 0.2, 0.4], [0.0, 0.5, 0.4, 0.4]]}
    found = post_process(outputs | {"masks": masks}, (100, 100))
    assert found.scores.tolist() == pytest.approx([0.9, 0.5]) and found.masks.shape == (2, 100, 100)
    assert not found.masks[0].any()  # its left half lies outside of the picture
    expected = np.zeros((100, 100), dtype=bool)
    expected[30:70, 40:60] = True
    assert np.array_equal(found.masks[1], expected)


def test_pasting_agrees_with_torchvision():
    masks, boxes, size = blobs(40), random_boxes(40, (480, 640)), (480, 640)
    found = paste_masks(masks, boxes, size)
    expected = paste_masks_in_image(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes).float(), size)
    assert found.dtype == bool and (found == (expected[:, 0].numpy() >= 0.5)).mean() > 0.999
    assert found.any(axis=(1, 2)).sum() > 35


def test_pasting_equals_bilinear_interpolation():
    mask = blobs(1)
    padded = F.pad(torch.from_numpy(mask), (1, 1, 1, 1))[None]
    for x, y, side in ((3, 5, 28), (0, 0, 56), (-10, 20, 84), (40, -30, 112)):
        resized = F.interpolate(padded, scale_factor=side / 28, mode="bilinear")
        border = side // 28
        canvas = np.zeros((400, 400), dtype=bool)
        left, top = x + 100 - border, y + 100 - border
        canvas[top : top + side + 2 * border, left : left + side + 2 * border] = resized[0, 0].numpy() >= 0.5
        found = paste_masks(mask, np.array([[x, y, x + side, y + side]]), (100, 90))[0]
        assert (found == canvas[100:200, 100:190]).mean() > 0.9999


def test_pasting_keeps_real_outlines():
    """Masks that were sampled at the points where pasting puts them come back, whatever their size."""
    from pycocotools import mask as coco
    from torchvision.ops import roi_align

    data = json.loads(shared("data", "nuclei", "annotations", "instances_val.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    overlaps = []
    for annotation in data["annotations"][::100]:
        height, width = sizes[annotation["image_id"]]
        run_lengths = annotation["segmentation"]
        if isinstance(run_lengths["counts"], list):
            run_lengths = coco.frPyObjects(run_lengths, height, width)
        mask = coco.decode(run_lengths).astype(bool)
        x, y, w, h = annotation["bbox"]
        box = np.array([[x - 0.3, y + 0.2, x + w + 0.4, y + h]])
        pixels = torch.from_numpy(mask[None, None]).float()
        sampled = roi_align(pixels, [torch.from_numpy(box).float()], 28, aligned=True)
        pasted = paste_masks((sampled[:, 0].numpy() >= 0.5).astype(np.float32), box, (height, width))[0]
        overlaps.append((pasted & mask).sum() / (pasted | mask).sum())
    assert np.mean(overlaps) > 0.97


def test_boxes_that_no_picture_has():
    boxes = np.array([[1e6, 1e6, 1e6 + 5, 1e6 + 5], [-1e7, -1e7, 1e7, 1e7], [5, 5, 5, 5], [3.2, 3.2, 3.4, 3.4]])
    found = paste_masks(np.ones((4, 28, 28), dtype=np.float32), boxes, (20, 30))
    assert found.shape == (4, 20, 30) and not found[0].any() and found[1].all() and found[2:].sum() <= 2


def test_arrays_that_do_not_belong_together():
    with pytest.raises(ValueError, match=r"expected boxes \(2, 4\) and labels \(2,\) for 2 scores, found"):
        Detections(np.zeros((1, 4)), np.zeros(2), np.zeros(2, dtype=int))
    with pytest.raises(ValueError, match=r"masks of shape \(2, height, width\), found \(1, 3, 3\)"):
        Detections(np.zeros((2, 4)), np.zeros(2), np.zeros(2, dtype=int), np.zeros((1, 3, 3), dtype=bool))


def test_coco_results():
    from pycocotools import mask as coco

    found = some()
    results = json.loads(json.dumps(found.coco_results(17, [1, 3, 90])))
    assert [list(r) for r in results] == [["image_id", "category_id", "bbox", "score", "segmentation"]] * 4
    assert {r["image_id"] for r in results} == {17} and [r["category_id"] for r in results] == [1, 3, 90, 1]
    for result, box, mask in zip(results, found.boxes.tolist(), found.masks, strict=True):
        x, y, width, height = result["bbox"]
        assert [x, y, x + width, y + height] == pytest.approx(box)
        assert np.array_equal(coco.decode(result["segmentation"]), mask)
    assert "segmentation" not in some(2, None).coco_results(1, [1, 2, 3])[0]
    assert coco.area(encode_masks(found.masks)).tolist() == found.masks.sum(axis=(1, 2)).tolist()


def test_supervision():
    supervision = pytest.importorskip("supervision")
    found = some()
    theirs = found.to_supervision(["a", "b", "c"])
    assert isinstance(theirs, supervision.Detections) and len(theirs) == 4
    assert np.array_equal(theirs.xyxy, found.boxes) and np.array_equal(theirs.mask, found.masks)
    assert np.array_equal(theirs.confidence, found.scores) and theirs.class_id.tolist() == [0, 1, 2, 0]
    assert theirs.data["class_name"].tolist() == ["a", "b", "c", "a"]
    assert len(theirs[theirs.confidence > 0.5]) == 2
    assert len(some(0).to_supervision([])) == 0 and "class_name" not in some(1, None).to_supervision().data


@pytest.mark.parametrize(
    ("module", "run", "message"),
    [
        ("supervision", lambda: some().to_supervision(), "pip install supervision"),
        ("pycocotools", lambda: some().coco_results(1, [1, 2, 3]), r"pip install 'swiftformer\[dense\]'"),
    ],
)
def test_missing_libraries(monkeypatch, module, run, message):
    import_ = builtins.__import__

    def refuse(name, *rest, **options):
        if name.split(".")[0] == module:
            raise ImportError(name)
        return import_(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=message):
        run()


def test_a_picture_that_fills_a_part_of_the_input():
    """Boxes and masks lie where they would in the picture alone."""
    wide = Preprocessing((100, 100), "fit")
    assert wide.extent((50, 200)) == (200, 200) and wide.extent((200, 50)) == (200, 200)
    pixels = wide.resized(Image.new("RGB", (200, 50), (255, 0, 0)))
    assert (pixels[:25] == (255, 0, 0)).all() and (pixels[25:] == (124, 116, 104)).all()
    assert Preprocessing.from_dict(wide.to_dict()) == wide
    outputs = {"scores": [0.9], "labels": [0], "boxes": [[0.5, 0.1, 0.2, 0.1]], "masks": np.ones((1, 28, 28))}
    found = post_process(outputs, (50, 200), extent=wide.extent((50, 200)))
    np.testing.assert_allclose(found.boxes, [[80, 10, 120, 30]])
    assert found.masks[0, 10:30, 80:120].all() and found.masks.sum() == 20 * 40
