"""`swiftformer detect` and what it stands on: predictions for pictures, videos, and the pictures that show them."""

import builtins
import itertools
import json
import shutil
import signal
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from swiftformer import detect, video
from swiftformer.cli_detect import draw_frame
from swiftformer.cli_video import record, tell
from swiftformer.engines import Engine, EngineError
from swiftformer.image_processing import Preprocessing
from swiftformer.images import ImageError
from swiftformer.predict_detection import DetectionResult, open_detector
from swiftformer.video import VideoError, VideoReader, annotate_video, is_video, record_video
from test_cli import cli  # noqa: F401
from test_coco_metrics import tiny_detector


class Bright(Engine):
    """Finds one bright rectangle, and a second time with a lower score as another class."""

    name, labels, outputs = "bright", ("cat", "dog"), ("scores", "labels", "boxes")
    preprocessing = Preprocessing(
        size=(64, 64), resize="whole", resize_to=64, longest=128, mean=(0, 0, 0), std=(1, 1, 1)
    )

    def __init__(self, input_shape=(None, 3, None, None), masks=False):
        self.input_shape = input_shape
        self.outputs = (*Bright.outputs, "masks") if masks else Bright.outputs
        self.seen = []

    def run(self, batch):
        self.seen.append(batch.shape)
        boxes = np.zeros((len(batch), 4, 4), dtype=np.float32)
        scores = np.zeros((len(batch), 4), dtype=np.float32)
        for box, score, pixels in zip(boxes, scores, batch, strict=True):
            y, x = np.nonzero(pixels[0] > 0.5)
            if len(y):
                low, high = np.array([x.min(), y.min()]), np.array([x.max(), y.max()]) + 1
                sides = np.array(batch.shape[:1:-1])  # width, height
                box[:2] = np.concatenate([(low + high) / 2 / sides, (high - low) / sides])
                score[:2] = 0.9, 0.3
        labels = np.broadcast_to(np.array([1, 0, 0, 0], dtype=np.float32), scores.shape)
        return [scores, labels, boxes, np.ones((len(batch), 4, 28, 28), np.float32)][: len(self.outputs)]


def picture(left=20, top=30, right=60, bottom=70, size=(100, 200)):
    pixels = np.full((*size, 3), 40, dtype=np.uint8)
    pixels[top:bottom, left:right] = 230
    return pixels


@pytest.fixture
def clip(tmp_path):
    """Ten frames of a rectangle that moves to the right, 12.5 a second."""
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (200, 100))
    for step in range(10):
        writer.write(np.ascontiguousarray(picture(20 + 10 * step, right=60 + 10 * step)[:, :, ::-1]))
    writer.release()
    return tmp_path / "clip.avi"


# Predictions


def test_detecting_in_pictures(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    engine = Bright(masks=True)
    good, bad, empty = detect([tmp_path / "a.png", tmp_path / "b.png", np.zeros((50, 40, 3), np.uint8)], engine)
    assert good.size == (100, 200) and good.detections.boxes[0] == pytest.approx([20, 30, 60, 70], abs=1)
    fields = json.loads(json.dumps(good.to_dict()))
    assert list(fields) == ["image", "height", "width", "objects"] and (fields["height"], fields["width"]) == (100, 200)
    [entry] = fields["objects"]
    assert list(entry) == ["label", "index", "score", "box", "area"]
    assert (entry["label"], entry["index"], entry["score"]) == ("dog", 1, 0.9)
    assert entry["area"] == pytest.approx(1600, rel=0.05) == good.detections.masks.sum()
    assert bad.detections is None and bad.objects() == [] and "b.png: expected an image" in bad.to_dict()["error"]
    assert empty.image == "image 2" and empty.to_dict()["objects"] == []
    assert engine.seen == [(1, 3, 64, 128), (1, 3, 80, 64)]
    (lower,) = detect(tmp_path / "a.png", engine, threshold=0.2)
    assert [o["label"] for o in lower.objects()] == ["dog", "cat"]
    with pytest.raises(ImageError, match="b.png"):
        list(detect(tmp_path / "b.png", engine, skip_broken=False))
    with pytest.raises(ValueError, match="threshold: expected a score from 0 to 1, found 50"):
        list(detect([], engine, threshold=50))


def test_sizes_that_are_asked_for_or_fixed():
    engine = Bright()
    (result,) = detect(picture(), engine, short_side=32)
    assert engine.seen == [(1, 3, 32, 64)] and "area" not in result.objects()[0]
    fixed = Bright((1, 3, 96, 96))
    (result,) = detect(picture(), fixed)
    assert fixed.seen == [(1, 3, 96, 96)] and result.objects()[0]["box"] == pytest.approx([20, 30, 60, 70], abs=2)
    with pytest.raises(ValueError, match="short_side: expected 96, as the input is fixed, found 64"):
        list(detect(picture(), fixed, short_side=64))
    fixed.outputs = ("logits",)
    with pytest.raises(ValueError, match="expected a detector, found a model with the outputs logits"):
        list(detect(picture(), fixed))


@pytest.mark.parametrize("masks", [False, True])
def test_a_model_and_its_fused_form_agree(tmp_path, masks):
    from swiftformer import save

    model = tiny_detector(masks)
    save(model, tmp_path / "saved")
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    (plain,), (fused,) = (detect(noise, m, threshold=0, device="cpu") for m in (model, tmp_path / "saved"))
    assert plain.detections.scores == pytest.approx(fused.detections.scores, abs=1e-3) and len(plain.detections) > 0
    assert plain.labels == ("dog", "bird", "cat") and (plain.detections.masks is not None) == masks
    engine = open_detector(model, device="cpu")
    assert engine.outputs[:3] == ("scores", "labels", "boxes") and open_detector(engine) is engine
    assert engine.preprocessing == model.preprocessing


def test_another_engine_for_a_detectors_checkpoint(tmp_path):
    with pytest.raises(EngineError, match="a detector runs in torch; expected an artifact of `swiftformer export` for"):
        open_detector(tmp_path, "openvino")


# Videos


def test_a_video_is_annotated(clip, tmp_path):
    target, steps = tmp_path / "out" / "drawn.mp4", []

    def draw(frame):
        assert frame.shape == (100, 200, 3) and frame.dtype == np.uint8
        drawn = frame.copy()
        drawn[:20] = 255, 0, 0
        return drawn

    with VideoReader(clip) as reader:
        assert (reader.rate, reader.frames, reader.live) == (12.5, 10, False)
        assert annotate_video(reader, target, draw, progress=steps.append) == 10 == sum(steps)
    with VideoReader(target) as reader:
        frames = list(reader)
        assert reader.rate == 12.5
    assert len(frames) == 10 and frames[0].shape == (100, 200, 3) and [*target.parent.iterdir()] == [target]
    assert frames[4][5:15].mean(axis=(0, 1)) == pytest.approx([255, 0, 0], abs=12)  # red, not blue
    assert abs(frames[4][50, 80].astype(int) - 230).max() < 12 and abs(frames[4][50, 20].astype(int) - 40).max() < 12


def test_a_video_is_recorded(clip, tmp_path):
    with VideoReader(clip) as reader:
        document = record_video(reader, tmp_path / "x", lambda frame: (frame, {"mean": float(frame.mean())}), limit=3)
    lines = [json.loads(line) for line in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [list(line) for line in lines] == [["frame", "seconds", "mean"]] * 3
    assert [line["seconds"] for line in lines] == [0, 0.08, 0.16]
    assert document == {
        "video": str(clip),
        "height": 100,
        "width": 200,
        "frames": 3,
        "frames_per_second": 12.5,
        "overlay": str(tmp_path / "x.mp4"),
        "lines": str(tmp_path / "x.jsonl"),
    }


def test_a_video_that_is_cut_off_is_told(clip, tmp_path, capsys):
    content = clip.read_bytes()
    (tmp_path / "cut.avi").write_bytes(content[: len(content) // 2])
    document = record("cut", tmp_path / "cut.avi", tmp_path / "x", lambda frame: (frame, {}))
    assert 0 < document["frames"] < 10 and document["frames"] + document["frames_missing"] == 10
    tell([document], tmp_path)
    assert (
        f"cut.avi: {document['frames_missing']} frames fewer than the file says: it may be cut off"
        in capsys.readouterr().err
    )


def test_videos_that_are_none_lose_nobody_the_pictures(cli, engine, tmp_path):  # noqa: F811
    pytest.importorskip("cv2")
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    wrong = [tmp_path / "*.mp4", "~nobody-of-that-name/a.avi", tmp_path / "none.mov"]
    code, out, err = cli("detect", *wrong, tmp_path / "a.png", "--model", "any", "--output", tmp_path / "o", "--json")
    documents = json.loads(out)
    assert code == 2 and err.count("error:") == 3 and "expected a pattern that matches files" in err
    assert [document.get("video") for document in documents] == [None, *map(str, wrong)]


def test_what_is_no_video(tmp_path, clip):
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    with pytest.raises(VideoError, match=r"broken.mp4: expected a video, found what OpenCV cannot read"):
        VideoReader(tmp_path / "broken.mp4")
    with pytest.raises(VideoError, match=r"none.mp4: expected a video, found no such file"):
        VideoReader(tmp_path / "none.mp4")
    with pytest.raises(VideoError, match="camera 99: expected a camera, found none"):
        VideoReader(99)
    heights = iter((100, 101))
    with (
        VideoReader(clip) as reader,
        pytest.raises(ValueError, match=r"first one's shape \(100, 200, 3\), found \(101, 200, 3\)"),
    ):
        record_video(reader, tmp_path / "x", lambda frame: (np.zeros((next(heights), 200, 3), np.uint8), {}))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken.mp4", "clip.avi"]  # nothing half-written
    assert is_video("A.MP4") and not is_video("a.png")


def test_opencv_is_missing(monkeypatch, clip):
    import_ = builtins.__import__

    def refuse(name, *rest, **options):
        if name == "cv2":
            raise ImportError(name)
        return import_(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"pip install 'swiftformer\[video\]'"):
        VideoReader(clip)


def test_pictures_are_not_looked_at_where_videos_cannot_be(monkeypatch, cli, engine, clip, tmp_path):  # noqa: F811
    """Their results would be lost."""
    Image.fromarray(picture()).save(tmp_path / "a.png")

    def missing():
        raise ValueError("videos and cameras need OpenCV")

    monkeypatch.setattr(video, "opencv", missing)
    code, out, err = cli("detect", tmp_path / "a.png", clip, "--model", "m", "--output", tmp_path / "out", "--json")
    assert (code, out, err) == (2, "", "error: videos and cameras need OpenCV\n") and not (tmp_path / "out").exists()


def test_a_video_that_cannot_be_written_loses_no_picture(monkeypatch, cli, engine, clip, tmp_path):  # noqa: F811
    cv2 = pytest.importorskip("cv2")
    Image.fromarray(picture()).save(tmp_path / "a.png")
    closed = SimpleNamespace(isOpened=lambda: False, release=lambda: None)
    monkeypatch.setattr(cv2, "VideoWriter", type("Writer", (), {"fourcc": lambda *_: 0, "__new__": lambda *_: closed}))
    code, out, _ = cli("detect", tmp_path / "a.png", clip, "--model", "m", "--output", tmp_path / "out", "--json")
    first, second = json.loads(out)
    assert code == 2 and "objects" in first and "OpenCV cannot write an mp4" in second["error"]


def test_a_rate_that_is_none(monkeypatch, clip):
    """OpenCV tells 1000 frames per second of WebM files that browsers record, and a number of frames made of it."""
    cv2 = pytest.importorskip("cv2")
    told = {cv2.CAP_PROP_FPS: 1000.0, cv2.CAP_PROP_FRAME_COUNT: 30000.0}
    capture = SimpleNamespace(isOpened=lambda: True, get=told.get, release=lambda: None)
    monkeypatch.setattr(cv2, "VideoCapture", lambda source: capture)
    reader = VideoReader(clip)
    assert (reader.rate, reader.frames) == (30.0, None)


def test_a_camera_s_film_lasts_as_long_as_what_it_shows(monkeypatch, tmp_path):
    """At 30 frames per second, of which every third came."""
    pytest.importorskip("cv2")
    clock = itertools.count(0, 0.1)
    monkeypatch.setattr(video, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    document = record_video(Camera(), tmp_path / "a", lambda frame: (frame, {}), limit=3)
    seconds = [json.loads(line)["seconds"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert document["frames"] == 3 and seconds == sorted(seconds) and seconds[2] - seconds[0] > 0.35
    with VideoReader(tmp_path / "a.mp4") as reader:
        assert len(list(reader)) > 9


class Camera:
    """A camera that never ends; somebody presses Ctrl-C at the third frame."""

    name, live, rate, frames = "camera 0", True, 30.0, None

    def __iter__(self):
        for number in range(1000):
            if number == 3:
                signal.raise_signal(signal.SIGINT)
            yield np.full((48, 64, 3), number, dtype=np.uint8)


class OpenCamera(Camera):
    def __init__(self, number):
        self.name = f"camera {number}"

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


def test_a_camera_ends_with_ctrl_c(tmp_path):
    pytest.importorskip("cv2")
    before = signal.getsignal(signal.SIGINT)
    assert annotate_video(Camera(), tmp_path / "a.mp4", lambda frame: frame) == 3
    assert signal.getsignal(signal.SIGINT) is before and (tmp_path / "a.mp4").stat().st_size > 0
    assert annotate_video(Camera(), tmp_path / "b.mp4", lambda frame: frame, limit=2) == 2


# The command line


@pytest.fixture
def engine(monkeypatch):
    """An engine in place of every checkpoint."""
    from swiftformer import predict_detection

    engine = Bright(masks=True)
    monkeypatch.setattr(predict_detection, "open_detector", lambda model, *options: engine)
    return engine


@pytest.fixture
def thresholds(monkeypatch):
    """An engine in place of every segmentation model."""
    from swiftformer import predict_segmentation
    from test_segmentation_metrics import Thresholds

    monkeypatch.setattr(predict_segmentation, "open_segmenter", lambda model, *options: Thresholds())


def test_detect_json(cli, engine, tmp_path, clip):  # noqa: F811
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for name in ("a.png", "more/a.png"):
        Image.fromarray(picture(size=(400, 600))).save(folder / name)
    (folder / "bad.jpg").write_bytes(b"no picture")
    out, coco = tmp_path / "out", tmp_path / "results" / "coco.json"
    code, stdout, stderr = cli("detect", folder, clip, "--model", "m", "--output", out, "--coco", coco, "--json")
    documents = json.loads(stdout)
    assert code == 2 and "bad.jpg: expected an image" in stderr and len(documents) == 4
    first, bad, second, moving = documents
    assert first["overlay"] == str(out / "a.png") and second["overlay"] == str(out / "a-2.png")
    assert Image.open(out / "a.png").size == (600, 400) and "overlay" not in bad
    assert [o["label"] for o in first["objects"]] == ["dog"] and first["objects"][0]["area"] > 1000
    assert moving["frames"] == 10 and moving["overlay"] == str(out / "clip.mp4")
    lines = [json.loads(line) for line in (out / "clip.jsonl").read_text().splitlines()]
    assert [round(line["objects"][0]["box"][0] / 10) for line in lines] == [*range(2, 12)]
    rows = json.loads(coco.read_text())
    assert [row["image_id"] for row in rows] == [1, 3, *range(4, 14)] and {row["category_id"] for row in rows} == {2}
    assert [(row["file_name"], row["frame"]) for row in rows[2:]] == [(str(clip), number) for number in range(10)]
    assert "frame" not in rows[0] and [round(row["bbox"][0] / 10) for row in rows[2:]] == [*range(2, 12)]
    assert rows[0]["file_name"].endswith("a.png") and rows[0]["segmentation"]["size"] == [400, 600]


def test_detect_table(cli, engine, tmp_path, clip):  # noqa: F811
    Image.fromarray(picture()).save(tmp_path / "a.png")
    out = tmp_path / "out"
    code, stdout, stderr = cli(
        "detect", tmp_path / "a.png", clip, "--model", "m", "--output", out, "--threshold", 0.1, "--frames", 2
    )
    assert code == 0 and "1 dog, 1 cat" in stdout and "0.90" in stdout
    assert f"2 frames are in {out / 'clip.mp4'}" in stderr and f"pictures are in {out}" in stderr
    assert cli("detect", tmp_path / "a.png", "--model", "m", "--output", out, "--no-masks")[0] == 0


def test_masks_are_let_go(cli, engine, tmp_path, monkeypatch):  # noqa: F811
    from swiftformer import predict_detection

    run, given, most = predict_detection.detect, [], []

    def watched(*arguments, **options):
        most.append(sum(reference() is not None for reference in given))
        for result in run(*arguments, **options):
            given.append(weakref.ref(result.detections))
            yield result

    monkeypatch.setattr(predict_detection, "detect", watched)
    for number in range(4):
        Image.fromarray(picture()).save(tmp_path / f"{number}.png")
    options = ("--model", "m", "--output", tmp_path / "out", "--coco", tmp_path / "coco.json")
    code, stdout, _ = cli("detect", *(tmp_path / f"{number}.png" for number in range(4)), *options)
    assert code == 0 and stdout.count("1 dog") == 4 and most == [0, 0, 0, 0]
    rows = json.loads((tmp_path / "coco.json").read_text())
    assert [row["image_id"] for row in rows] == [1, 2, 3, 4] and all("segmentation" in row for row in rows)


def test_bad_input(cli, engine, tmp_path, clip):  # noqa: F811
    clip.rename(tmp_path / "clip.mp4")
    for arguments, message in (
        (["--output", "out"], "expected pictures, videos or --camera, found none"),
        ([tmp_path / "none.mp4", "--output", "out"], "none.mp4: expected a video, found no such file"),
        (["--camera", 99, "--output", "out"], "camera 99: expected a camera, found none"),
        ([tmp_path / "clip.mp4", "--output", tmp_path], "expected another folder than that of the pictures"),
    ):
        code, _, stderr = cli("detect", *arguments, "--model", "m")
        assert code == 2 and stderr.startswith("error: ") and message in stderr and stderr.count("\n") == 1


def test_frames_keep_their_size_and_colours():
    (result,) = detect(picture(), Bright())
    drawn = draw_frame(picture(), result, masks=True)
    assert drawn.shape == (100, 200, 3) and (drawn != picture()).any()
    assert np.array_equal(
        draw_frame(picture(), DetectionResult("a", (100, 200), result.detections[:0], ("a",)), True), picture()
    )


def test_coco_rows_of_two_videos(cli, engine, clip, tmp_path):  # noqa: F811
    shutil.copy(clip, tmp_path / "other.avi")
    options = ("--model", "m", "--output", tmp_path / "out", "--coco", tmp_path / "coco.json", "--frames", 2)
    assert cli("detect", clip, tmp_path / "other.avi", *options)[0] == 0
    rows = json.loads((tmp_path / "coco.json").read_text())
    assert [(row["image_id"], row["file_name"][-9:], row["frame"]) for row in rows] == [
        (1, "/clip.avi", 0),
        (2, "/clip.avi", 1),
        (3, "other.avi", 0),
        (4, "other.avi", 1),
    ]


@pytest.mark.parametrize("verb", ["detect", "segment"])
def test_cameras(cli, engine, thresholds, tmp_path, monkeypatch, verb):  # noqa: F811
    pytest.importorskip("cv2")
    monkeypatch.setattr(video, "VideoReader", lambda source: OpenCamera(source))
    code, stdout, stderr = cli(verb, "--camera", 3, "--model", "m", "--frames", 2, "--output", tmp_path, "--json")
    [document] = json.loads(stdout)
    assert code == 0 and document["frames"] == 2 and document["overlay"] == str(tmp_path / "camera-3.mp4")
    assert "camera 3: until Ctrl-C, or 2 frames" in stderr and len(document) > 5
    assert len((tmp_path / "camera-3.jsonl").read_text().splitlines()) == 2


def test_segment_takes_videos(cli, clip, thresholds, tmp_path):  # noqa: F811
    code, stdout, _ = cli("segment", clip, "--model", "m", "--output", tmp_path / "out", "--json")
    [document] = json.loads(stdout)
    assert code == 0 and document["frames"] == 10
    lines = [json.loads(line) for line in (tmp_path / "out" / "clip.jsonl").read_text().splitlines()]
    assert {share["label"] for share in lines[0]["classes"]} <= {"dark", "gray", "bright"} and len(lines) == 10
    with VideoReader(tmp_path / "out" / "clip.mp4") as reader:
        height, width, _ = next(iter(reader)).shape
        assert height > 100 and width == 200  # the legend lies below
    assert video.is_video(document["overlay"])
    code, stdout, _ = cli("segment", clip, "--model", "m", "--output", tmp_path / "out", "--json", "--frames", 2)
    assert code == 0 and json.loads(stdout)[0]["frames"] == 2
    code, _, stderr = cli("segment", "--model", "m")
    assert code == 2 and stderr == "error: expected pictures, videos or --camera, found none\n"


def test_unread_pictures_are_no_pictures_without_objects(cli, engine, tmp_path):  # noqa: F811
    Image.fromarray(picture()).save(tmp_path / "a.png")
    code, stdout, stderr = cli(
        "detect", tmp_path / "a.png", tmp_path / "nope.jpg", "--model", "m", "--output", tmp_path / "out"
    )
    assert code == 2 and "no such file" in stderr
    assert [line.split()[1:3] for line in stdout.splitlines() if "nope" in line] == [["cannot", "be"]]


@pytest.mark.parametrize("verb", ["detect", "segment"])
def test_a_file_that_cannot_be_written_is_told_before_the_work(cli, engine, thresholds, tmp_path, verb):  # noqa: F811
    Image.fromarray(picture()).save(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "file" / "coco.json"):
        code, _, stderr = cli(verb, tmp_path / "a.png", "--model", "m", "--output", tmp_path / "out", "--coco", place)
        assert code == 2 and len(stderr.strip().splitlines()) == 1 and "expected a f" in stderr
    assert not (tmp_path / "out").exists()


def test_segment_coco(cli, clip, thresholds, tmp_path):  # noqa: F811
    from pycocotools import mask as coco_mask

    Image.fromarray(picture()).save(tmp_path / "a.png")
    coco = tmp_path / "coco.json"
    code, stdout, stderr = cli(
        *("segment", tmp_path / "a.png", clip, "--model", "m", "--output", tmp_path / "out", "--frames", 2),
        *("--coco", coco, "--masks", "--json"),
    )
    assert code == 0, stderr
    mask = np.asarray(Image.open(json.loads(stdout)[0]["mask"]))
    rows = json.loads(coco.read_text())
    assert {row["image_id"] for row in rows} == {1, 2, 3} and {row.get("frame") for row in rows} == {None, 0, 1}
    drawn = np.full(mask.shape, 255)
    for row in (row for row in rows if row["image_id"] == 1):
        drawn[coco_mask.decode(row["segmentation"]).astype(bool)] = row["category_id"] - 1
    assert np.array_equal(drawn, mask)
