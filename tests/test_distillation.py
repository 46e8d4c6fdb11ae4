import json
import math

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file

from conftest import randomize, tiny
from swiftformer import CheckpointError, save
from swiftformer.image_processing import IMAGENET_MEAN, IMAGENET_STD
from swiftformer.train.distillation import Teacher, distillation_loss, load_teacher


def test_losses_by_hand():
    student, teacher, alpha, tau = torch.randn(3, 4), torch.randn(3, 4), 0.3, 2.5
    class_loss = torch.tensor(1.7)
    hard = 0.0
    for row, best in zip(student.tolist(), teacher.argmax(1).tolist(), strict=True):
        hard += -math.log(math.exp(row[best]) / sum(map(math.exp, row))) / 3
    found = distillation_loss(class_loss, student, teacher, "hard", alpha)
    assert found.item() == pytest.approx(0.7 * 1.7 + 0.3 * hard, abs=1e-6)
    soft = 0.0
    for a, b in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(v / tau) / sum(math.exp(w / tau) for w in b) for v in b]
        q = [math.exp(v / tau) / sum(math.exp(w / tau) for w in a) for v in a]
        soft += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    found = distillation_loss(class_loss, student, teacher, "soft", alpha, tau)
    assert found.item() == pytest.approx(0.7 * 1.7 + 0.3 * soft * tau**2 / 12, abs=1e-6)


def test_the_teacher_gets_its_own_normalisation_and_size():
    class Spy(torch.nn.Module):
        def forward(self, x):
            self.seen = x
            return x.mean((2, 3))

    teacher = Teacher(Spy(), (0.5, 0.5, 0.5), (0.25, 0.5, 1.0), 48, IMAGENET_MEAN, IMAGENET_STD).train()
    assert not teacher.training and not teacher.network.training
    image = torch.rand(2, 3, 1, 1).expand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    teacher((image - mean) / std)
    assert teacher.network.seen.shape == (2, 3, 48, 48)
    expected = (image[:, :, :1, :1] - 0.5) / torch.tensor([0.25, 0.5, 1.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(teacher.network.seen, expected.expand(2, 3, 48, 48), atol=1e-5, rtol=1e-5)


def test_teachers_of_every_kind(tmp_path):
    ours = save(tiny(), tmp_path / "ours")
    stock = transformers.ResNetForImageClassification(
        transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=10)
    )
    stock.save_pretrained(tmp_path / "stock")
    transformers.ViTImageProcessor(size={"height": 40, "width": 40}).save_pretrained(tmp_path / "stock")
    theirs = randomize(timm.create_model("mobilenetv3_small_050", num_classes=10))
    (tmp_path / "timm").mkdir()
    save_file(theirs.state_dict(), tmp_path / "timm" / "model.safetensors")
    config = {"architecture": "mobilenetv3_small_050", "num_classes": 10, "pretrained_cfg": theirs.pretrained_cfg}
    (tmp_path / "timm" / "config.json").write_text(json.dumps(config, default=str))
    for reference, size in ((str(ours), 224), (str(tmp_path / "stock"), 40), (f"local-dir:{tmp_path / 'timm'}", 224)):
        teacher = load_teacher(reference, 10)
        assert teacher.size == size
        assert teacher(torch.randn(2, 3, 64, 64)).shape == (2, 10)
        assert not any(p.requires_grad for p in teacher.parameters())
        with pytest.raises(CheckpointError, match="expected 3 classes, as the data has, found 10"):
            load_teacher(reference, 3)


@pytest.mark.parametrize("reference", ["regnety_160.deit_in1k", "timm/regnety_160.deit_in1k"])
def test_a_teacher_that_cannot_be_downloaded(reference, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    message = "cannot be downloaded .* .*--set teacher=local-dir:FOLDER.*--set distillation=none"
    with pytest.raises(CheckpointError, match=message):
        load_teacher(reference, 1000)
    with pytest.raises(CheckpointError, match="teacher nobody/nothing: no such file or folder"):
        load_teacher("nobody/nothing", 10)


def test_classes_of_a_teacher_in_another_order(tmp_path):
    """They would teach the wrong classes without a word."""
    names = ["ant", "bee", "cat", "dog"]
    reference = str(save(tiny(num_labels=4, id2label=dict(enumerate(names))), tmp_path / "ours"))
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=4)
    config.id2label = dict(enumerate(names))
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path / "stock")
    transformers.ViTImageProcessor().save_pretrained(tmp_path / "stock")
    for teacher in (reference, str(tmp_path / "stock")):
        for classes in (names, ["n1", "n2", "n3", "n4"], ["ant", "wasp", "cat", "wolf"]):
            load_teacher(teacher, 4, classes=classes)
        for classes in (["ant", "cat", "bee", "dog"], ["bee", "ant", "wasp", "dog"]):
            with pytest.raises(CheckpointError, match="expected the classes in the data's order, found .* in place"):
                load_teacher(teacher, 4, classes=classes)
