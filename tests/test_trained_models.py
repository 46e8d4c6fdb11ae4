"""The trained models of the repository: what their cards say is what they do."""

import re
from importlib import util
from pathlib import Path

import pytest

from conftest import shared
from swiftformer import load
from swiftformer.evaluate import detection, segmentation

FOLDER = Path(__file__).resolve().parents[1] / "models"
CARDS = {  # data, metrics of the card and their names there
    "swiftformer-xs-camvid": ("camvid", {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"}),
    "swiftformer-l1-camvid": ("camvid", {"miou": "mIoU", "pixel_accuracy": "pixel accuracy"}),
    "swiftformer-xs-bccd": ("bccd", {"AP": "AP", "AP50": "AP50"}),
    "swiftformer-xs-nuclei": ("nuclei", {"mask_AP": "mask AP", "mask_AP50": "mask AP50"}),
}


def test_every_model_has_a_card_and_half_the_size():
    assert {folder.name for folder in FOLDER.iterdir() if folder.is_dir()} == set(CARDS)
    for name in CARDS:
        names = {file.name for file in (FOLDER / name).iterdir()}
        assert names == {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
        assert (FOLDER / name / "model.safetensors").stat().st_size < (30e6 if "-l1-" in name else 12e6)
        assert load(FOLDER / name).config.form == "l2"


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    [
        "swiftformer-xs-bccd",
        *(  # whose evaluation takes longer
            pytest.param(name, marks=pytest.mark.exhaustive)
            for name in ("swiftformer-xs-camvid", "swiftformer-l1-camvid", "swiftformer-xs-nuclei")
        ),
    ],
)
def test_accuracy_is_that_of_the_card(name):
    data, keys = CARDS[name]
    evaluate = segmentation.evaluate_reference if data == "camvid" else detection.evaluate_reference
    # Quicker where it is installed, and different by a few millionths.
    engine = "native" if data == "camvid" and util.find_spec("swiftformer_native") else "torch"
    metrics = evaluate(FOLDER / name, str(shared("data", data)), "val", engine=engine, precision="fp32", workers=1)
    card = (FOLDER / name / "README.md").read_text()
    for key, title in keys.items():
        [figure] = re.findall(rf"^\| {title} \| (\d+\.\d+) \|$", card, re.MULTILINE)
        assert metrics[key] == pytest.approx(float(figure), abs=0.1)  # other processors round differently
