"""Train SwiftFormer with transformers' Trainer, from labels alone or with distillation from a teacher as well.

python examples/train_with_transformers.py --data photos/ --model MBZUAI/swiftformer-xs --output runs/photos
python examples/train_with_transformers.py ... --teacher runs/large
swiftformer classify --model runs/photos picture.jpg
"""

import json
import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision import transforms
from transformers import EvalPrediction, Trainer, TrainingArguments

import swiftformer
from swiftformer import ImageError, Preprocessing, SwiftFormerForImageClassificationWithTeacher
from swiftformer.data.sources import Source, open_source
from swiftformer.train.distillation import Teacher, distillation_loss, load_teacher

logger = logging.getLogger(__name__)


class Images(Dataset):
    """What the Trainer feeds to the model. A picture that cannot be read is named, and the next one stands in."""

    def __init__(self, source: Source, preprocessing: Preprocessing, augment: bool = False) -> None:
        self.source = source
        self.preprocessing = preprocessing
        self.augmentation = transforms.Compose(
            [transforms.RandomResizedCrop(preprocessing.size, scale=(0.35, 1.0)), transforms.RandomHorizontalFlip()]
        )
        self.augment = augment

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        for i in [*range(index, len(self)), *range(index)]:
            try:
                image = self.source.image(i)
            except ImageError as error:
                logger.warning("skipped %s", error)
                continue
            pixels = np.asarray(self.augmentation(image)) if self.augment else self.preprocessing.resized(image)
            return {"pixel_values": self.preprocessing.normalized(pixels), "labels": self.source.labels[i]}
        raise ValueError("expected readable images, found none")


class DistillationTrainer(Trainer):
    """The class head learns from the labels, the distillation head from the teacher."""

    def __init__(self, *args: Any, teacher: Teacher, kind: Literal["hard", "soft"] = "hard", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.teacher = teacher.to(self.args.device)
        self.kind = kind

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        outputs = model(pixel_values=inputs["pixel_values"])
        class_loss = F.cross_entropy(outputs.cls_logits, inputs["labels"])
        teacher_logits = self.teacher(inputs["pixel_values"])
        loss = distillation_loss(class_loss, outputs.distillation_logits, teacher_logits, self.kind)
        return (loss, outputs) if return_outputs else loss


def best_class(logits: Tensor | tuple[Tensor, ...], labels: Tensor) -> Tensor:
    """Keep the predicted class alone of what the model returns; the mean of both heads comes first."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(dim=-1)


def accuracy(result: EvalPrediction) -> dict[str, float]:
    return {"accuracy": 100 * float(np.mean(result.predictions == result.label_ids))}


def main(
    data: Annotated[str, typer.Option(help="Folder with train/ and val/, Parquet shards, or a data set's name.")],
    model: Annotated[str, typer.Option(help="What swiftformer.load reads.")],
    output: Annotated[Path, typer.Option(help="Folder for the trained model.")],
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch_size: Annotated[int, typer.Option(min=2, help="Per device.")] = 32,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-4,
    teacher: Annotated[str, typer.Option(help="Distil from this: a checkpoint, timm name or hub id.")] = "",
    kind: Annotated[Literal["hard", "soft"], typer.Option(help="The teacher's best class, or distribution.")] = "hard",
    form: Annotated[str | None, typer.Option(help="Numeric form of the model, where its file cannot tell.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load images.")] = 2,
    bf16: Annotated[bool, typer.Option("--bf16", help="Compute in bfloat16.")] = False,
) -> None:
    """Train a classifier on one's own classes, and save it with their names."""
    train_source, val_source = open_source(data, "train"), open_source(data, "val")
    classes = train_source.classes
    if classes != val_source.classes:
        raise ValueError(f"expected the classes {classes} in val, found {val_source.classes}")
    net: Any = swiftformer.load(model, labels=classes, task="classification", form=form)
    preprocessing = net.preprocessing
    settings: dict[str, Any] = {}
    if teacher:
        if not net.config.distillation:
            raise ValueError(f"{model}: expected a model with a distillation head, found one with a single head")
        weights = net.state_dict()
        net = SwiftFormerForImageClassificationWithTeacher(net.config)
        net.load_state_dict(weights)
        frozen = load_teacher(teacher, len(classes), preprocessing.mean, preprocessing.std)
        settings = {"teacher": frozen, "kind": kind}
    trainer = (DistillationTrainer if teacher else Trainer)(
        model=net,
        args=TrainingArguments(
            output_dir=str(output / "checkpoints"),
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=batch_size,
            learning_rate=lr,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.025,
            bf16=bf16,
            eval_strategy="epoch",
            save_strategy="epoch",
            logging_strategy="epoch",
            save_total_limit=2,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            remove_unused_columns=False,
            dataloader_num_workers=workers,
            report_to="none",
        ),
        train_dataset=Images(train_source, preprocessing, augment=True),
        eval_dataset=Images(val_source, preprocessing),
        preprocess_logits_for_metrics=best_class,
        compute_metrics=accuracy,
        **settings,
    )
    trainer.train()
    found = trainer.evaluate()["eval_accuracy"]
    trainer.save_model(str(output))  # save_pretrained, by one process
    if trainer.is_world_process_zero():
        print(f"accuracy {found:.2f}")
        (output / "preprocessor_config.json").write_text(json.dumps(preprocessing.to_dict(), indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
