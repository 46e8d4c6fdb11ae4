import json

import torch
from PIL import Image

from swiftformer.train import plots
from swiftformer.train.plots import plot_confusion


def test_of_many_classes_the_most_confused_are_drawn(tmp_path, monkeypatch):
    """Errors count for the class that is missed and for the one that is taken for it; shares are of the whole class."""
    seen = {}
    monkeypatch.setattr(plots, "save_figure", lambda figure, target: seen.update(axis=figure.axes[0]))
    confusion = 8 * torch.eye(401, dtype=torch.long)
    confusion[7, 300] = confusion[300, 7] = 2
    confusion[range(40, 78), range(41, 79)] = 1  # 39 classes
    confusion[5, 6] = 1
    plot_confusion(confusion, [f"c{i}" for i in range(401)], tmp_path / "confusion.png")
    axis = seen["axis"]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert (
        len(names) == 40
        and {"c7", "c300", "c41", "c77"} <= {*names}
        and names == sorted(names, key=lambda n: int(n[1:]))
    )
    assert axis.get_title() == "the 40 of 401 classes with the most errors"
    shares = axis.images[0].get_array()
    row, column = names.index("c7"), names.index("c300")
    assert shares[row, column] == 20 and shares[row, row] == 80


def test_few_classes_are_all_drawn(tmp_path):
    plot_confusion(torch.eye(3), ["a", "b", "$c"], tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.width > 100


def test_curves_show_what_was_written_down(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, target: figures.append(figure))
    lines = [{"epoch": n, "loss": 1 / n, "train_accuracy": 10.0 * n, "lr": 1e-3 * n} for n in (1, 2, 3)]
    for line in lines[::2]:
        line["AP"] = 30.0 + line["epoch"]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    plots.plot_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", measure="AP")
    drawn = [[(*line.get_xydata().T.tolist(), line.get_label()) for line in axis.lines] for axis in figures[0].axes]
    loss, quality, rate = drawn
    assert loss == [([1, 2, 3], [1, 1 / 2, 1 / 3], "training")] and rate[0][1] == [1e-3, 2e-3, 3e-3]
    assert quality == [([1, 2, 3], [10, 20, 30], "training"), ([1, 3], [31, 33], "validation (AP)")]


def test_a_run_is_drawn_now_and_then_and_in_the_end(tmp_path, monkeypatch):
    drawn, now = [], [0.0]
    monkeypatch.setattr(plots.time, "perf_counter", lambda: now[0])

    def draw(*arguments, target, **options):
        drawn.append(target.name)
        now[0] += 1

    for name in ("plot_curves", "plot_confusion"):
        monkeypatch.setattr(plots, name, draw)
    pictures = plots.RunPictures(tmp_path, "top1", ["a", "b"])
    assert pictures.draw(torch.eye(2), last=False) and drawn == ["curves.png", "confusion.png"]
    for _ in range(18):
        assert not pictures.draw(torch.eye(2), last=False)
        now[0] += 1
    assert len(drawn) == 2
    now[0] += 2
    assert not pictures.draw(None, last=False) and drawn[2:] == ["curves.png"]
    assert pictures.draw(torch.eye(2), last=False) and drawn[3:] == ["confusion.png"]
    assert pictures.draw(torch.eye(2), last=True) and drawn[4:] == ["curves.png", "confusion.png"]
