"""The model inside the package: what its card says is what it does."""

import re
from importlib import resources, util
from pathlib import Path

import pytest

from conftest import shared
from swiftformer import classify, load
from swiftformer.data.sources import open_source
from swiftformer.data.splits import Subset
from swiftformer.evaluate.classification import evaluate_reference
from swiftformer.locate import BUNDLED
from swiftformer.predict import find_images

FOLDER = resources.files("swiftformer") / "weights" / BUNDLED[0]
EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "images"


def test_size_and_content():
    names = {file.name for file in FOLDER.iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
    assert sum(len(file.read_bytes()) for file in FOLDER.iterdir()) < 8e6
    model = load(BUNDLED[0])
    assert model.config.form == "l2"
    assert model.config.id2label[0] == "airplane"
    assert model.config.id2label[9] == "truck"


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("every", "expected"),
    [(5, 91.1), pytest.param(1, None, marks=pytest.mark.exhaustive)],  # of every fifth picture; all are the card's
)
def test_accuracy_is_that_of_the_card(monkeypatch, every, expected):
    """Where there is the native engine in it, in float32: it is quicker, and differs from torch by a few millionths."""
    card = re.search(r"top-1 \| (\d+\.\d+)", (FOLDER / "README.md").read_text())
    data = str(shared("data", "cifar10"))
    engine = "native" if util.find_spec("swiftformer_native") else "torch"
    source = open_source(data, "test")
    some = Subset(source, range(0, len(source), every))
    monkeypatch.setattr("swiftformer.evaluate.classification.open_source", lambda *_, **options: some)
    metrics = evaluate_reference(BUNDLED[0], data, "test", engine=engine, precision="fp32", workers=1, batch_size=50)
    assert metrics["images"] == 10_000 // every
    # Other processors round differently: two or three pictures.
    assert metrics["top1"] == pytest.approx(expected or float(card[1]), abs=0.1 if expected else 0.03)


def test_example_photographs():
    found = find_images([str(EXAMPLES)])
    results = list(classify([source for _, source in found], names=[name for name, _ in found]))
    assert len(results) == 9
    right = sum(result.predictions[0].label in result.image for result in results)
    assert right >= 6  # they are sharper than anything in its training data
