import argparse
import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import TINY, randomize, shared, tiny
from swiftformer import (
    CheckpointError,
    Preprocessing,
    SwiftFormerBackbone,
    SwiftFormerConfig,
    fold_normalization,
    load,
    save,
)
from swiftformer.convert import convert_state_dict
from swiftformer.image_processing import AUTHORS

X = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(a(X).logits, b(X).logits)


def write_pickle(path: Path, model: torch.nn.Module, **extra: object) -> Path:
    torch.save({"model": convert_state_dict(model.state_dict(), "transformers", "authors"), **extra}, path)
    return path


@pytest.mark.parametrize("form", ["uniform", "l2", "uniform-unnormalized"])
def test_every_form_goes_through_every_format(tmp_path, form):
    weighting, _, unnormalized = form.partition("-")
    model = tiny(global_query_weighting=weighting, normalize_query_key=not unnormalized)
    folder = load(save(model, tmp_path / "folder"))
    assert folder.config.form == form and same(folder, model)
    for name in ("authors.pth", "authors.safetensors"):
        authors = load(save(model, tmp_path / name, format="authors"))
        assert authors.config.form == form and same(authors, model)
    if form == "l2":
        for name in ("timm.safetensors", "timm.pth"):
            assert same(load(save(model, tmp_path / name, format="timm")), model)
    else:
        with pytest.raises(
            ValueError, match=f"timm computes with .*form l2, two heads and layer scales; found form {form}"
        ):
            save(model, tmp_path / "timm.safetensors", format="timm")
        assert not (tmp_path / "timm.safetensors").exists()


def test_authors_files_ask_for_the_form(tmp_path):
    path = write_pickle(tmp_path / "model.pth", tiny())
    with pytest.raises(CheckpointError, match="'uniform'.*March 2023.*'l2'.*July 2023.*'uniform-unnormalized'"):
        load(path)
    with pytest.raises(ValueError, match="form must be one of uniform, l2, .*, found 'softmax'"):
        load(path, form="softmax")


def test_a_form_that_the_file_contradicts_is_refused(tmp_path):
    save(tiny(global_query_weighting="l2"), tmp_path / "model")
    with pytest.raises(CheckpointError, match="its form is 'l2', but form='uniform'"):
        load(tmp_path / "model", form="uniform")


def test_authors_training_checkpoint_with_namespace_and_averaged_weights(tmp_path):
    model, averaged = tiny(), randomize(tiny(), seed=5)
    path = write_pickle(
        tmp_path / "checkpoint.pth",
        model,
        model_ema=convert_state_dict(averaged.state_dict(), "transformers", "authors"),
        args=argparse.Namespace(model="SwiftFormer_XS", lr=1e-3),
        epoch=299,
        scaler={"scale": 65536.0},
        optimizer={"state": {}, "param_groups": []},
    )
    assert same(load(path, form="uniform"), model)
    assert same(load(path, form="uniform", ema=True), averaged)
    with pytest.raises(CheckpointError, match=r"expected averaged weights \(model_ema, .*\), found model"):
        load(write_pickle(tmp_path / "plain.pth", model), form="uniform", ema=True)


def test_averaged_weights_of_this_packages_runs(tmp_path):
    model, averaged = tiny(), randomize(tiny(), seed=5)
    torch.save({"model": model.state_dict(), "ema": averaged.state_dict()}, tmp_path / "state.pt")
    assert same(load(tmp_path / "state.pt", form="uniform", ema=True), averaged)


@pytest.mark.parametrize("format_", ["authors", "timm"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_preprocessing_and_labels_travel_in_every_format(tmp_path, format_, suffix):
    model = tiny(global_query_weighting="l2", id2label={i: f"kind {i}" for i in range(10)})
    model.preprocessing = Preprocessing(size=(64, 64), resize="shortest", resize_to=64)
    again = load(save(model, tmp_path / f"model{suffix}", format=format_))
    assert again.preprocessing == model.preprocessing
    assert again.config.id2label == model.config.id2label


@pytest.mark.parametrize("format_", ["authors", "timm"])
@pytest.mark.parametrize("fields", [{"hidden_act": "relu"}, {"batch_norm_eps": 1e-3}, {"down_stride": 1}])
def test_a_format_that_would_change_the_predictions_is_refused(tmp_path, format_, fields):
    model = tiny(global_query_weighting="l2", **fields)
    with pytest.raises(ValueError, match=f"{format_} computes with .*; found {next(iter(fields))}"):
        save(model, tmp_path / "model.pth", format=format_)
    assert same(load(save(model, tmp_path / "model")), model)


def test_the_form_that_was_never_released(tmp_path):
    model = tiny(global_query_weighting="l2", normalize_query_key=False)
    assert same(load(save(model, tmp_path / "model")), model)


@pytest.mark.parametrize(
    "fields",
    [
        {"global_query_weighting": "softmax"},
        {"embed_dims": None},
        {"depths": "x", "stage_depths": None},
        {"id2label": ["a", "b"]},
        {"mlp_ratio": "4"},
        {"hidden_act": 3},
    ],
)
def test_broken_configurations_get_one_line(tmp_path, fields):
    save(tiny(), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text()) | fields
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=".") as info:
        load(tmp_path / "model")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize("name", ["num_classes", "drop_path", "global_query_weighting", "depths"])
def test_overrides_that_are_no_open_field_are_refused(tmp_path, name):
    save(tiny(), tmp_path / "model")
    with pytest.raises(ValueError, match=f"fields of SwiftFormerConfig that loading leaves open, found {name}"):
        load(tmp_path / "model", **{name: 1})
    assert load(tmp_path / "model", drop_path_rate=0.2).config.drop_path_rate == 0.2


def test_a_file_beside_another_one_is_the_one_that_is_read(tmp_path):
    save(tiny(), tmp_path / "model")
    other = randomize(tiny(), seed=3)
    torch.save(other.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    assert same(load(tmp_path / "model" / "pytorch_model.bin"), other)
    assert same(load(tmp_path / "model"), tiny())


def test_folded_models_are_not_saved(tmp_path):
    folded = fold_normalization(tiny(), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="folded normalisation"):
        save(folded, tmp_path / "folded")


def test_new_labels_forget_the_old_problem_type(tmp_path):
    model = tiny(num_labels=4, problem_type="multi_label_classification")
    save(model, tmp_path / "model")
    assert load(tmp_path / "model").config.problem_type == "multi_label_classification"
    assert load(tmp_path / "model", labels=["a", "b"]).config.problem_type is None


def test_wrapped_names(tmp_path):
    model = tiny()
    state = {f"module._orig_mod.{k}": v for k, v in model.state_dict().items()}
    torch.save(state, tmp_path / "ddp.pt")
    assert same(load(tmp_path / "ddp.pt", form="uniform"), model)


def test_load_says_what_it_found(tmp_path, caplog):
    path = write_pickle(tmp_path / "model.pth", tiny())
    with caplog.at_level("INFO", logger="swiftformer"):
        model = load(path, form="l2")
    assert f"loaded {path}: authors names, form l2, 10 classes" in caplog.text
    assert model.load_report.missing == [] and model.preprocessing == AUTHORS and not model.training


def test_missing_and_unexpected_keys_are_errors_unless_allowed(tmp_path):
    state = tiny().state_dict()
    del state["norm.bias"]
    torch.save(state | {"extra.weight": torch.ones(1)}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"1 keys missing \['norm.bias'\], 1 unexpected \['extra.weight'\]"):
        load(tmp_path / "odd.pt", form="uniform")
    report = load(tmp_path / "odd.pt", form="uniform", strict=False).load_report
    assert report.missing == ["norm.bias"] and report.unexpected == ["extra.weight"]


def test_a_tensor_of_another_shape(tmp_path):
    state = tiny().state_dict()
    state["norm.bias"] = torch.ones(7)
    torch.save(state, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"norm.bias expected shape \(48,\), found \(7,\)"):
        load(tmp_path / "odd.pt", form="uniform")


def test_names_that_begin_with_another_number(tmp_path):
    """They are names in order, for all who ask."""
    save(tiny(), tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    fields = json.loads(path.read_text())
    fields["id2label"] = {str(i): f"kind {i}" for i in range(1, 11)}
    path.write_text(json.dumps(fields))
    assert load(tmp_path / "model").config.id2label == {i: f"kind {i + 1}" for i in range(10)}


def test_names_for_classes_that_had_none_keep_the_heads(tmp_path):
    model = tiny()
    save(model, tmp_path / "model")
    names = [f"kind {i}" for i in range(10)]
    named = load(tmp_path / "model", labels=names)
    assert not named.load_report.head_replaced and list(named.config.id2label.values()) == names
    assert torch.equal(named.head.weight, model.head.weight)
    assert load(tmp_path / "model", labels=names[:3]).load_report.head_replaced


def test_timm_has_no_networks_without_layer_scales_in_encoders(tmp_path):
    model = tiny(global_query_weighting="l2", use_layer_scale=False)
    with pytest.raises(ValueError, match="timm computes with .* layer scales; found no layer scales in encoders"):
        save(model, tmp_path / "model.safetensors", format="timm")


def test_head_is_replaced_where_the_classes_differ(tmp_path):
    names = {i: f"kind {i}" for i in range(10)}
    model = tiny(id2label=names, label2id={v: k for k, v in names.items()})
    save(model, tmp_path / "model")
    kept = load(tmp_path / "model")
    assert kept.config.id2label == names and not kept.load_report.head_replaced
    fewer = load(tmp_path / "model", labels=["cat", "dog"])
    assert fewer.load_report.head_replaced and fewer.config.label2id == {"cat": 0, "dog": 1}
    assert fewer(X).logits.shape == (1, 2)
    for key, value in model.swiftformer.state_dict().items():
        assert torch.equal(fewer.swiftformer.state_dict()[key], value)
    assert load(tmp_path / "model", num_labels=10).config.id2label == names
    assert load(tmp_path / "model", num_labels=4).config.id2label[3] == "LABEL_3"
    with pytest.raises(ValueError, match="expected 3 labels, found 1"):
        load(tmp_path / "model", num_labels=3, labels=["a"])


def test_what_is_missing_beside_the_weights_is_told(tmp_path, caplog):
    caplog.set_level("INFO", "swiftformer")
    save(tiny(id2label={i: f"kind {i}" for i in range(10)}), tmp_path / "model")
    load(tmp_path / "model")
    assert not any("expected names" in message or "no preprocessor" in message for message in caplog.messages)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config["id2label"]["3"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    load(tmp_path / "model")
    assert "expected names of 10 classes, found 9: the classes get numbers instead" in caplog.messages
    assert any(
        "no preprocessor_config.json: pictures are prepared as for MBZUAI" in message for message in caplog.messages
    )


def test_same_count_but_other_names_replaces_the_head(tmp_path):
    save(tiny(id2label={i: f"kind {i}" for i in range(10)}), tmp_path / "model")
    other = load(tmp_path / "model", labels=[f"other {i}" for i in range(10)])
    assert other.load_report.head_replaced and other.config.id2label[2] == "other 2"


def test_classifier_as_backbone_and_backbone_as_classifier(tmp_path):
    model = tiny()
    save(model, tmp_path / "model")
    backbone = load(tmp_path / "model", task="backbone", out_indices=[2, 4])
    assert isinstance(backbone, SwiftFormerBackbone) and len(backbone(X).feature_maps) == 2
    assert any(key.startswith("head.") for key in backbone.load_report.unexpected)
    save(load(tmp_path / "model", task="backbone"), tmp_path / "backbone.pth", format="authors")
    dense = load(tmp_path / "backbone.pth", form="uniform")
    assert isinstance(dense, SwiftFormerBackbone) and dense.load_report.missing == []
    with pytest.raises(CheckpointError, match="expected a classification head, found none; pass num_labels"):
        load(tmp_path / "backbone.pth", form="uniform", task="classification")
    assert load(tmp_path / "backbone.pth", form="uniform", task="classification", num_labels=3).config.num_labels == 3


def test_config_and_weights_that_disagree(tmp_path):
    save(tiny(), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"depths": [1, 1, 1, 1]}))
    with pytest.raises(
        CheckpointError, match=r"config.json says depths \[1, 1, 1, 1\], the weights have \[2, 1, 2, 1\]"
    ):
        load(tmp_path / "model")


def test_half_precision_files(tmp_path):
    model = tiny(global_query_weighting="l2")
    save(model, tmp_path / "half", dtype=torch.float16)
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert stored["head.weight"].dtype == torch.float16
    loaded = load(tmp_path / "half")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded.head.weight, model.head.weight.half().float())
    assert model.dtype == torch.float32


def test_preprocessing_travels_with_the_checkpoint(tmp_path):
    model = tiny()
    model.preprocessing = Preprocessing(size=(48, 64), resize="shortest", resize_to=70, interpolation="lanczos")
    assert load(save(model, tmp_path / "model")).preprocessing == model.preprocessing


def test_saving_is_atomic(tmp_path, monkeypatch):
    model = tiny()
    save(model, tmp_path / "model")
    before = {f.name: f.read_bytes() for f in (tmp_path / "model").iterdir()}

    def full(*args, **kwargs):
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    for target in (tmp_path / "model", tmp_path / "new"):
        with pytest.raises(OSError, match="No space left"):
            save(randomize(tiny(), seed=9), target)
    assert {f.name: f.read_bytes() for f in (tmp_path / "model").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_saving_onto_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(NotADirectoryError, match="expected a folder, found a file"):
        save(tiny(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_saved_files_are_readable_by_others(tmp_path):
    save(tiny(), tmp_path / "model")
    for path in (tmp_path / "model").iterdir():
        assert path.stat().st_mode & 0o044 == 0o044, path


def test_ordered_dicts_and_stray_entries(tmp_path):
    state = OrderedDict(tiny().state_dict())
    torch.save({"state_dict": state, "note": "hello"}, tmp_path / "model.ckpt")
    assert same(load(tmp_path / "model.ckpt", form="uniform"), tiny())


def test_loading_needs_no_network(tmp_path):
    """A local folder loads in a process that cannot reach anything."""
    save(tiny(), tmp_path / "model")
    code = f"""
        import socket
        def refuse(*args, **kwargs): raise AssertionError("network")
        socket.socket.connect = refuse
        import swiftformer
        swiftformer.load({str(tmp_path / "model")!r})
    """
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120, env=environment)


def test_fixture_files_of_the_authors_hold_a_namespace():
    path = shared("fixtures", "original", "march2023_tiny_distilled.pth")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    assert load(path, form="uniform", ema=True).config.num_labels == 10


def test_dense_backbone_configuration():
    model = SwiftFormerBackbone(SwiftFormerConfig(**TINY, out_indices=[1, 2, 3, 4]))
    assert list(model.hidden_states_norms) == ["stage1", "stage2", "stage3", "stage4"]
