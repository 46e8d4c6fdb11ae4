"""COCO's metrics: against pycocotools itself, and as the evaluation of a detector."""

import contextlib
import io
import json
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from conftest import TINY, randomize, shared
from swiftformer import SwiftFormerConfig, save
from swiftformer.data.detection import open_detection
from swiftformer.data.objects import Objects
from swiftformer.detection import SwiftFormerForInstanceSegmentation, SwiftFormerForObjectDetection
from swiftformer.detections import Detections, encode_masks
from swiftformer.evaluate.coco_metrics import CocoMetrics
from swiftformer.evaluate.detection import evaluate_detector, evaluate_reference
from swiftformer.image_processing import Preprocessing
from swiftformer.train.distributed import Processes

TINY_HEAD = {"fpn_channels": 16, "box_channels": 32, "mask_channels": 16, "detections_per_image": 20}
NAMES = ["a", "b", "c", "d"]
NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


def random_objects(rng, count, size, classes=3, crowds=0.0):
    """Objects of all of COCO's sizes, with an ellipse for a mask."""
    height, width = size
    corners = rng.random((count, 2)) * (width * 0.7, height * 0.7)
    sides = np.exp(rng.uniform(np.log(8), np.log(0.6 * min(size)), (count, 2)))
    boxes = np.concatenate([corners, np.minimum(corners + sides, (width, height))], axis=1).astype(np.float32)
    masks = encode_masks(ellipses(boxes, size))
    crowd = rng.random(count) < crowds
    areas = (0.8 * np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)).astype(np.float32)
    return Objects(boxes, rng.integers(0, classes, count), crowd, areas, masks)


def ellipses(boxes, size):
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    centre, radii = (boxes[:, :2] + boxes[:, 2:]) / 2, np.maximum((boxes[:, 2:] - boxes[:, :2]) / 2, 0.5)
    offsets = [((x - c[0]) / r[0]) ** 2 + ((y - c[1]) / r[1]) ** 2 for c, r in zip(centre, radii, strict=True)]
    return np.array(offsets).reshape(-1, *size) <= 1


def random_detections(rng, objects, size, classes=4, more=6):
    """Objects that were moved and sometimes confused, and others that are not there."""
    count = len(objects.labels)
    boxes = objects.boxes + rng.normal(0, 4, (count, 4)).astype(np.float32)
    labels = np.where(rng.random(count) < 0.2, rng.integers(0, classes, count), objects.labels)
    others = random_objects(rng, more, size, classes)
    boxes = np.concatenate([boxes, others.boxes]).clip(0, max(size)).astype(np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = np.concatenate([labels, others.labels]).astype(np.int64)
    scores = np.sort(rng.random(len(boxes)).round(1).astype(np.float32))[::-1].copy()  # with ties
    order = rng.permutation(len(boxes))
    return Detections(boxes[order], scores, labels[order], ellipses(boxes[order], size))


def exact(objects, size):
    """Detections that are the objects themselves."""
    from pycocotools import mask as coco

    masks = None
    if objects.masks is not None:
        masks = np.array([coco.decode(m) for m in objects.masks]).reshape(-1, *size).astype(bool)
    return Detections(objects.boxes, np.ones(len(objects.labels), np.float32), objects.labels, masks)


def random_pictures(count=12, seed=0, crowds=0.15):
    """Pictures by id; some are empty, on some nothing is detected, the last class never occurs."""
    rng = np.random.default_rng(seed)
    pictures = {}
    for i in range(count):
        size = (int(rng.integers(90, 200)), int(rng.integers(90, 200)))
        objects = random_objects(rng, 0 if i % 5 == 3 else int(rng.integers(1, 9)), size, crowds=crowds)
        found = NOTHING if i % 6 == 5 else random_detections(rng, objects, size)
        pictures[100 - 7 * i] = (size, objects, found)
    return pictures


def measured(pictures, with_masks=True, **options):
    metrics = CocoMetrics(NAMES, with_masks, **options)
    for image_id, (size, objects, found) in pictures.items():
        metrics.update(image_id, size, objects, found)
    return metrics


def pycocotools_stats(pictures, kind):
    """The twelve figures that pycocotools prints, by its own way from files' contents."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    ids = [5, 7, 2, 90]  # not in the order of the classes
    truth, annotations, results = COCO(), [], []
    for image_id, (_, objects, found) in pictures.items():
        for i in range(len(objects.labels)):
            x0, y0, x1, y1 = objects.boxes[i].astype(float).tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": ids[objects.labels[i]],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": float(objects.areas[i]),
                    "iscrowd": int(objects.crowd[i]),
                    "segmentation": objects.masks[i],
                }
            )
        results += found.coco_results(image_id, ids)
    if kind == "segm":  # as is usual, so that a mask's own size counts and not its box's
        results = [{key: value for key, value in result.items() if key != "bbox"} for result in results]
    images = [{"id": i, "height": size[0], "width": size[1]} for i, (size, _, _) in pictures.items()]
    truth.dataset = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in zip(ids, NAMES, strict=True)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


KEYS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
KEYS += ("AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large")


@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools(seed):
    pictures = random_pictures(seed=seed)
    result = measured(pictures).result()
    for kind, prefix in (("bbox", ""), ("segm", "mask_")):
        stats = pycocotools_stats(pictures, kind)
        found = [-1 if result[prefix + key] is None else result[prefix + key] / 100 for key in KEYS]
        assert found == pytest.approx(stats.tolist(), abs=1e-9)
        assert 0.02 < stats[0] < 0.98
        of_classes = result[f"{prefix}AP_per_class"]
        assert of_classes[3] is None and np.mean(of_classes[:3]) == pytest.approx(result[f"{prefix}AP"])
        assert len(result[f"{prefix}AP50_per_class"]) == 4
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_objects_as_detections_are_perfect():
    pictures = {i: (size, objects, exact(objects, size)) for i, (size, objects, _) in random_pictures(20).items()}
    result = measured(pictures).result()
    assert [result[p + key] for p in ("", "mask_") for key in ("AP", "AP50", "AP75", "AR_100")] == [
        pytest.approx(100)
    ] * 8
    boxes = measured(pictures, False).result()
    assert boxes == {key: value for key, value in result.items() if not key.startswith("mask_")}


def test_crowds_are_neither_hit_nor_miss():
    box = np.array([[0, 0, 50, 50]], np.float32)
    crowd, one = (Objects(box, np.zeros(1, int), np.array([c]), np.full(1, 2500, np.float32)) for c in (True, False))
    inside = Detections(np.array([[5, 5, 20, 20]], np.float32), np.ones(1, np.float32), np.zeros(1, int))
    metrics = CocoMetrics(NAMES)
    metrics.update(1, (60, 60), crowd, inside)
    with pytest.raises(ValueError, match="expected annotated objects to evaluate on, found none in 1 pictures"):
        metrics.result()
    metrics.update(2, (60, 60), one, exact(one, (60, 60)))
    assert metrics.result()["AP"] == pytest.approx(100)


def test_nothing_is_detected():
    pictures = {i: (size, objects, NOTHING) for i, (size, objects, _) in random_pictures().items()}
    result = measured(pictures).result()
    assert result["AP"] == result["AR_100"] == result["mask_AP50"] == 0 and result["AP_per_class"][3] is None


def test_other_numbers_of_detections():
    pictures = random_pictures(8)
    few, many = (measured(pictures, max_detections=(1, n, n)).result() for n in (2, 300))
    assert list(few)[6:8] == ["AR_1", "AR_2"] and few["AP"] < many["AP"] and few["AR_1"] == many["AR_1"]
    usual = measured(pictures).result()  # no picture has more than a hundred
    assert many["AP"] == usual["AP"] and many["AR_300"] == usual["AR_100"]
    with pytest.raises(ValueError, match=r"max_detections of at least 1 that rise, found \(1, 10, 5\)"):
        CocoMetrics(NAMES, max_detections=(1, 10, 5))


class Shares:
    """Processes that are threads."""

    def __init__(self, count):
        self.values, self.all_here = [None] * count, threading.Barrier(count)

    def of(self, rank):
        class Process(Processes):
            def gather_objects(process, value):
                self.values[process.rank] = value
                self.all_here.wait(10)
                return list(self.values)

        return Process(rank, len(self.values), torch.device("cpu"))


def test_merging_equals_one_process():
    pictures = random_pictures(9)
    shares = [measured(dict(list(pictures.items())[rank::2])) for rank in (0, 1)]
    group = Shares(2)
    threads = [threading.Thread(target=shares[rank].merge, args=(group.of(rank),)) for rank in (0, 1)]
    for step in (threading.Thread.start, threading.Thread.join):
        for thread in threads:
            step(thread)
    expected = measured(pictures).result()
    assert [share.result() for share in shares] == [expected] * 2 and len(shares[0]) == 9
    shares[0].merge(Processes(0, 1, torch.device("cpu")))
    assert shares[0].result() == expected


def _worker(rank, port, folder):
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    pictures = random_pictures(9)
    metrics = measured(dict(list(pictures.items())[rank::2]))
    metrics.merge(Processes(rank, 2, torch.device("cpu")))
    (folder / f"{rank}.json").write_text(json.dumps(metrics.result()))
    torch.distributed.destroy_process_group()


@pytest.mark.exhaustive
def test_merging_over_real_processes(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_worker, (port, tmp_path), nprocs=2)
    expected = json.loads(json.dumps(measured(random_pictures(9)).result()))
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [expected] * 2


def test_what_does_not_fit():
    size, objects, found = random_pictures(1)[100]
    metrics = CocoMetrics(NAMES, True)
    with pytest.raises(ValueError, match="class indices from 0 to 1 in the objects of image 3, found"):
        CocoMetrics(["a", "b"]).update(3, size, replace(objects, labels=objects.labels + 2), found)
    with pytest.raises(ValueError, match=r"image 3: expected masks of .* in the detections, found \{'none'\}"):
        metrics.update(3, size, objects, Detections(found.boxes, found.scores, found.labels))
    with pytest.raises(ValueError, match=r"image 3: expected masks of \(5, 5\) in the objects"):
        metrics.update(3, (5, 5), objects, found)
    metrics.update(3, size, objects, found)
    with pytest.raises(ValueError, match="expected every picture once, found image 3 again"):
        metrics.update(3, size, objects, found)


def test_results_for_a_file():
    pictures = random_pictures(4)
    results = measured(pictures).coco_results({0: 7, 2: 9}, {i: f"{i}.png" for i in pictures})
    assert {r["category_id"] for r in results} == {7, 9} and {r["image_id"] for r in results} <= {*pictures}
    assert all(r.pop("file_name") == f"{r['image_id']}.png" for r in results)
    expected = [r for i in sorted(pictures) for r in pictures[i][2].coco_results(i, [7, 0, 9, 0]) if r["category_id"]]
    assert results == expected and json.loads(json.dumps(results)) == results


# Real data, and the evaluation of models


@pytest.mark.parametrize(("name", "masks", "step"), [("bccd", False, 1), ("nuclei", True, 16)])
def test_real_objects_as_detections_are_perfect(name, masks, step):
    source = open_detection(shared("data", name), "val", masks=masks)
    metrics = CocoMetrics(source.classes, masks)
    for index in range(0, len(source), step):
        objects = source.objects(index)
        size = tuple(objects.masks[0]["size"]) if masks else (480, 640)
        metrics.update(source.image_id(index), size, objects, exact(objects, size))
    # More objects than a hundred in a picture would be left out.
    metrics.max_detections = (1, 10, 1000)
    result = metrics.result()
    for prefix in ("", "mask_") if masks else ("",):
        assert [result[prefix + key] for key in ("AP", "AP50", "AR_1000")] == [pytest.approx(100)] * 3
    assert len(result["AP_per_class"]) == len(source.classes) == (1 if masks else 3)


class Remembered:
    """Pictures that are looked at in order, and a model that knows what it will be shown."""

    classes = NAMES

    def __init__(self, pictures):
        self.pictures = list(pictures.items())
        self.shown = -1

    def image_id(self, index):
        return self.pictures[index][0]

    def objects(self, index):
        return self.pictures[index][1][1]

    def batches(self, indices):
        for self.shown in indices:
            yield torch.zeros(1, 3, 8, 8), torch.tensor(self.pictures[self.shown][1][0]), self.shown

    def __call__(self, pixels):
        (height, width), _, found = self.pictures[self.shown][1]
        corners = torch.from_numpy(found.boxes) / torch.tensor([width, height, width, height])
        boxes = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
        scores, labels = torch.from_numpy(found.scores), torch.from_numpy(found.labels)
        padded = (F.pad(x, (0, 0) * (x.ndim - 1) + (0, 20 - len(x)))[None] for x in (scores, labels, boxes))
        return dict(zip(("scores", "labels", "boxes"), padded, strict=True))


def test_evaluating_a_detector():
    source = Remembered(random_pictures(9))
    steps = []
    metrics, confusion = evaluate_detector(source, source.batches(range(9)), source, progress=steps.append)
    expected = measured(dict(source.pictures), False).result()
    assert confusion is None and steps == [1] * 9 and metrics["images"] == 9 and metrics["images_per_second"] > 0
    numbers = {key: expected[key] for key in KEYS if expected[key] is not None}
    assert "AP_small" in numbers and "AP_large" not in numbers  # no object is that large
    assert set(metrics) == {*numbers, "images", "images_per_second"}
    assert {key: metrics[key] for key in numbers} == pytest.approx(numbers, abs=0.5)
    few = evaluate_detector(source, source.batches([0, 1, 4]), source, max_detections=1)[0]
    assert few["images"] == 3 and "AR_1" in few and "AR_10" not in few
    with pytest.raises(ValueError, match="expected readable images to evaluate on, found none"):
        evaluate_detector(source, [], source)


@pytest.fixture(scope="module")
def coco_folder(tmp_path_factory):
    """Six pictures with objects of two classes, one picture that cannot be read."""
    root, rng = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    images, annotations = [], []
    for number in range(7):
        name, size = f"{number}.png", (64 + 8 * number, 96)
        (root / "val").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / "val" / name)
        images.append({"id": 10 + number, "file_name": name, "height": size[0], "width": size[1]})
        objects = random_objects(rng, 3, size, classes=2)
        for box, label, mask in zip(objects.boxes.tolist(), objects.labels.tolist(), objects.masks, strict=True):
            entry = {"id": len(annotations), "image_id": 10 + number, "category_id": (40, 7)[label], "iscrowd": 0}
            entry |= {"bbox": [*box[:2], box[2] - box[0], box[3] - box[1]], "area": 100}
            entry["segmentation"] = {"size": list(size), "counts": mask["counts"].decode()}
            annotations.append(entry)
    (root / "val" / "6.png").write_bytes(b"broken")
    categories = [{"id": 40, "name": "cat"}, {"id": 7, "name": "dog"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_val.json").write_text(json.dumps(document))
    (root / "images").mkdir()
    (root / "val").rename(root / "images" / "val")
    return root


def tiny_detector(masks=False, names=("dog", "bird", "cat")):
    config = SwiftFormerConfig(**TINY, **TINY_HEAD, id2label=dict(enumerate(names)))
    model = randomize((SwiftFormerForInstanceSegmentation if masks else SwiftFormerForObjectDetection)(config)).eval()
    model.preprocessing = Preprocessing(size=(64, 64), resize="whole", resize_to=64)
    return model


@pytest.mark.parametrize("masks", [False, True])
def test_evaluating_a_model_on_a_folder(coco_folder, tmp_path, masks):
    model = tiny_detector(masks)
    results = tmp_path / "results.json"
    options = {"workers": 0, "device": "cpu"}
    metrics = evaluate_reference(model, str(coco_folder), "val", **options, per_class=True, output=results)
    assert metrics["images"] == 6 and metrics["unreadable"] == 1 and json.dumps(metrics, allow_nan=False)
    assert ("mask_AP" in metrics) == masks and metrics["AP/bird"] is None and metrics["AP/cat"] >= 0
    rows = json.loads(results.read_text())
    assert {row["category_id"] for row in rows} <= {40, 7} and {row["image_id"] for row in rows} <= {*range(10, 17)}
    assert all(("segmentation" in row) == masks for row in rows)
    save(model, tmp_path / "saved")
    stored = evaluate_reference(tmp_path / "saved", str(coco_folder), "val", **options)
    assert stored["AP"] == pytest.approx(metrics["AP"], abs=1e-6)
    fused = evaluate_reference(tmp_path / "saved", str(coco_folder), "val", **options, precision="fp32")
    assert set(fused) == set(stored) and fused["AP50"] == pytest.approx(stored["AP50"], abs=1)


def test_models_that_are_not_evaluated(coco_folder):
    with pytest.raises(ValueError, match="expected a detector, found a Linear"):
        evaluate_reference(torch.nn.Linear(1, 1), str(coco_folder))
    with pytest.raises(ValueError, match="found 1 others"):
        evaluate_reference(tiny_detector(names=("dog", "bird")), str(coco_folder), device="cpu")
    with pytest.raises(ValueError, match="together with a reference, found a model"):
        evaluate_reference(tiny_detector(), str(coco_folder), precision="fp32")


def test_more_objects_than_pycocotools_measures_at_once():
    """Its `area` fails on more than 255 masks."""
    rng, size = np.random.default_rng(0), (80, 100)
    objects = random_objects(rng, 300, size)
    metrics = CocoMetrics(NAMES[:3], with_masks=True, max_detections=(1, 10, 300))
    metrics.update(1, size, objects, exact(objects, size))
    assert metrics.result()["mask_AP"] == pytest.approx(100)
