import dataclasses
import io
import json
import struct
import tempfile
import zlib

import numpy as np
import pytest
import timm.data
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import relative, shared, tiny
from swiftformer import ImageError, Preprocessing, classify, fold_normalization, open_image
from swiftformer.image_processing import AUTHORS, HUB, IMAGENET_MEAN, IMAGENET_STD, TIMM
from swiftformer.images import listed

STD = np.array(IMAGENET_STD)[:, None, None]


@pytest.fixture(scope="module")
def photographs():
    return sorted(shared("data", "imagenet_samples").glob("*/*"))


def test_equals_transformers_vit_processor(photographs):
    """The same numbers with the same backend (Pillow); at most one level of 255 with torchvision's."""
    fields = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
    pillow = transformers.ViTImageProcessorPil(**fields)
    vision = transformers.ViTImageProcessor(**fields)
    for file in photographs:
        image = Image.open(file).convert("RGB")
        found = HUB(file)[0]
        assert np.array_equal(found, pillow(image, return_tensors="np")["pixel_values"][0])
        difference = found - vision(image, return_tensors="pt")["pixel_values"][0].numpy()
        assert np.abs(difference * STD).max() <= 1.001 / 255


def test_bicubic_equals_transformers_pillow_backend(photographs):
    fields = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD), "resample": 3}
    pillow = transformers.ViTImageProcessorPil(**fields)
    for file in photographs:
        image = Image.open(file).convert("RGB")
        expected = pillow(image, return_tensors="np")["pixel_values"][0]
        assert np.array_equal(dataclasses.replace(HUB, interpolation="bicubic")(file)[0], expected)


@pytest.mark.parametrize(
    "fields", [{"crop_mode": "squash", "crop_pct": 0.9}, {"crop_mode": "border"}, {"input_size": (3, 224, 320)}]
)
def test_crops_of_timm_that_cannot_be_reproduced(fields):
    assert Preprocessing.from_timm({"crop_mode": "squash", "crop_pct": 1.0}).resize == "squash"
    with pytest.raises(ValueError, match="expected a crop_mode of center and a square input, or squash and"):
        Preprocessing.from_timm(fields)


@pytest.mark.parametrize(("preprocessing", "crop_pct"), [(TIMM, 0.95), (AUTHORS, 224 / 256)])
def test_equals_timms_evaluation_transform(photographs, preprocessing, crop_pct):
    transform = timm.data.create_transform(224, crop_pct=crop_pct, interpolation="bicubic")
    for file in photographs:
        expected = transform(Image.open(file).convert("RGB")).numpy()
        assert np.abs(preprocessing(file)[0] - expected).max() < 1e-6


@settings(max_examples=40, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    target=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    extra=st.integers(0, 20),
    interpolation=st.sampled_from(["bilinear", "bicubic", "lanczos"]),
)
def test_equals_torchvision_at_any_size(width, height, target, extra, interpolation):
    from torchvision.transforms import CenterCrop, InterpolationMode, Resize

    image = Image.fromarray(np.random.default_rng(width * 91 + height).integers(0, 256, (height, width, 3), np.uint8))
    short = max(1, max(target) + extra - 10)  # smaller than the crop as well: then a black border is added
    preprocessing = Preprocessing(size=target, resize="shortest", resize_to=short, interpolation=interpolation)
    if max(width, height) / min(width, height) * short > 4000:
        return
    resized = Resize(short, InterpolationMode(interpolation))(image)
    assert np.array_equal(preprocessing.resized(image), np.asarray(CenterCrop(target)(resized)))


@pytest.mark.parametrize("preprocessing", [HUB, AUTHORS, TIMM, Preprocessing(size=(48, 96), interpolation="box")])
def test_json_round_trip(preprocessing):
    again = Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict())))
    assert again == dataclasses.replace(preprocessing, resize_to=again.resize_to)
    assert again.short_side == preprocessing.short_side or preprocessing.resize == "squash"


@pytest.mark.parametrize("preprocessing", [HUB, AUTHORS, TIMM])
def test_transformers_reads_our_preprocessor_config(tmp_path, preprocessing):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocessing.to_dict()))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    ramp = np.linspace(0, 200, 400).astype(np.uint8)
    image = Image.fromarray(np.stack([np.broadcast_to(ramp, (300, 400))] * 3, axis=2))
    found = processor(image, return_tensors="np")["pixel_values"]
    difference = (found - preprocessing(image)) * STD * 255
    # transformers rounds the corner of an odd centre crop down, torchvision to the even number: up to one pixel off
    assert found.shape == (1, 3, 224, 224)
    assert np.abs(difference).max() <= 2.01


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (0, 5)}, "two positive numbers"),
        ({"resize": "stretch"}, "'squash', 'shortest', 'whole' or 'fit', found 'stretch'"),
        ({"interpolation": "magic"}, "interpolation must be one of"),
        ({"std": (1.0, 0.0, 1.0)}, "positive std"),
    ],
)
def test_bad_preprocessing(fields, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**fields)


def test_preprocessor_configs_that_cannot_be_reproduced():
    with pytest.raises(ValueError, match="do_resize"):
        Preprocessing.from_dict({"do_resize": False})
    with pytest.raises(ValueError, match="centre crop after size.shortest_edge"):
        Preprocessing.from_dict({"size": {"height": 256, "width": 256}, "do_center_crop": True, "crop_size": 224})
    with pytest.raises(ValueError, match="rescale_factor of 1/255, found 1"):
        Preprocessing.from_dict({"rescale_factor": 1})


# Reading pictures


def png16(pixels: np.ndarray) -> bytes:
    """A 16-bit grayscale PNG, written by hand."""
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


MODES = [
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "LA",
    "PA",
    "RGBa",
    "La",
    "RGBX",
    "I;16",
]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(mode):
    image = Image.new("RGB", (9, 7), (255, 255, 255))
    image = Image.new("I;16", (9, 7), 65535) if mode == "I;16" else image
    if mode == "La":
        image = image.convert("LA").convert("La")
    elif mode == "RGBa":
        image = image.convert("RGBA").convert("RGBa")
    elif mode == "PA":
        image = image.convert("P").convert("PA")
    elif mode == "LAB":
        image = Image.new("LAB", (9, 7), (255, 128, 128))
    elif mode not in ("I;16",):
        image = image.convert(mode)
    rgb = open_image(image)
    assert rgb.mode == "RGB" and rgb.size == (9, 7)
    assert min(rgb.getpixel((4, 3))) >= 250


def test_sixteen_bits_are_scaled_and_not_clipped():
    pixels = np.linspace(0, 65535, 64).reshape(8, 8).round().astype(np.uint16)
    rgb = np.asarray(open_image(png16(pixels)))
    assert np.array_equal(rgb[..., 0], np.rint(pixels / 257).astype(np.uint8))


def test_dark_pictures_of_sixteen_bits_stay_dark():
    assert np.asarray(open_image(png16(np.full((8, 8), 255, np.uint16)))).max() == 1


def test_transparency_is_laid_over_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert open_image(image).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30] + [0] * 765)
    assert open_image(encoded(palette, "PNG")).getpixel((0, 0)) == (10, 20, 30)
    assert open_image(encoded(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 16, 3), np.uint8))
    exif = Image.Exif()
    exif[274] = orientation
    upright = open_image(encoded(image, "PNG", exif=exif))
    assert upright.size == ((16, 8) if orientation < 5 else (8, 16))
    if orientation == 3:
        assert np.array_equal(np.asarray(upright), np.asarray(image)[::-1, ::-1])


def test_cmyk_jpeg():
    rgb = open_image(encoded(Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK"), "JPEG"))
    assert np.abs(np.array(rgb.getpixel((8, 8))) - (250, 10, 10)).max() < 12


def test_animations_give_their_first_frame():
    frames = [Image.new("RGB", (6, 6), color) for color in ("red", "blue")]
    for format_ in ("GIF", "PNG", "WEBP"):
        data = encoded(frames[0], format_, save_all=True, append_images=frames[1:])
        red, _, blue = open_image(data).getpixel((3, 3))
        assert red > 200 and blue < 60


def test_arrays_and_tensors():
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    sources = [
        pixels,
        pixels.transpose(2, 0, 1),
        pixels / 255,
        (pixels / 255).astype(np.float32),
        pixels.astype(np.uint16) * 257,
        pixels.astype(np.uint16),
        pixels.astype(np.int16),
        pixels.astype(np.int64),
        torch.from_numpy(pixels),
        torch.from_numpy(pixels).permute(2, 0, 1),
        torch.from_numpy(pixels).permute(2, 0, 1) / 255,
        Image.fromarray(pixels),
        encoded(Image.fromarray(pixels), "PNG"),
        io.BytesIO(encoded(Image.fromarray(pixels), "PNG")),
    ]
    for source in sources:
        assert np.array_equal(np.asarray(open_image(source)), pixels)
    assert open_image(pixels[:, :, 0]).mode == "RGB"
    assert open_image(torch.zeros(1, 5, 7)).size == (7, 5)
    assert open_image(np.ones((4, 6), bool)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((2, 3, 4, 5)), r"found \(2, 3, 4, 5\)"),
        (np.zeros((0, 4, 3), np.uint8), "found"),
        (np.zeros((5, 5, 7)), r"found \(5, 5, 7\)"),
        (np.zeros((4, 4, 3), np.int8), "expected pixels of uint8, a wider integer or floats, found int8"),
        (np.zeros((4, 4, 3), complex), "found complex128"),
        (np.zeros((4, 4), [("a", "u1")]), "expected pixels of uint8"),
        (np.full((4, 4, 3), -1), "found -1 to 0"),
        (np.full((4, 4, 3), np.nan), "expected finite values, found nan to nan"),
        (torch.tensor([[0.5, float("inf")]]), "expected finite values, found 0.0 to inf"),
        (np.full((4, 4), 65535, np.float32), r"expected floats in \[0, 1\] or \[0, 255\], found up to 6.554e\+04"),
        (torch.zeros(3, 4, 4, device="meta"), "broken image"),
        (torch.zeros(3, 4, 4).to_sparse(), "broken image"),
        (17, "found int"),
        (None, "found NoneType"),
    ],
)
def test_what_is_no_picture(source, message):
    with pytest.raises(ImageError, match=message):
        open_image(source)


def test_normalised_pixels_are_told(photographs):
    """They would give a picture of nothing: most are below zero, where pictures only undershoot."""
    for preprocessing in (HUB, TIMM):
        for pixels in preprocessing(photographs):
            with pytest.raises(
                ImageError, match=r"array: expected values in \[0, 1\] or \[0, 255\], found -.* normalised"
            ):
                open_image(torch.from_numpy(pixels))
    undershooting = np.linspace(-0.1, 1.1, 48).reshape(4, 4, 3)
    assert np.array_equal(np.asarray(open_image(undershooting)), np.rint(255 * undershooting.clip(0, 1)))


def test_int16_has_its_own_range():
    assert open_image(np.full((4, 4), 32767, np.int16)).getpixel((0, 0)) == (255, 255, 255)


def test_one_or_several(tmp_path):
    """Whatever a picture comes as, it is not taken apart."""

    class File:
        def __fspath__(self):
            return str(tmp_path / "a.png")

    Image.new("RGB", (6, 4)).save(tmp_path / "a.png")
    with tempfile.NamedTemporaryFile() as file:
        file.write((tmp_path / "a.png").read_bytes())
        file.seek(0)
        for one in (np.zeros((4, 6, 3), np.uint8), torch.zeros(4, 6), torch.zeros(3, 4, 6), File(), file):
            assert len(listed(one)) == 1 and open_image(listed(one)[0]).size == (6, 4)
    assert listed("a.png") == ["a.png"] and listed(["a.png", "b.png"]) == ["a.png", "b.png"] and listed(None) == [None]
    for several in (np.zeros((2, 4, 6, 3)), torch.zeros(2, 3, 4, 6), (Image.new("L", (6, 4)) for _ in "ab")):
        pictures = listed(several)
        assert len(pictures) == 2 and open_image(pictures[1]).size == (6, 4)


def bomb() -> bytes:
    """A PNG whose header promises 50,000 x 50,000 pixels."""
    data = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    data[16:24] = struct.pack(">II", 50_000, 50_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


BAD_FILES = {
    "empty.jpg": (b"", "expected an image, found an empty file"),
    "text.jpg": (b"no picture, only words", "found a file that starts with b'no picture, '"),
    "truncated.jpg": (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:700], "broken image"),
    "truncated.png": (encoded(Image.effect_noise((64, 64), 90), "PNG")[:500], "broken image"),
    "cut.gif": (b"GIF89a\x05", "found a file|broken image"),
    "bomb.png": (bomb(), "expected at most 178,956,970 pixels, found more"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_get_one_clear_line(tmp_path, name):
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=message) as info:
        open_image(tmp_path / name)
    assert str(info.value).startswith(str(tmp_path / name)) and "\n" not in str(info.value)
    with pytest.raises(ImageError):
        open_image(content, "bytes")


def test_missing_folder_and_forbidden_files(tmp_path, monkeypatch):
    with pytest.raises(ImageError, match="absent.jpg: no such file"):
        open_image(tmp_path / "absent.jpg")
    with pytest.raises(ImageError, match="expected a file, found a folder"):
        open_image(tmp_path)

    def forbidden(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Image, "open", forbidden)
    with pytest.raises(ImageError, match="secret.jpg: no permission to read it"):
        open_image(tmp_path / "secret.jpg")


def test_one_pixel_and_extreme_shapes():
    for size in ((1, 1), (1, 300), (300, 1)):
        for preprocessing in (HUB, AUTHORS, Preprocessing(size=(32, 32), resize="shortest")):
            batch = preprocessing(Image.new("RGB", size, (255, 255, 255)))
            assert batch.shape[0] == 1 and np.isfinite(batch).all()


def test_a_shape_too_extreme_to_be_resized_is_named():
    with pytest.raises(ImageError, match=r"line: expected a less extreme shape than 1x60000: with a short side of 256"):
        AUTHORS.prepare(Image.new("RGB", (1, 60000)), "line")


def test_transparent_colour_of_an_rgb_png():
    image = Image.new("RGB", (4, 4), (9, 8, 7))
    assert open_image(encoded(image, "PNG", transparency=(9, 8, 7))).getpixel((0, 0)) == (255, 255, 255)


def test_floats_that_overshoot_one():
    assert open_image(np.full((4, 4, 3), 1.02)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(np.full((4, 4, 3), 200.0)).getpixel((0, 0)) == (200, 200, 200)


def test_lazily_read_pictures_and_odd_tensors(tmp_path):
    content = encoded(Image.effect_noise((64, 64), 90), "JPEG")
    (tmp_path / "cut.jpg").write_bytes(content[:700])
    with pytest.raises(ImageError, match="lazy: broken image"):
        open_image(Image.open(tmp_path / "cut.jpg"), "lazy")
    assert open_image(torch.ones(3, 5, 7, dtype=torch.bfloat16)).getpixel((0, 0)) == (255, 255, 255)


def test_a_list_makes_a_batch():
    images = [Image.new("RGB", (50, 40)), np.zeros((33, 20, 3), np.uint8)]
    batch = HUB(images)
    assert batch.shape == (2, 3, 224, 224) and batch.dtype == np.float32
    assert np.array_equal(batch[0], HUB(images[0])[0])


# Normalisation folded into the first convolution


@settings(max_examples=10, deadline=None)
@given(height=st.integers(32, 70), width=st.integers(32, 70), weighting=st.sampled_from(["uniform", "l2"]))
def test_folded_normalisation_is_exact_up_to_the_border(height, width, weighting):
    model = tiny(global_query_weighting=weighting)
    folded = fold_normalization(model, IMAGENET_MEAN, IMAGENET_STD)
    pixels = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = model((pixels / 255 - mean) / std, output_hidden_states=True)
        found = folded(pixels, output_hidden_states=True)
    assert relative(found.hidden_states[0], expected.hidden_states[0]) < 1e-5
    assert relative(found.logits, expected.logits) < 1e-5


def test_a_folded_model_classifies_as_before():
    model = tiny()
    model.preprocessing = Preprocessing(size=(64, 64))
    folded = fold_normalization(model, IMAGENET_MEAN, IMAGENET_STD)
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    found, expected = (next(classify(image, net)).predictions for net in (folded, model))
    assert [p.label for p in found] == [p.label for p in expected]
    assert found[0].probability == pytest.approx(expected[0].probability, rel=1e-4)


def test_folding_leaves_the_model_alone_and_refuses_twice():
    model = tiny()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    folded = fold_normalization(model, IMAGENET_MEAN, IMAGENET_STD)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="folded normalisation"):
        fold_normalization(folded, IMAGENET_MEAN, IMAGENET_STD)
    with pytest.raises(ValueError, match="expected 3 means"):
        fold_normalization(model, (0.5,), (0.5,))


@pytest.mark.parametrize("options", [{}, {"format": "MPO", "save_all": True}, {"progressive": True}])
@pytest.mark.parametrize(("short_side", "expected"), [(None, 480), (241, 480), (240, 240), (100, 120), (7, 60)])
def test_large_jpeg_files_are_decoded_smaller_where_that_is_enough(options, short_side, expected):
    values = np.linspace(0, 255, 480 * 640 * 3).reshape(480, 640, 3).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    file = io.BytesIO()
    Image.fromarray(values).save(file, **{"format": "JPEG", "exif": exif} | options)
    image = open_image(file.getvalue(), short_side=short_side)
    assert image.size == (expected, expected * 4 // 3)
    whole = open_image(file.getvalue()).resize(image.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(image, float) - np.asarray(whole)).mean() < 2


@pytest.mark.parametrize("options", [{"format": "PNG"}, {"format": "TIFF", "compression": "jpeg"}, {"format": "WEBP"}])
def test_other_files_keep_their_size(options):
    file = io.BytesIO()
    Image.new("RGB", (640, 480), "teal").save(file, **options)
    assert open_image(file, short_side=10).size == (640, 480)
