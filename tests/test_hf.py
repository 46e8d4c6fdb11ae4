import copy
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassFieldValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from conftest import TINY, randomize, relative, tiny
from swiftformer import (
    SwiftFormerBackbone,
    SwiftFormerConfig,
    SwiftFormerForImageClassification,
    SwiftFormerForImageClassificationWithTeacher,
    SwiftFormerModel,
    register,
)
from swiftformer.checkpoints import load, save
from swiftformer.image_processing import Preprocessing
from swiftformer.variants import VARIANTS


def test_configuration_has_every_argument_and_default_of_transformers():
    ours, theirs = SwiftFormerConfig().to_dict(), transformers.SwiftFormerConfig().to_dict()
    for name, value in theirs.items():
        assert ours[name] == value, name


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_have_their_published_parameter_counts(variant):
    with torch.device("meta"):
        model = SwiftFormerForImageClassification.from_variant(variant)
    assert model.config.form == "l2"
    assert sum(p.numel() for p in model.parameters()) == VARIANTS[variant].parameters


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": [1, 2], "embed_dims": [8, 8, 8]}, "2 depths.*3 embed_dims"),
        ({"depths": [0, 1, 1, 1]}, "at least 1, found"),
        ({"embed_dims": [1, 8, 8, 8]}, "embed_dims"),
        ({"downsamples": [True]}, "3 steps between stages, found 1"),
        ({"hidden_act": "swoosh"}, "hidden_act 'swoosh'"),
        ({"global_query_weighting": "softmax"}, "'uniform'.*'l2'.*found 'softmax'"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\), found 1.0"),
    ],
)
def test_configurations_that_do_not_fit_together_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SwiftFormerConfig(**fields)


def test_unknown_variant():
    with pytest.raises(ValueError, match="'l2': expected one of xs, s, l1, l3"):
        SwiftFormerModel.from_variant("l2")


@settings(max_examples=15, deadline=None)
@given(height=st.integers(32, 120), width=st.integers(32, 120), channels=st.integers(1, 5), labels=st.integers(1, 12))
def test_any_size_and_channels(height, width, channels, labels):
    model = tiny(num_channels=channels, num_labels=labels)
    with torch.no_grad():
        output = model(torch.randn(2, channels, height, width), output_hidden_states=True)
    assert output.logits.shape == (2, labels) and torch.isfinite(output.logits).all()
    for stride, hidden in zip((4, 4, 8, 8, 16, 16, 32, 32), output.hidden_states, strict=True):
        assert hidden.shape[2:] == (-(-height // stride), -(-width // stride))


def test_wrong_input_shapes_get_one_clear_line():
    with pytest.raises(ValueError, match=r"\(batch, 3, height, width\), found \(1, 4, 32, 32\)"):
        tiny()(torch.randn(1, 4, 32, 32))
    with pytest.raises(ValueError, match="pixel_values"):
        tiny()(None)


def test_losses_are_transformers():
    x = torch.randn(3, 3, 32, 32)
    cases = [
        (1, torch.randn(3), lambda logits, y: F.mse_loss(logits.squeeze(), y)),
        (4, torch.tensor([0, 3, 2]), F.cross_entropy),
        (4, torch.randint(0, 2, (3, 4)).float(), F.binary_cross_entropy_with_logits),
    ]
    for labels, target, loss in cases:
        model = tiny(num_labels=labels)
        output = model(x, labels=target)
        torch.testing.assert_close(output.loss, loss(output.logits, target))
        as_tuple = model(x, labels=target, return_dict=False)
        assert torch.equal(as_tuple[0], output.loss) and torch.equal(as_tuple[1], output.logits) and len(as_tuple) == 2


def test_both_heads_logits():
    model = tiny()
    teacher = SwiftFormerForImageClassificationWithTeacher(model.config).eval()
    teacher.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    output = teacher(x)
    assert not torch.equal(output.cls_logits, output.distillation_logits)
    torch.testing.assert_close(output.logits, (output.cls_logits + output.distillation_logits) / 2)
    torch.testing.assert_close(output.logits, model(x).logits)
    assert type(model(x)) is transformers.modeling_outputs.ImageClassifierOutputWithNoAttention
    single = SwiftFormerForImageClassificationWithTeacher(SwiftFormerConfig(**TINY, distillation=False))
    output = single(x)
    assert output.distillation_logits is None and torch.equal(output.logits, output.cls_logits)


def test_reset_classifier():
    model = tiny()
    before = model.swiftformer.state_dict()
    model.reset_classifier(3, {0: "a", 1: "b", 2: "c"})
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 3)
    assert model.config.num_labels == 3 and model.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert all(torch.equal(v, before[k]) for k, v in model.swiftformer.state_dict().items())
    model.reset_classifier(0)
    assert model(torch.randn(1, 3, 32, 32)).logits.shape == (1, 48)
    with pytest.raises(ValueError, match="expected 2 class names, found 1"):
        model.reset_classifier(2, {0: "a"})
    one = tiny(num_labels=1)
    one(torch.randn(2, 3, 32, 32), labels=torch.randn(2))
    one.reset_classifier(3)
    assert one(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 2])).loss > 0


@pytest.mark.parametrize("fields", [{"mlp_ratio": "4"}, {"use_layer_scale": "no"}, {"num_channels": 3.5}])
def test_types_are_checked_as_stock_transformers_does(fields):
    with pytest.raises(StrictDataclassFieldValidationError):
        SwiftFormerConfig(**fields)


def test_hidden_act_is_honoured_everywhere():
    model = tiny(hidden_act="relu")
    blocks = sum(TINY["depths"])
    activations = [type(m).__name__ for m in model.swiftformer.encoder.modules() if "ReLU" in type(m).__name__]
    # one in each conv encoder and local representation, and one in each of the four MLPs
    assert len(activations) == blocks + 4
    assert not any("GELU" in type(m).__name__ for m in model.modules())


def test_drop_path_acts_where_the_authors_put_it():
    model = tiny(drop_path_rate=0.4)
    rates = {
        name.removeprefix("swiftformer.encoder."): m.drop_prob
        for name, m in model.named_modules()
        if type(m).__name__ == "DropPath"
    }
    # depths 2, 1, 2, 1: the last block of a stage is number 1, 2, 4, 5 of 0..5
    expected = {0: 0.4 * 1 / 5, 2: 0.4 * 2 / 5, 4: 0.4 * 4 / 5, 6: 0.4 * 5 / 5}
    assert rates == {f"network.{i}.blocks.{TINY['depths'][i // 2] - 1}.drop_path": r for i, r in expected.items()}
    x = torch.randn(64, 3, 32, 32)
    model.train()
    assert not torch.equal(model(x).logits, model(x).logits)
    model.eval()
    assert torch.equal(model(x).logits, model(x).logits)


def test_drop_path_keeps_the_mean():
    from swiftformer.model import DropPath

    x = DropPath(0.3).train()(torch.ones(20000, 1, 1, 1))
    assert x.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    assert abs(x.mean() - 1) < 0.02


@pytest.mark.parametrize("name", ["drop_mlp_rate", "drop_conv_encoder_rate"])
def test_dropout_options(name):
    x = torch.randn(2, 3, 64, 64)
    model = tiny(**{name: 0.5})
    assert torch.equal(model(x).logits, tiny()(x).logits)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.train()
        assert not torch.equal(model(x).logits, tiny()(x).logits)


def test_stages_without_downsampling():
    same = tiny(embed_dims=[16, 16, 32, 32], downsamples=[False, False, True, True])
    assert len(same.swiftformer.encoder.network) == 4 + 2  # none behind stage 1; a wider stage 3; one behind stage 3
    x = torch.randn(1, 3, 64, 64)
    assert same(x, output_hidden_states=True).hidden_states[1].shape[2:] == (16, 16)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(reentrant):
    x, y = torch.randn(2, 3, 64, 64), torch.tensor([0, 1])
    plain = tiny(global_query_weighting="l2").train()
    checkpointed = copy.deepcopy(plain)
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert checkpointed.is_gradient_checkpointing
    for model in (plain, checkpointed):
        model(x, labels=y).loss.backward()
    for (name, a), b in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_backbone_feature_maps():
    config = SwiftFormerConfig(**TINY, out_features=["stem", "stage2", "stage4"])
    backbone = randomize(SwiftFormerBackbone(config)).eval()
    assert backbone.channels == [16, 24, 48]
    x = torch.randn(1, 3, 64, 96)
    output = backbone(x)
    assert [tuple(m.shape[1:]) for m in output.feature_maps] == [(16, 16, 24), (24, 8, 12), (48, 2, 3)]
    hidden = backbone.swiftformer(x, output_hidden_states=True).hidden_states
    assert torch.equal(output.feature_maps[0], hidden[0])
    torch.testing.assert_close(output.feature_maps[1], backbone.hidden_states_norms["stage2"](hidden[3]))
    assert output.hidden_states is None and len(backbone(x, output_hidden_states=True).hidden_states) == 8
    with pytest.raises(ValueError, match="stage9"):
        SwiftFormerConfig(**TINY, out_features=["stage9"])


def test_backbone_inside_upernet_and_detr():
    register()
    config = SwiftFormerConfig(**TINY, out_features=["stage1", "stage2", "stage3", "stage4"])
    upernet = transformers.UperNetForSemanticSegmentation(
        transformers.UperNetConfig(
            backbone_config=config, hidden_size=16, auxiliary_in_channels=32, auxiliary_channels=8, num_labels=5
        )
    )
    assert isinstance(upernet.backbone, SwiftFormerBackbone)
    loss = upernet(torch.randn(2, 3, 64, 64), labels=torch.randint(0, 5, (2, 64, 64))).loss
    loss.backward()
    assert torch.isfinite(loss)
    detr = transformers.DetrForObjectDetection(
        transformers.DetrConfig(
            backbone_config=SwiftFormerConfig(**TINY, out_features=["stage4"]),
            use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=16, encoder_layers=1,
            decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16, encoder_attention_heads=2,
            decoder_attention_heads=2, num_queries=4, num_labels=3,
        )
    ).eval()  # fmt: skip
    output = detr(torch.randn(1, 3, 64, 64))
    assert output.logits.shape == (1, 4, 4)


def test_auto_classes_and_pipeline(tmp_path):
    register()
    register()
    from swiftformer import save

    save(tiny(id2label={i: f"class {i}" for i in range(10)}, global_query_weighting="l2"), tmp_path / "model")
    folder = str(tmp_path / "model")
    assert isinstance(transformers.AutoConfig.from_pretrained(folder), SwiftFormerConfig)
    assert isinstance(transformers.AutoModel.from_pretrained(folder), SwiftFormerModel)
    assert isinstance(
        transformers.AutoModelForImageClassification.from_pretrained(folder), SwiftFormerForImageClassification
    )
    backbone = transformers.AutoBackbone.from_config(SwiftFormerConfig(**TINY))
    assert isinstance(backbone, SwiftFormerBackbone)
    classifier = transformers.pipeline("image-classification", model=folder)
    from PIL import Image

    result = classifier(Image.new("RGB", (300, 200), "red"))
    assert len(result) == 5 and result[0]["label"].startswith("class ")


def test_from_pretrained_round_trip_and_head_replacement(tmp_path):
    model = tiny(global_query_weighting="l2")
    model.save_pretrained(tmp_path)
    again = SwiftFormerForImageClassification.from_pretrained(tmp_path)
    x = torch.randn(1, 3, 32, 32)
    assert again.config.form == "l2" and again.config.depths == TINY["depths"]
    torch.testing.assert_close(again(x).logits, model(x).logits)  # where memory lies decides about rounding
    base = SwiftFormerModel.from_pretrained(tmp_path)
    torch.testing.assert_close(base(x).last_hidden_state, model.swiftformer(x).last_hidden_state)
    other = SwiftFormerForImageClassification.from_pretrained(tmp_path, num_labels=3, ignore_mismatched_sizes=True)
    assert other(x).logits.shape == (1, 3)


@pytest.mark.parametrize(
    "fields",
    [
        {"global_query_weighting": "l2"},
        {"normalize_query_key": False},
        {"distillation": False},
        {"hidden_act": "relu"},
    ],
)
def test_stock_transformers_refuses_what_it_would_misread(tmp_path, fields):
    tiny(**fields).save_pretrained(tmp_path)
    for loader in (
        transformers.SwiftFormerConfig.from_pretrained,
        transformers.SwiftFormerForImageClassification.from_pretrained,
        transformers.SwiftFormerModel.from_pretrained,
    ):
        with pytest.raises(Exception, match="load them with the swiftformer package"):
            loader(tmp_path)


def test_stock_auto_classes_refuse_the_l2_form(tmp_path):
    """In a process of its own, where this package is not registered."""
    tiny(global_query_weighting="l2").save_pretrained(tmp_path)
    code = f"""
        import transformers
        try:
            transformers.AutoModelForImageClassification.from_pretrained({str(tmp_path)!r})
        except Exception as error:
            assert "swiftformer package" in str(error), error
        else:
            raise SystemExit("loaded")
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=120)


def test_stock_transformers_loads_the_uniform_form(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    stock = transformers.SwiftFormerForImageClassification.from_pretrained(tmp_path).eval()
    x = torch.randn(1, 3, 64, 64)
    assert relative(stock(x).logits, model(x).logits) < 1e-6


def test_configurations_keep_their_depths(tmp_path):
    config = SwiftFormerConfig.from_variant("xs")
    assert list(SwiftFormerConfig(**config.to_dict()).depths) == [3, 3, 6, 4]
    assert SwiftFormerConfig.from_dict(json.loads(config.to_json_string())).depths == [3, 3, 6, 4]
    config.to_json_file(tmp_path / "config.json")
    assert "swiftformer package" in json.loads((tmp_path / "config.json").read_text())["depths"]
    assert SwiftFormerConfig.from_json_file(tmp_path / "config.json").depths == [3, 3, 6, 4]
    assert "swiftformer package" not in repr(config)


@pytest.mark.parametrize("weighting", [pytest.param("uniform", marks=pytest.mark.exhaustive), "l2"])
def test_torch_compile_in_one_graph(weighting):
    model = tiny(global_query_weighting=weighting)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x).logits, model(x).logits)
    model.train()
    compiled(x, labels=torch.tensor([1, 2])).loss.backward()


@pytest.mark.parametrize("weighting", [pytest.param("uniform", marks=pytest.mark.exhaustive), "l2"])
def test_torch_export_with_dynamic_batch_height_and_width(weighting):
    model = tiny(global_query_weighting=weighting)
    # From 33 pixels: torch.export assumes of every convolution that its output is larger than 1x1.
    height, width = (torch.export.Dim(name, min=33) for name in ("height", "width"))
    dims = {0: torch.export.Dim("batch", min=1), 2: height, 3: width}
    program = torch.export.export(
        model, (torch.randn(2, 3, 64, 96),), dynamic_shapes={"pixel_values": dims}, strict=False
    ).module()
    for shape in ((1, 3, 224, 224), (3, 3, 65, 97), (2, 3, 33, 128)):
        x = torch.randn(*shape)
        with torch.no_grad():
            assert relative(program(x).logits, model(x).logits) < 1e-6


def test_distributed_data_parallel_with_the_uniform_form(tmp_path):
    """The dead w_g must not make DDP wait for a gradient that never comes."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = DistributedDataParallel(tiny().train())
        for _ in range(2):  # a parameter without a gradient is only missed in the second step
            model(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 1])).loss.backward()
    finally:
        dist.destroy_process_group()


def test_transformers_trainer(tmp_path):
    class Squares(torch.utils.data.Dataset):
        def __len__(self):
            return 16

        def __getitem__(self, i):
            pixels = torch.zeros(3, 32, 32)
            pixels[i % 2] = 1
            return {"pixel_values": pixels, "labels": i % 2}

    model = SwiftFormerForImageClassification(SwiftFormerConfig(**TINY, num_labels=2, global_query_weighting="l2"))
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), max_steps=60, per_device_train_batch_size=8, learning_rate=5e-3, use_cpu=True,
        report_to=[], save_strategy="steps", save_steps=30, eval_strategy="steps", eval_steps=30, disable_tqdm=True,
        load_best_model_at_end=True,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=Squares(),
        eval_dataset=Squares(),
        compute_metrics=lambda p: {"accuracy": float((np.argmax(p.predictions, axis=1) == p.label_ids).mean())},
    )
    trainer.train()
    assert trainer.evaluate()["eval_accuracy"] > 0.9
    trainer.train(resume_from_checkpoint=True)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_gpu_agrees_with_cpu(dtype):
    model, x = tiny(global_query_weighting="l2"), torch.randn(2, 3, 96, 64)
    expected = model(x).logits
    found = model.to("cuda", dtype)(x.to("cuda", dtype)).logits.float().cpu()
    # Convolutions of float32 are of TF32 there.
    assert relative(found, expected) < {torch.float32: 1e-2, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]


def test_trainer_reports_the_loss_of_the_batch_whatever_the_accumulation(tmp_path):
    """Were the loss taken for a share, it would grow with the number of accumulated batches."""
    from transformers import Trainer, TrainingArguments

    data = [{"pixel_values": torch.randn(3, 32, 32), "labels": i % 10} for i in range(16)]
    losses = []
    for steps in (1, 4):
        arguments = TrainingArguments(
            output_dir=str(tmp_path / str(steps)), per_device_train_batch_size=4, gradient_accumulation_steps=steps,
            max_steps=4 // steps, learning_rate=0.0, report_to="none", use_cpu=True, logging_steps=1,
        )  # fmt: skip
        trainer = Trainer(model=tiny(), args=arguments, train_dataset=data)
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_save_pretrained_keeps_how_pictures_are_prepared(tmp_path, monkeypatch):
    """Before anything is uploaded; only by the main process, and not where a file is."""
    model = tiny()
    model.preprocessing = Preprocessing(size=(48, 48), resize="shortest", resize_to=50)
    seen = []
    monkeypatch.setattr(
        transformers.PreTrainedModel,
        "save_pretrained",
        lambda self, folder, *rest, **more: seen.append([file.name for file in folder.iterdir()]),
    )
    model.save_pretrained(tmp_path / "a", push_to_hub=True)
    assert seen == [["preprocessor_config.json"]]
    monkeypatch.undo()
    model.save_pretrained(str(tmp_path / "b"))
    assert load(tmp_path / "b").preprocessing == model.preprocessing
    assert set(model._get_files_timestamps(tmp_path / "b")) == {"config.json", "model.safetensors"}  # is not uploaded
    model.save_pretrained(tmp_path / "c", False)
    assert not (tmp_path / "c" / "preprocessor_config.json").exists()
    (tmp_path / "file").touch()
    model.save_pretrained(tmp_path / "file")  # transformers logs that
    assert (tmp_path / "file").read_bytes() == b""


def test_from_pretrained_knows_how_pictures_are_prepared(tmp_path, caplog):
    """So that `classify`, `fuse` and `save` see what `load` would have."""
    model, wanted = tiny(), Preprocessing(size=(64, 96), resize="shortest", resize_to=96)
    model.preprocessing = wanted
    save(model, tmp_path / "model")
    assert SwiftFormerForImageClassification.from_pretrained(tmp_path / "model").preprocessing == wanted
    backbone = SwiftFormerBackbone.from_pretrained(pretrained_model_name_or_path=str(tmp_path / "model"))
    assert backbone.preprocessing == wanted
    model, info = SwiftFormerForImageClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert model.preprocessing == wanted and not info["missing_keys"]
    save(model, tmp_path / "again")
    assert load(tmp_path / "again").preprocessing == wanted
    file = tmp_path / "model" / "preprocessor_config.json"
    file.write_text(json.dumps(wanted.to_dict() | {"rescale_factor": 1.0}))
    assert not hasattr(SwiftFormerForImageClassification.from_pretrained(tmp_path / "model"), "preprocessing")
    assert "expected a preprocessing that is known, found none (expected a rescale_factor of 1/255" in caplog.text
    file.unlink()
    assert not hasattr(SwiftFormerForImageClassification.from_pretrained(tmp_path / "model"), "preprocessing")


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"global_query_weighting": "L2"}, "global_query_weighting"), ({"frozen_stages": 9}, "frozen_stages")],
)
def test_what_is_set_besides_the_file_is_checked_too(tmp_path, fields, message):
    save(tiny(), tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        SwiftFormerForImageClassification.from_pretrained(tmp_path / "model", **fields)


@pytest.mark.parametrize("name", ["gelu_10", "gelu_python", "relu"])
def test_activations_that_transformers_makes_with_arguments(name):
    assert tiny(hidden_act=name)(torch.randn(1, 3, 32, 32)).logits.isfinite().all()


@pytest.mark.parametrize("form", ["uniform", "l2"])
def test_second_derivatives_and_transformations(form):
    """As of a network with torch's own operations, also in training, with maps of one line in the last stage."""
    model = tiny(global_query_weighting=form, layer_scale_init_value=1.0).double()
    x = torch.randn(2, 3, 32, 64, dtype=torch.float64)

    def penalty(net):
        learned = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(net(learned).logits.square().sum(), learned, create_graph=True)
        return torch.autograd.grad(first.square().sum(), learned)[0]

    def direction(scale):
        return model(x * scale).logits.sum()

    for training in (False, True):
        model.train(training)
        twin = copy.deepcopy(model)
        found = penalty(model)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("swiftformer.l2_normalization.is_transformed", lambda _: True)
            patch.setattr("swiftformer.convolutions.is_transformed", lambda _: True)
            torch.testing.assert_close(found, penalty(twin), rtol=1e-6, atol=1e-9)
    model.eval()
    one = torch.ones((), dtype=torch.float64)
    step = 1e-5
    slope = (direction(one + step) - direction(one - step)) / (2 * step)
    torch.testing.assert_close(torch.func.grad(direction)(one), slope, rtol=1e-5, atol=1e-7)
    each = torch.func.vmap(torch.func.grad(lambda picture: model(picture[None]).logits.sum()))(x)
    learned = x.clone().requires_grad_()
    (together,) = torch.autograd.grad(model(learned).logits.sum(), learned)
    torch.testing.assert_close(each, together)
