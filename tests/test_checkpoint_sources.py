"""Where checkpoints come from: hub ids, unknown references, and files that are damaged, foreign or hostile."""

import json
import os
import pickle
import random
from pathlib import Path

import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from conftest import TINY, randomize, relative, tiny
from swiftformer import CheckpointError, Preprocessing, classify, load, save
from swiftformer.image_processing import TIMM

X = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def hub(tmp_path: Path, repo: str, files: dict[str, bytes]) -> Path:
    """A local copy of the hub's cache with one repository in it."""
    folder = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
    commit = "0123456789abcdef0123456789abcdef01234567"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for name, content in files.items():
        (snapshot / name).write_bytes(content)
    return tmp_path / "hub"


@pytest.fixture
def local_hub(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr("swiftformer.locate._snapshots", {})

    def make(repo: str, files: dict[str, bytes]) -> None:
        cache = hub(tmp_path, repo, files)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(cache), raising=False)

    return make


def test_a_form_that_is_null_is_told(tmp_path):
    folder = save(tiny(), tmp_path / "model")
    fields = json.loads((folder / "config.json").read_text()) | {"global_query_weighting": None}
    (folder / "config.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="None"):
        load(folder)


def test_transformers_hub_id_with_only_a_bin_file(local_hub, tmp_path):
    stock_config = transformers.SwiftFormerConfig(**TINY, num_labels=10)
    stock = randomize(transformers.SwiftFormerForImageClassification(stock_config)).eval()
    torch.save(stock.state_dict(), tmp_path / "pytorch_model.bin")
    fields = stock_config.to_dict()
    for name in ("image_size", "drop_mlp_rate", "drop_conv_encoder_rate"):  # as on the hub
        fields.pop(name)
    processor = {"do_normalize": True, "do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "resample": 3,
                 "image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224},
                 "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # fmt: skip
    local_hub("MBZUAI/swiftformer-s", {
        "config.json": json.dumps(fields).encode(),
        "pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes(),
        "preprocessor_config.json": json.dumps(processor).encode(),
    })  # fmt: skip
    model = load("MBZUAI/swiftformer-s")
    with torch.no_grad():
        assert model.config.form == "uniform" and relative(model(X).logits, stock(X).logits) < 1e-5
    assert model.preprocessing == Preprocessing(interpolation="bicubic")


def test_the_hub_is_asked_once_by_a_process(local_hub, tmp_path, monkeypatch):
    import huggingface_hub

    folder = save(tiny(), tmp_path / "model")
    names = ("config.json", "model.safetensors", "preprocessor_config.json")
    local_hub("someone/tiny", {name: (folder / name).read_bytes() for name in names})
    asked, download = [], huggingface_hub.snapshot_download

    def counted(repo, **options):
        asked.append(repo)
        return download(repo, **options)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", counted)
    image = Image.new("RGB", (40, 40))
    first, second = (list(classify(image, "someone/tiny")) for _ in range(2))
    assert asked == ["someone/tiny"] and first == second
    (tmp_path / "hub").rename(tmp_path / "elsewhere")  # as a person does who cleans the cache
    with pytest.raises(CheckpointError, match="not to be had from the hub"):
        load("someone/tiny")
    assert len(asked) == 2


@pytest.mark.parametrize("name", ["swiftformer_xs", "swiftformer_xs.dist_in1k", "timm/swiftformer_xs.dist_in1k",
                                  "hf-hub:timm/swiftformer_xs.dist_in1k"])  # fmt: skip
def test_timm_hub_id(local_hub, tmp_path, name):
    peer = randomize(timm.create_model("swiftformer_xs", num_classes=1000)).eval()
    save_file(peer.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "swiftformer_xs", "num_classes": 1000, "pretrained_cfg": peer.pretrained_cfg}
    local_hub("timm/swiftformer_xs.dist_in1k", {
        "config.json": json.dumps(config, default=str).encode(),
        "model.safetensors": (tmp_path / "model.safetensors").read_bytes(),
    })  # fmt: skip
    model = load(name)
    with torch.no_grad():
        torch.testing.assert_close(model(X).logits, peer(X), rtol=1e-4, atol=1e-5)
    assert model.config.form == "l2" and model.preprocessing == TIMM
    assert model.config.id2label[0].startswith("tench")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nobody/nothing", "nobody/nothing: no such file or folder, and not to be had from the hub"),
        ("swiftformer-xxl", "swiftformer-xxl: expected a bundled name"),
        ("./absent", "./absent: no such file or folder"),
        ("absent.pth", "absent.pth: no such file or folder"),
        ("", "expected a bundled name"),
    ],
)
def test_unknown_references(reference, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=message) as info:
        load(reference)
    assert "\n" not in str(info.value)


class Hostile:
    def __reduce__(self):
        return os.system, (f"touch {Hostile.target}",)


def test_hostile_pickles_are_refused_and_never_run(tmp_path):
    Hostile.target = tmp_path / "executed"
    for i, content in enumerate([{"model": Hostile()}, {"model": tiny().state_dict(), "args": Hostile()}, Hostile()]):
        torch.save(content, tmp_path / f"{i}.pth")
        with pytest.raises(CheckpointError, match="refused, because it holds more than tensors"):
            load(tmp_path / f"{i}.pth", form="l2")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError):
        load(tmp_path / "plain.pth", form="l2")
    (tmp_path / "model").mkdir()
    save(tiny(), tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(Hostile(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="refused"):
        load(tmp_path / "model")
    assert not Hostile.target.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files(tmp_path, suffix):
    format_ = "timm" if suffix == ".safetensors" else "authors"
    whole = save(tiny(global_query_weighting="l2"), tmp_path / f"whole{suffix}", format=format_).read_bytes()
    damaged = {
        "empty": (b"", "empty file"),
        "truncated": (whole[: len(whole) // 2], "truncated|no safetensors"),
        "text": (b"this is no checkpoint, only words\n" * 9, "truncated|no safetensors|no PyTorch"),
        "html": (b"<!doctype html><html></html>", "truncated|no safetensors|no PyTorch"),
    }
    for name, (content, message) in damaged.items():
        path = tmp_path / f"{name}{suffix}"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as info:
            load(path, form="l2")
        assert str(path) in str(info.value) and "\n" not in str(info.value)


def test_damaged_files_of_the_older_pickle_format(tmp_path):
    path = tmp_path / "old.pth"
    torch.save(tiny().state_dict(), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    rng = random.Random(0)
    for _ in range(25):
        cut = bytearray(whole[: rng.randrange(1, len(whole))])
        cut[rng.randrange(len(cut))] ^= 255
        path.write_bytes(cut)
        with pytest.raises(CheckpointError) as info:
            load(path, form="uniform")
        assert "\n" not in str(info.value)


def test_foreign_files(tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pt")
    with pytest.raises(CheckpointError, match="expected the weights of a SwiftFormer, found weight, bias"):
        load(tmp_path / "linear.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="expected a state dict, found list"):
        load(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    with pytest.raises(CheckpointError, match="expected named tensors, found none"):
        load(tmp_path / "numbers.pt")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="expected model_type 'swiftformer', found 'bert'"):
        load(tmp_path / "bert")
    (tmp_path / "bert" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="expected JSON"):
        load(tmp_path / "bert")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(CheckpointError, match="expected config.json and model.safetensors or .*, found nothing"):
        load(tmp_path / "nothing")


def test_mismatched_config(tmp_path):
    save(tiny(), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"embed_dims": [16, 24, 32]}))
    with pytest.raises(CheckpointError, match=r"embed_dims \[16, 24, 32\]"):
        load(tmp_path / "model")
