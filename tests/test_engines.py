"""Which engine `auto` takes, of artifacts and of checkpoints, and what is said where packages are missing."""

import json
import logging
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import resources
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import tiny
from swiftformer import SwiftFormerForSemanticSegmentation, engines, load, save
from swiftformer.artifact import Artifact
from swiftformer.checkpoints import CheckpointError
from swiftformer.deploy import fuse
from swiftformer.detection import SwiftFormerForObjectDetection
from swiftformer.engines import EngineError, open_engine
from swiftformer.engines import openvino as openvino_engine
from swiftformer.engines.torch import TorchEngine
from swiftformer.export import ExportError, export
from swiftformer.image_processing import Preprocessing
from swiftformer.predict import classify
from swiftformer.predict_segmentation import segment
from test_export import broken, rewrite
from test_native_engine import contract

SMALL = Preprocessing(size=(64, 64), resize="shortest", resize_to=64)
PICTURE = str(resources.files("swiftformer") / "samples" / "cat.jpg")


@pytest.fixture(autouse=True)
def _log(caplog):
    caplog.set_level(logging.INFO, "swiftformer.engines")


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    model = tiny()
    model.preprocessing = SMALL
    folder = tmp_path_factory.mktemp("onnx") / "a"
    export(model, folder, "onnx")
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    model = tiny()
    model.preprocessing = SMALL
    return save(model, tmp_path / "model")


def only_cuda(monkeypatch):
    """An onnxruntime for a GPU, which keeps what it was asked for."""
    import onnxruntime

    asked, loaded = [], []

    class Session:
        def __init__(self, file, options, providers):
            assert bool(loaded) == ("CoreML" not in str(providers[0]))
            asked.extend(providers)

        def get_providers(self):
            return [asked[0][0] if isinstance(asked[0], tuple) else asked[0]]

        def get_inputs(self):
            return [type("Input", (), {"name": "pixel_values"})]

    every = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CoreMLExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: every)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: loaded.append("CUDA's libraries"), raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    return asked


@pytest.mark.parametrize(
    ("device", "first"),
    [
        ("cuda", "CUDAExecutionProvider"),
        ("cuda:0", ("CUDAExecutionProvider", {"device_id": "0"})),
        ("tensorrt", "TensorrtExecutionProvider"),
        ("tensorrt:1", ("TensorrtExecutionProvider", {"device_id": "1"})),
        ("coreml", "CoreMLExecutionProvider"),
    ],
)
def test_auto_takes_the_engine_that_knows_the_device(onnx, monkeypatch, device, first):
    asked = only_cuda(monkeypatch)
    assert open_engine(onnx, device=device).name == f"onnxruntime fp32 {device}"
    assert asked[0] == first and asked[-1] == "CPUExecutionProvider"


def test_a_device_that_no_engine_has(onnx):
    for device in ("cuda:x", "coreml:1", "cuda:"):
        with pytest.raises(EngineError, match=r"found none \(openvino: device: .*; onnxruntime: device: ") as caught:
            open_engine(onnx, device=device)
        assert "\n" not in str(caught.value)


def test_auto_goes_on_where_an_engine_refuses(onnx, tmp_path, monkeypatch, caplog):
    folder = broken(onnx, tmp_path, lambda copy: rewrite(copy, precision="int8"))
    assert open_engine(folder, precision="int8").name.startswith("onnxruntime int8")
    assert "not in openvino (precision: expected one of fp32, bf16, fp16 for openvino, found 'int8')" in caplog.text
    assert "running in onnxruntime int8 cpu" in caplog.text
    module = "swiftformer.engines.openvino"
    monkeypatch.setitem(sys.modules, module, type(sys)(module))
    sys.modules[module].open_artifact = lambda *_: (_ for _ in ()).throw(ImportError("libtbb.so: cannot open"))
    assert open_engine(onnx).name.startswith("onnxruntime fp32")
    assert "openvino is installed, but cannot be imported (libtbb.so: cannot open)" in caplog.text
    with pytest.raises(EngineError, match=r"cannot be imported \(libtbb.so"):
        open_engine(onnx, "openvino")


@pytest.fixture(params=["contract", "compiled"])
def native(request, monkeypatch):
    if request.param == "contract":
        monkeypatch.setitem(sys.modules, "swiftformer_native", contract())
    else:
        pytest.importorskip("swiftformer_native")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_classifiers_run_in_native_and_answer_as_in_torch(native, checkpoint, caplog):
    x = np.random.default_rng(0).standard_normal((2, 3, 65, 97)).astype(np.float32)
    engine, other = open_engine(checkpoint), open_engine(checkpoint, "torch")
    assert engine.name.startswith("native fp32 ") and f"{checkpoint}: running in native fp32" in caplog.text
    assert np.abs(engine(x)["logits"] - other(x)["logits"]).max() < 1e-5 * np.abs(other(x)["logits"]).max()
    assert open_engine(checkpoint, device="cpu", precision="fp32").name.startswith("native fp32 ")
    assert open_engine(checkpoint, isa="plain").name == "native fp32 plain"
    (found,), (expected,) = classify(PICTURE, checkpoint), classify(PICTURE, load(checkpoint))
    assert found.predictions[0].label == expected.predictions[0].label
    assert found.predictions[0].probability == pytest.approx(expected.predictions[0].probability, abs=1e-5)


def test_segmenters_run_in_native_and_answer_as_in_torch(native, tmp_path):
    segmenter = SwiftFormerForSemanticSegmentation(tiny(num_labels=3, fpn_channels=16).config).eval()
    path = save(segmenter, tmp_path / "segmenter")
    assert open_engine(path).name.startswith("native fp32 ")
    (found,), (expected,) = segment(PICTURE, path), segment(PICTURE, segmenter)
    assert (found.mask == expected.mask).mean() > 0.999
    with pytest.raises(ValueError, match="expected a segmentation model, found one for classification"):
        list(segment(PICTURE, save(tiny(), tmp_path / "classifier")))


@pytest.mark.parametrize("format", ["onnx", "openvino", "native", pytest.param("litert", marks=pytest.mark.exhaustive)])
def test_several_threads_may_call_an_engine(format, tmp_path):
    """Each gets its own answers."""
    if format == "native":
        pytest.importorskip("swiftformer_native")
    if format == "litert":
        pytest.importorskip("litert_torch")
    model = tiny()
    model.preprocessing = SMALL
    export(model, tmp_path / "a", format, size=(64, 64))
    for name in engines.ENGINES:
        if format not in engines.ENGINES[name][2]:
            continue
        engine = open_engine(tmp_path / "a", name, threads=1)
        batches = [np.random.default_rng(i).standard_normal((1, 3, 64, 64), np.float32) for i in range(3)]
        expected = [engine(batch)["logits"] for batch in batches]
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(engine, 10 * batches))
        assert all(np.allclose(a["logits"], b, atol=1e-5) for a, b in zip(found, 10 * expected, strict=True))


def test_a_form_is_not_asked_of_an_artifact_of_another(onnx):
    assert open_engine(onnx, form="uniform").outputs == ("logits",)
    with pytest.raises(EngineError, match="form: expected that of the artifact, uniform, found l2"):
        open_engine(onnx, form="l2")


@pytest.mark.parametrize("threads", [0, 2.5, "2", 100_000])
def test_threads_are_a_number(onnx, threads):
    with pytest.raises(EngineError, match=f"threads: expected a number from 1 to 1024, found {threads!r}"):
        open_engine(onnx, threads=threads)


def test_probabilities_are_told_from_logits(onnx, tmp_path):
    folder = broken(onnx, tmp_path, lambda copy: rewrite(copy, outputs=["probabilities"]))
    with pytest.raises(EngineError, match="expected probabilities of sum 1, found .* sums of"):
        list(classify(PICTURE, folder))


def test_numbers_that_are_not_finite_are_no_classes(tmp_path):
    model = tiny()
    model.preprocessing = SMALL
    with torch.no_grad():
        model.head.weight[3] = float("nan")
    with pytest.raises(EngineError, match="expected finite logits, found others"):
        list(classify(PICTURE, model))


def test_several_classes_per_picture_are_no_probabilities_that_sum_to_one(tmp_path, native):
    """In torch and in native: classes that do not exclude each other have other probabilities."""
    model = tiny(problem_type="multi_label_classification")
    model.preprocessing = SMALL
    save(model, tmp_path / "model")
    for options in ({"model": model}, {"model": tmp_path / "model"}):
        with pytest.raises(EngineError, match="expected a classifier of one class per picture, found one for multi_"):
            list(classify(PICTURE, **options))
    with pytest.raises(ExportError, match="softmax: expected one class per picture, found a model for multi_label"):
        export(model, tmp_path / "a", "onnx", softmax=True)


def test_an_artifact_of_several_classes_per_picture(tmp_path):
    model = tiny(problem_type="multi_label_classification")
    model.preprocessing = SMALL
    export(model, tmp_path / "a", "openvino")
    with pytest.raises(EngineError, match="expected a classifier of one class per picture, found one for multi_"):
        list(classify(PICTURE, tmp_path / "a"))


def test_models_in_double_precision():
    model = tiny().double()
    model.preprocessing = SMALL
    (found,) = classify(PICTURE, model)
    assert sum(prediction.probability for prediction in found.predictions) <= 1 + 1e-6
    assert TorchEngine(fuse(model), ("a",) * 10, device="cpu").name == "torch float64 cpu"


@pytest.mark.parametrize("error", [MemoryError("no room"), torch.OutOfMemoryError("CUDA out of memory")])
def test_too_little_memory_is_not_the_input_s_fault(onnx, monkeypatch, error):
    engine = open_engine(onnx)

    def run(batch):
        raise error

    monkeypatch.setattr(engine, "run", run)
    with pytest.raises(type(error)):
        engine(np.zeros((1, 3, 64, 64), np.float32))


def test_one_core_for_all_threads(monkeypatch):
    """OpenVINO's: two would end the process."""

    class Core:
        def __init__(self):
            time.sleep(0.05)

    monkeypatch.setitem(sys.modules, "openvino", SimpleNamespace(Core=Core))
    monkeypatch.setattr(openvino_engine, "_core", cache(openvino_engine._core.__wrapped__))
    with ThreadPoolExecutor(4) as pool:
        assert len({id(core) for core in pool.map(lambda _: openvino_engine.shared_core(), range(4))}) == 1


def test_why_native_refuses_is_told_where_torch_does_too(native, checkpoint, monkeypatch):
    def refuse(*_):
        raise EngineError("int8: no instructions")

    monkeypatch.setattr("swiftformer.engines.native.from_reference", refuse)
    with pytest.raises(
        EngineError, match="expected one of fp32, bf16, fp16 for torch, found 'int8'; int8: no instructions"
    ):
        open_engine(checkpoint, precision="int8")


@pytest.mark.parametrize("training", [False, True])
def test_a_model_that_is_used_stays_as_it_is(training):
    model = tiny().train(training)
    list(classify(PICTURE, model, precision="bf16"))
    list(classify(PICTURE, model))
    assert model.training is training and {p.dtype for p in model.parameters()} == {torch.float32}
    ready = TorchEngine.of_model(model.eval(), device="cpu")
    assert ready.net is model  # and not copied where nothing would change


def test_only_classifiers_classify(tmp_path):
    """Told before pictures are read, which a model may take in any size."""
    model = SwiftFormerForSemanticSegmentation.from_variant("xs", num_labels=3)
    folder = save(model, tmp_path / "segmenter")
    with pytest.raises(ValueError, match="segmenter: expected a classifier, found a model for segmentation"):
        next(classify([], folder))
    with pytest.raises(ValueError, match="expected a classifier, found a SwiftFormerForSemanticSegmentation"):
        next(classify([], model))


def test_names_are_as_many_as_pictures(checkpoint):
    assert [result.image for result in classify(PICTURE, checkpoint, names="cat")] == ["cat"]
    with pytest.raises(ValueError, match="names: expected one for each of 1 pictures, found 2"):
        next(classify(PICTURE, checkpoint, names=["a", "b"]))
    with pytest.raises(ValueError, match="model: expected a reference, an engine or a model, found int"):
        next(classify(PICTURE, 3))


@pytest.mark.parametrize("labels", [[], ["a", "b"]])
def test_labels_of_another_number_than_classes(onnx, tmp_path, labels):
    folder = broken(onnx, tmp_path, lambda copy: rewrite(copy, labels=labels))
    with pytest.raises(EngineError, match=f"expected a label for each of 10 classes, found {len(labels)}"):
        list(classify(PICTURE, folder))


def test_an_older_native_package_without_a_layer(tmp_path, monkeypatch):
    older = contract()
    older.Network = type("Network", (older.Network,), {"lateral": property()})  # none of that name
    monkeypatch.setitem(sys.modules, "swiftformer_native", older)
    path = save(SwiftFormerForSemanticSegmentation(tiny(num_labels=3, fpn_channels=16).config), tmp_path / "segmenter")
    with pytest.raises(EngineError, match="expected a newer swiftformer_native, found one without the layer lateral"):
        open_engine(path, "native")
    assert open_engine(path).name == "torch fp32 cpu"


def test_other_checkpoints_run_in_torch(native, checkpoint, tmp_path, monkeypatch, caplog):
    relu = tiny(hidden_act="relu")
    assert open_engine(save(relu, tmp_path / "relu")).name == "torch fp32 cpu"
    assert "running in torch fp32 cpu" in caplog.text and "gelu" not in caplog.text
    assert open_engine(checkpoint, precision="fp16").name == "torch fp16 cpu"
    config = tiny(num_labels=3).config
    detector = save(SwiftFormerForObjectDetection(config), tmp_path / "detector")
    monkeypatch.setattr("swiftformer.engines.native.from_reference", lambda *_: pytest.fail("loaded for nothing"))
    assert open_engine(detector).name == "torch fp32 cpu"
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)  # a GPU is faster
        patch.setattr(engines, "may_have_gpu", lambda: True)
        patch.setattr("swiftformer.engines.torch.select_device", lambda _: torch.device("cpu"))
        assert open_engine(checkpoint).name == "torch fp32 cpu"
    monkeypatch.setitem(sys.modules, "swiftformer_native", None)
    assert open_engine(checkpoint).name == "torch fp32 cpu"


def test_a_package_that_is_not_installed(onnx, tmp_path, monkeypatch):
    absent = {name: ("no_such_module", extra, formats) for name, (_, extra, formats) in engines.ENGINES.items()}
    monkeypatch.setattr(engines, "ENGINES", absent)
    with pytest.raises(EngineError, match=r"the engine torch needs no_such_module: pip install torch$"):
        open_engine(broken(onnx, tmp_path, lambda copy: rewrite(copy, format="torch-export")), "torch")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", PICTURE, "--model", "/nowhere"], "/nowhere: expected an exported artifact where torch is not"),
        (["classify", PICTURE], "expected an exported artifact where torch is not installed, found none there; this"),
        (["evaluate", "--data", "photos", "--model", "{onnx}"], "this needs torch, which is not installed"),
        (["info", "xs"], "this needs torch, which is not installed"),
    ],
)
def test_without_torch_one_line_says_so(onnx, arguments, message):
    script = "import sys; sys.modules['torch'] = sys.modules['swiftformer_native'] = None\n"
    script += "from swiftformer.cli import main\nmain()"
    arguments = [argument.format(onnx=onnx) for argument in arguments]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert len(lines) == 1 and message in lines[0] and "pip install swiftformer" in lines[0]


def test_classifying_an_onnx_artifact_starts_no_torch(onnx):
    """The whole command, in a machine that has torch: importing it would take longer than all the rest."""
    script = (
        "import sys\nfrom swiftformer.cli import main\n"
        "try: main()\nfinally: print('torch' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", script, "classify", PICTURE, "--model", str(onnx), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)) == 1 and done.stderr.splitlines()[-1] == "False"


def test_an_unreadable_graph_is_told_in_one_line(onnx, tmp_path):
    """Also by readers that print by themselves, so in a process of its own."""
    pytest.importorskip("openvino")

    def change(copy):
        rewrite(copy, checksums={})
        (copy / "model.onnx").write_bytes(b"x" * 100)

    folder = broken(onnx, tmp_path, change)
    command = [sys.executable, "-m", "swiftformer", "classify", PICTURE, "--model", str(folder), "--engine", "openvino"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "openvino refuses it (expected an ONNX model" in done.stderr
    assert "GraphDef" not in done.stderr and "absl" not in done.stderr


def test_a_file_of_an_artifact_is_told_from_a_checkpoint(onnx, tmp_path):
    for file in (
        onnx / "model.onnx",
        broken(onnx, tmp_path, lambda copy: (copy / "weights.bin").touch()) / "weights.bin",
    ):
        with pytest.raises(
            CheckpointError, match="or the folder of an exported artifact with its metadata.json, found"
        ):
            open_engine(file)
    (tmp_path / "broken" / "metadata.json").unlink()
    with pytest.raises(
        CheckpointError, match="expected config.json and .*, or the metadata.json of an exported artifact"
    ):
        open_engine(tmp_path / "broken")


def program(tmp_path, format_, **versions):
    """An artifact of torch whose program is not reached, or not one."""
    model = tiny()
    folder = tmp_path / format_
    folder.mkdir()
    (folder / "model.pt2").write_bytes(b"")
    fields = {"precision": "fp32", "file": "model.pt2", "task": "classification", "outputs": ("logits",), "channels": 3}
    shape = {"batch": 1, "size": (64, 64), "value_range": "normalized", "preprocessing": SMALL}
    labels = tuple(model.config.id2label.values())
    Artifact(format_, **fields, **shape, labels=labels, versions=versions).write(folder)
    return folder


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"torch": "2.1.0"}, f"expected torch 2.1.0, which compiled it, found {torch.__version__}: export it anew"),
        (
            {"torch": torch.__version__, "cpu": "AVX1024"},
            "expected a processor with AVX1024, for which it was compiled",
        ),
        ({"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}, "torch refuses it"),
        ({}, "torch refuses it"),
    ],
)
def test_machine_code_of_another_torch_or_processor_is_refused(tmp_path, versions, message):
    with pytest.raises(EngineError, match=re.escape(message)) as caught:
        open_engine(program(tmp_path, "aoti", **versions))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("version", "warned"), [("99.0.0+cu200", True), ("2.0.0", False), (torch.__version__, False)])
def test_a_program_of_a_newer_torch_is_warned_of(tmp_path, caplog, version, warned):
    with pytest.raises(EngineError, match="expected a program of torch.export"):
        open_engine(program(tmp_path, "torch-export", torch=version))
    assert ("written by torch 99.0.0+cu200, which is newer than the" in caplog.text) == warned
