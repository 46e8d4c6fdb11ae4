"""Segmentation models in the formats for phones and in int8; the others are in test_segmentation.py."""

import numpy as np
import pytest
import torch

from conftest import randomize, shared
from swiftformer import Preprocessing, SwiftFormerConfig, SwiftFormerForSemanticSegmentation, fuse
from swiftformer.engines import open_engine
from swiftformer.engines.mil_ops import upsample_bilinear, upsample_nearest_neighbor
from swiftformer.export import ExportError, calibration_pictures, export, top1_on
from swiftformer.export.compare import samples
from swiftformer.predict_segmentation import segment

NAMES = ["sky", "road", "tree", "car", "person"]
# Largest difference over the largest score on other pictures than were compared, and pixels of the same class.
LIMITS = {"fp32": (1e-4, 0.999), "fp16": (0.02, 0.97), "int8": (0.5, 0.8), "palettized": (0.5, 0.8)}


@pytest.fixture(scope="module")
def model():
    """Three stages have all that four have: upsampling by one step and by two."""
    torch.manual_seed(0)
    config = SwiftFormerConfig(
        depths=[1, 1, 1],
        embed_dims=[8, 16, 24],
        global_query_weighting="l2",
        id2label=dict(enumerate(NAMES)),
        fpn_channels=16,
        segmentation_channels=16,
    )
    model = randomize(SwiftFormerForSemanticSegmentation(config)).eval()
    model.preprocessing = Preprocessing(size=(64, 64), resize="whole", resize_to=64)
    return model


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(
    ("format_", "module", "precision", "size"),
    [
        slow("coreml", "coremltools", "fp16", (64, 96)),
        slow("coreml", "coremltools", "fp32", (64, 64)),
        slow("coreml", "coremltools", "int8", (64, 64)),
        slow("coreml", "coremltools", "palettized", (64, 64)),
        slow("executorch", "executorch", "fp32", (64, 97)),
        slow("executorch", "executorch", "int8", (64, 64)),
        slow("litert", "litert_torch", "fp32", (64, 97)),
        slow("litert", "litert_torch", "fp16", (64, 64)),
        slow("litert", "litert_torch", "int8", (64, 64)),
        slow("onnx", "onnxscript", "int8", (64, 64)),
        slow("onnx", "onnxscript", "fp16", "dynamic"),
        slow("openvino", "nncf", "int8", (64, 64)),
        slow("openvino", "openvino", "fp16", (64, 97)),
        slow("openvino", "openvino", "bf16", (64, 64)),
        slow("qnn", "onnxscript", "fp16", (64, 64)),
        slow("aoti", "torch", "fp32", (64, 64)),
    ],
)
def test_formats(model, tmp_path, format_, module, precision, size):
    pytest.importorskip(module)
    calibration = samples() if precision == "int8" and format_ != "coreml" else None
    artifact = export(model, tmp_path / "a", format_, precision=precision, size=size, calibration=calibration)
    assert artifact.task == "segmentation" and artifact.outputs == ("logits",) and artifact.labels == tuple(NAMES)
    worst, agreement = LIMITS.get(precision, (0.1, 0.9))
    height, width = (64, 97) if size == "dynamic" else size
    pixels = np.random.default_rng(1).normal(size=(2, 3, height, width)).astype(np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(pixels)).logits.numpy()
    engine = open_engine(tmp_path / "a", "onnxruntime" if format_ == "qnn" else "auto")
    found = engine(pixels)["logits"]
    assert found.shape == expected.shape and np.abs(found - expected).max() < worst * np.abs(expected).max()
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() > agreement
    [result] = segment(samples()[0], engine)
    assert result.mask is not None and result.mask.max() < 5 and result.classes


@pytest.mark.exhaustive
@pytest.mark.parametrize("format_", ["executorch-coreml", "executorch-vulkan"])
def test_formats_that_are_lowered_only(model, tmp_path, format_):
    pytest.importorskip("executorch")
    pytest.importorskip("coremltools")
    artifact = export(model, tmp_path / "a", format_, size=(64, 64))
    assert artifact.outputs == ("logits",) and (tmp_path / "a" / artifact.file).stat().st_size > 1000


def test_core_ml_takes_images_of_whole_factors(model, tmp_path):
    """An RGB image as input on request; sizes of which every map is half the one before."""
    ct = pytest.importorskip("coremltools")
    with pytest.raises(
        ExportError, match="coreml: expected a height and width of multiples of 32 to segment, .* 360x480"
    ):
        export(model, tmp_path / "a", "coreml", size=(360, 480))
    export(model, tmp_path / "a", "coreml", size=(64, 64), normalize=True)
    spec = ct.utils.load_spec(str(tmp_path / "a" / "model.mlpackage"))
    assert spec.description.input[0].type.WhichOneof("Type") == "imageType"
    assert spec.description.metadata.shortDescription == (
        "SwiftFormer segmentation model, 5 classes, 64x64 pixels, fp16"
    )
    [output] = spec.description.output
    assert output.name == "logits" and "every fourth pixel" in output.shortDescription
    engine = open_engine(tmp_path / "a")
    raw = np.random.default_rng(1).integers(0, 256, (1, 3, 64, 64)).astype(np.float32)
    with torch.inference_mode():
        expected = fuse(model, raw_input=True)(torch.from_numpy(raw)).numpy()
    assert np.abs(engine(raw)["logits"] - expected).max() < 0.02 * np.abs(expected).max()


def test_upsampling_of_core_ml_is_torchs():
    x = torch.randn(2, 3, 5, 4)
    for factors, mode in (((2, 3), "nearest"), ((2, 3), "bilinear"), ((1.6, 2.5), "bilinear")):
        size = [int(side * factor) for side, factor in zip(x.shape[2:], factors, strict=True)]
        expected = torch.nn.functional.interpolate(x, size=size, mode=mode).numpy()
        given = {"scale_factor_height": np.float32(factors[0]), "scale_factor_width": np.float32(factors[1])}
        if mode == "nearest":
            found = upsample_nearest_neighbor(x.numpy(), **given)
        else:
            found = upsample_bilinear(x.numpy(), **given, align_corners=np.bool_(False))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(NotImplementedError, match="a whole factor, found 1.5"):
        upsample_nearest_neighbor(x.numpy(), np.float32(1.5), np.float32(2))
    with pytest.raises(NotImplementedError, match="aligned centres, found aligned corners"):
        upsample_bilinear(x.numpy(), 2, 2)


@pytest.mark.parametrize("size", [(3, 5), (16, 25), (45, 60), (23, 8)])
def test_whole_factors_for_litert(size):
    pytest.importorskip("litert_torch")
    from swiftformer.export.litert import repeated
    from swiftformer.heads.semantic_fpn import nearest

    x = torch.randn(2, 3, -(-size[0] // 2), -(-size[1] // 2))
    assert torch.equal(repeated(x, size), nearest(x, size)) and torch.equal(repeated(x, x.shape[2:]), x)


def test_the_accuracy_of_int8_is_searched_for_classifiers_only(model, tmp_path, image_folder):
    pytest.importorskip("onnxscript")
    options = {"precision": "int8", "calibration": samples(), "max_drop": 1.0, "top1": top1_on(str(image_folder))}
    with pytest.raises(ExportError, match="max_drop: expected a classifier, found a model for segmentation"):
        export(model, tmp_path / "a", "onnx", **options)
    assert not (tmp_path / "a").exists()


def test_pictures_with_masks_calibrate():
    assert len(calibration_pictures(shared("data", "camvid"), 3)) == 3
