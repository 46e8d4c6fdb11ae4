"""Checkpoints that are read and fused in NumPy for the engine `native`: as torch would have it, or not at
all."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from conftest import TINY, randomize, tiny
from swiftformer import (
    SwiftFormerBackbone,
    SwiftFormerConfig,
    SwiftFormerForSemanticSegmentation,
    load,
    processors,
    save,
)
from swiftformer.deploy import fuse
from swiftformer.engines import EngineError, open_engine
from swiftformer.engines.checkpoint import read_fused
from swiftformer.export.native import network_of
from swiftformer.image_processing import Preprocessing
from swiftformer.locate import CheckpointError, locate

PICTURE = "examples/images/cat.jpg"


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_layers_are_those_that_torch_fuses(tmp_path, data):
    fields = {
        "global_query_weighting": data.draw(st.sampled_from(["uniform", "l2"])),
        "normalize_query_key": data.draw(st.booleans()),
        "distillation": data.draw(st.booleans()),
        "use_layer_scale": data.draw(st.booleans()),
        "mlp_ratio": data.draw(st.sampled_from([2, 3.5, 4])),
        "batch_norm_eps": data.draw(st.sampled_from([1e-5, 1e-2])),
        "num_labels": data.draw(st.integers(2, 12)),
        **data.draw(st.sampled_from([{}, {"depths": [1, 2], "embed_dims": [8, 24], "downsamples": [True, True]}])),
    }
    model = tiny(**fields, id2label={i: f"kind {i}" for i in range(fields["num_labels"])})
    if data.draw(st.booleans()):
        model.config.fpn_channels, model.config.segmentation_channels = data.draw(st.sampled_from([(8, 16), (16, 16)]))
        model = randomize(SwiftFormerForSemanticSegmentation(model.config))
    model.preprocessing = Preprocessing(size=(64, 64), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    path = save(model, tmp_path / "model", dtype=data.draw(st.sampled_from([torch.float32, torch.float16])))
    found = read_fused(locate(path), data.draw(st.sampled_from([None, model.config.form])))
    assert found is not None and found.labels == tuple(f"kind {i}" for i in range(fields["num_labels"]))
    assert found.preprocessing == model.preprocessing
    layers, tensors = found.layers, found.tensors
    expected_layers, expected = network_of(fuse(load(path)))
    assert [layer | {"pooled_scale": 0} for layer in layers] == [x | {"pooled_scale": 0} for x in expected_layers]
    assert tensors.keys() == expected.keys()
    for name, array in tensors.items():
        assert array.dtype == np.float32 and array.flags.c_contiguous
        np.testing.assert_allclose(array, expected[name], rtol=1e-6, atol=1e-12, err_msg=name)


def test_what_transformers_wrote(tmp_path):
    """The March 2023 form, and a config.json of its own."""
    from transformers import SwiftFormerConfig as StockConfig
    from transformers import SwiftFormerForImageClassification as Stock

    Stock(StockConfig(**TINY, num_labels=7)).save_pretrained(tmp_path)
    assert read_fused(locate(tmp_path), None) is None  # without a preprocessor_config.json, which `load` tells
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(Preprocessing().to_dict()))
    found = read_fused(locate(tmp_path), "uniform")
    assert found is not None and len(found.labels) == 7
    layers, tensors = found.layers, found.tensors
    expected_layers, expected = network_of(fuse(load(tmp_path)))
    assert layers == expected_layers
    assert all(np.allclose(tensors[name], expected[name], rtol=1e-6, atol=1e-12) for name in expected)


def test_a_run_folder(tmp_path):
    save(tiny(), tmp_path / "run" / "best")
    found = read_fused(locate(tmp_path / "run"), None)
    assert found is not None and len(found.labels) == 10


def edit(path, **fields):
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({k: v for k, v in (config | fields).items() if v is not None}))


def change(path, what):
    tensors = load_file(path / "model.safetensors")
    what(tensors)
    save_file(tensors, path / "model.safetensors")


def rename(tensors):
    tensors["other"] = tensors.pop("head.weight")


def transpose(tensors):
    name = "swiftformer.encoder.network.0.blocks.1.attn.w_g"
    tensors[name] = tensors[name].T.contiguous()


def counter(tensors):
    tensors["swiftformer.encoder.network.0.blocks.7.norm.num_batches_tracked"] = torch.tensor(0)


def wide(tensors):
    tensors["head.weight"] = tensors["head.weight"].double()


def headless(tensors):
    for name in ("head.weight", "head.bias", "dist_head.weight", "dist_head.bias"):
        tensors[name] = tensors[name][:0].clone()


def average(path, mean):
    file = path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": mean}))


CHANGES = {
    "an unknown form": lambda path: edit(path, global_query_weighting="L2"),
    "an unknown switch": lambda path: edit(path, normalize_query_key="no"),
    "a word for a number": lambda path: edit(path, batch_norm_eps="1e-5"),
    "a truth for a number": lambda path: edit(path, batch_norm_eps=True),
    "a word for a truth": lambda path: edit(path, use_layer_scale="false"),
    "a number for a truth": lambda path: edit(path, distillation=1),
    "a word for a list": lambda path: edit(path, downsamples="none"),
    "widths that are not whole": lambda path: edit(path, embed_dims=[16.0, 24.0, 32.0, 48.0]),
    "an endless width": lambda path: edit(path, mlp_ratio=float("inf")),
    "no classes": lambda path: (edit(path, id2label={}), change(path, headless)),
    "a stray counter": lambda path: change(path, counter),
    "float64": lambda path: change(path, wide),
    "no mean": lambda path: average(path, [None] * 3),
    "words for a mean": lambda path: average(path, ["0.5"] * 3),
    "activation": lambda path: edit(path, hidden_act="relu"),
    "channels": lambda path: edit(path, num_channels=1),
    "stride": lambda path: edit(path, down_stride=1),
    "no downsampling": lambda path: edit(path, downsamples=[False] * 4, embed_dims=[16] * 4),
    "depths": lambda path: edit(path, depths=[2, 1, 2, 2]),
    "widths": lambda path: edit(path, embed_dims=[16, 24, 32, 40]),
    "no widths": lambda path: edit(path, embed_dims=None),
    "labels": lambda path: edit(path, id2label={"0": "a", "1": "b"}),
    "a missing tensor": lambda path: change(path, lambda tensors: tensors.pop("norm.bias")),
    "another tensor": lambda path: change(path, lambda tensors: tensors.update(more=torch.ones(1))),
    "a name": lambda path: change(path, rename),
    "a shape": lambda path: change(path, transpose),
    "no second head": lambda path: change(path, lambda tensors: tensors.pop("dist_head.weight")),
    "bfloat16": lambda path: change(path, lambda tensors: tensors.update(head=torch.ones(1, dtype=torch.bfloat16))),
    "no safetensors": lambda path: (path / "model.safetensors").write_bytes(b"broken"),
    "no preprocessing": lambda path: (path / "preprocessor_config.json").unlink(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_others_are_left_to_torch(tmp_path, name):
    path = save(tiny(), tmp_path / "model")
    assert read_fused(locate(path), None) is not None
    CHANGES[name](path)
    assert read_fused(locate(path), None) is None


def test_backbones_and_files_are_left_to_torch(tmp_path):
    assert read_fused(locate(save(SwiftFormerBackbone(SwiftFormerConfig(**TINY)), tmp_path / "a")), None) is None
    assert read_fused(locate(save(tiny(), tmp_path / "a.pth", format="authors")), None) is None
    assert read_fused(locate(save(tiny(), tmp_path / "b.safetensors", format="authors")), None) is None


def test_segmentation_models_have_two_classes(tmp_path):
    path = save(
        SwiftFormerForSemanticSegmentation(tiny(num_labels=2, id2label={0: "a", 1: "b"}).config), tmp_path / "model"
    )
    assert read_fused(locate(path), None) is not None

    def narrow(tensors):
        for name in ("decode_head.classifier.weight", "decode_head.classifier.bias"):
            tensors[name] = tensors[name][:1].clone()

    change(path, narrow)
    edit(path, id2label={"0": "a"})
    assert read_fused(locate(path), None) is None


def test_a_hub_id_without_the_hubs_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="^someone/model: no such file or folder, and huggingface_hub is not"):
        locate("someone/model")


def test_another_form_than_asked_for_is_told_as_by_load(tmp_path):
    path, message = save(tiny(), tmp_path / "model"), "model: its form is 'uniform', but form='l2' was asked for$"
    for read in (lambda: read_fused(locate(path), "l2"), lambda: load(path, form="l2")):
        with pytest.raises(CheckpointError, match=message):
            read()
    assert read_fused(locate(path), "L2") is None


def test_without_torch_the_refusal_is_told(tmp_path, monkeypatch):
    pytest.importorskip("swiftformer_native")
    path = save(tiny(), tmp_path / "model")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(EngineError, match="^precision: expected one of fp32, bf16, int8 for native, found 'fp16'$"):
        open_engine(path, precision="fp16")
    edit(path, hidden_act="relu")
    with pytest.raises(EngineError, match="this checkpoint needs torch: pip install swiftformer$"):
        open_engine(path)


def test_one_head_of_a_model_with_two_is_an_error(tmp_path):
    """Whatever reads it."""
    path = save(tiny(distillation=False), tmp_path / "model")
    edit(path, distillation=True)
    assert read_fused(locate(path), None) is None
    with pytest.raises(CheckpointError, match="2 keys missing"):
        load(path)


def without_torch(*arguments):
    script = "import sys; sys.modules['torch'] = None\nfrom swiftformer.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)[0], done.stderr


def test_classifying_and_segmenting_start_no_torch(tmp_path):
    pytest.importorskip("swiftformer_native")
    result, told = without_torch("classify", PICTURE, "--json", "--top-k", "1")
    assert result["predictions"][0]["label"] == "cat" and "form l2, 10 classes" in told
    model, output = "models/swiftformer-xs-camvid", tmp_path / "seen"
    result, told = without_torch("segment", PICTURE, "--model", model, "--output", output, "--json")
    assert result["classes"] and "form l2, 11 classes" in told and any(output.iterdir())


def test_where_there_may_be_a_gpu_torch_is_asked(tmp_path, monkeypatch):
    pytest.importorskip("swiftformer_native")
    path = save(tiny(), tmp_path / "model")
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(asked.append(1)))
    monkeypatch.setattr("swiftformer.engines.may_have_gpu", lambda: False)
    assert open_engine(path).name.startswith("native") and not asked
    monkeypatch.setattr("swiftformer.engines.may_have_gpu", lambda: True)
    assert open_engine(path).name.startswith("native") and asked


@pytest.mark.parametrize(
    ("system", "driver", "expected"), [("darwin", True, False), ("win32", True, True), ("win32", False, False)]
)
def test_other_systems(monkeypatch, system, driver, expected):
    monkeypatch.setattr(processors.sys, "platform", system)
    monkeypatch.setattr(processors.os.path, "exists", lambda path: driver and path.endswith("nvcuda.dll"))
    assert processors.may_have_gpu() is expected


def test_threads_and_precision_reach_the_engine(tmp_path):
    pytest.importorskip("swiftformer_native")
    path = save(tiny(), tmp_path / "model")
    assert open_engine(path, "native", precision="int8", isa="plain").name == "native int8 plain"
    with pytest.raises(EngineError, match="precision: expected one of fp32, bf16, int8 for native, found 'fp16'"):
        open_engine(path, "native", precision="fp16")
