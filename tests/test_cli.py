import json
import logging
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY, tiny
from swiftformer import SwiftFormerConfig, SwiftFormerForImageClassification, load, save
from swiftformer.cli import main
from test_image_processing import encoded


@pytest.fixture
def model_folder(tmp_path):
    model = tiny(id2label={i: f"kind {i}" for i in range(10)}, global_query_weighting="l2")
    return str(save(model, tmp_path / "model"))


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run a command line in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["swiftformer", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    loggers = {logging.getLogger(name): logging.getLogger(name).level for name in (None, "swiftformer")}
    handlers = list(logging.root.handlers)
    yield run
    logging.root.handlers[:] = handlers  # the command line's own writes to a stream that is closed after the test
    for logger, level in loggers.items():
        logger.setLevel(level)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "b.png", "more/c.webp"):
        Image.fromarray(rng.integers(0, 256, (50, 70, 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_classify_json(cli, model_folder, pictures):
    code, out, err = cli("classify", pictures, "--model", model_folder, "--json", "--top-k", 4, "--batch-size", 2)
    assert code == 0 and "error" not in err
    results = json.loads(out)
    assert [r["image"] for r in results] == [str(pictures / n) for n in ("a.jpg", "b.png", "more/c.webp")]
    for result in results:
        assert result.keys() == {"image", "predictions"} and len(result["predictions"]) == 4
        probabilities = [p["probability"] for p in result["predictions"]]
        assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1
        for prediction in result["predictions"]:
            assert prediction["label"] == f"kind {prediction['index']}"


def test_classify_equals_the_model(cli, model_folder, pictures):
    _, out, _ = cli("classify", pictures / "a.jpg", "--model", model_folder, "--json", "--top-k", 10)
    found = {p["index"]: p["probability"] for p in json.loads(out)[0]["predictions"]}
    model = load(model_folder)
    expected = model(torch.from_numpy(model.preprocessing(pictures / "a.jpg"))).logits.softmax(1)[0]
    assert len(found) == 10
    assert all(abs(expected[i].item() - p) < 1e-5 for i, p in found.items())


def test_classify_table_glob_and_files(cli, model_folder, pictures):
    code, out, _ = cli("classify", pictures / "*.jpg", pictures / "b.png", "--model", model_folder)
    assert code == 0 and "kind" in out and "%" in out and out.count("a.jpg") == 1


def test_classify_standard_input(model_folder, pictures):
    command = [sys.executable, "-m", "swiftformer", "classify", "-", "--model", model_folder, "--json"]
    result = subprocess.run(command, input=(pictures / "a.jpg").read_bytes(), capture_output=True, timeout=120)
    assert result.returncode == 0 and json.loads(result.stdout)[0]["image"] == "-"


def test_a_broken_file_among_good_ones(cli, model_folder, pictures):
    (pictures / "broken.jpg").write_bytes(encoded(Image.effect_noise((64, 64), 90), "JPEG")[:500])
    code, out, err = cli("classify", pictures, pictures / "absent.jpg", "--model", model_folder, "--json")
    results = json.loads(out)
    assert code == 2 and len(results) == 5
    assert [bool(r["predictions"]) for r in results] == [True, True, False, True, False]
    assert "broken.jpg: broken image" in results[2]["error"] and "broken.jpg" in err
    assert results[4]["error"].endswith("absent.jpg: no such file")
    code, out, err = cli("classify", pictures, "--model", model_folder)
    assert code == 2 and "kind" in out and err.count("error:") == 1
    (empty := pictures / "folder.jpg").mkdir()
    for named in ([pictures, empty], [pictures / "*.jpg"]):
        code, out, err = cli("classify", *named, "--model", model_folder)
        assert code == 2 and "kind" in out and "folder.jpg: expected a f" in err and err.count("error:") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify", "x.jpg", "--model", "nonsense"], "nonsense: expected a bundled name"),
        (["classify", "{tmp}/*.jpg", "--model", "{model}"], "expected a pattern that matches files, found no match"),
        (["classify", "{tmp}/a.png", "--model", "{tmp}/absent"], "absent: no such file or folder"),
        (["classify", "{tmp}/empty", "--model", "{model}"], "expected a folder with images, found none"),
        (["classify", "{tmp}/a.png", "--model", "{tmp}/notes.txt"], "notes.txt: truncated, or no PyTorch checkpoint"),
        (["classify", "{tmp}", "--top-k", "0"], "top-k"),
        (["classify", "{tmp}", "--form", "march"], "march"),
        (["evaluate", "--data", "{tmp}/absent", "--model", "{model}"], "absent: no such file or folder"),
        (["evaluate", "--data", "{tmp}/empty", "--model", "{model}"], "expected one folder of images per class"),
        (["info", "xl"], "xl: expected a bundled name"),
        (["info", "xs", "--size", "big"], "size: expected pixels such as 224 or 480x640, found 'big'"),
        (["info", "xs", "--size", "16"], "at least 32x32 pixels, found 16x16"),
        (["train", "--data", "{tmp}/absent", "--recipe", "smoke"], "absent: no such file or folder"),
        (["evaluate", "--data", "{tmp}/flat", "--raw"], "expected the folder of a run that averages its weights"),
        (["train", "--data", "{tmp}/flat"], "the recipe finetune starts from a checkpoint: expected --model"),
        (["train", "--data", "{tmp}/boxes"], "trained on with --task segment, detect or instances"),
        (["train", "--data", "{tmp}", "--recipe", "paper"], "unknown recipe 'paper'"),
        (["convert", "{tmp}/notes.txt", "{tmp}/out"], "notes.txt: truncated, or no PyTorch checkpoint"),
        (["convert", "{model}", "{tmp}/out", "--to", "keras"], "keras"),
        (["paint"], "paint"),
        (["classify", "{tmp}/a.png", "--model", "{model}", "--threads", "100000"], "1 to 1024, found 100000"),
        (["classify", "{tmp}/a.png", "--model", "{model}", "--device", "nonsense"], "found 'nonsense'"),
        (["train", "--data", "{tmp}/flat", "--recipe", "smoke"], "two or more pictures of some class to hold one out"),
    ],
)  # fmt: skip
def test_bad_input_gets_one_line_and_exit_code_2(cli, tmp_path, model_folder, arguments, message):
    (tmp_path / "empty").mkdir()
    for name in ("images", "labels"):
        (tmp_path / "boxes" / name).mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("no checkpoint, only words")
    for name in ("x", "y"):
        (tmp_path / "flat" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "flat" / name / "a.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    code, out, err = cli(*(a.format(tmp=tmp_path, model=model_folder) for a in arguments))
    assert code == 2 and out == "" and message in err
    errors = [line for line in err.splitlines() if line.lower().startswith("error:")]
    assert len(errors) == 1 and message in " ".join(err.split())


def test_names_that_cannot_be_printed(model_folder, pictures):
    """They lose nobody the results."""
    odd = os.fsencode(pictures / "b") + b"\xff \xe7\x8c\xab.png"
    shutil.copy(pictures / "b.png", odd)
    command = [sys.executable, "-m", "swiftformer", "classify", pictures / "a.jpg", odd, "--model", model_folder]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, timeout=120, env=environment)
    assert result.returncode == 0 and result.stdout.count(b"kind") == 6, result.stderr
    assert b"\\udcff" in result.stdout


def test_sigterm_cleans_up(tmp_path):
    """What is half written goes."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom swiftformer import cli\n"
        "from swiftformer.files import atomic_file\n"
        "@cli.app.command()\n"
        "def wait():\n"
        f"    with atomic_file(Path({str(tmp_path / 'file')!r})):\n"
        "        print('ready', flush=True); time.sleep(60)\n"
        "sys.argv = ['swiftformer', 'wait']; cli.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n" and len([*tmp_path.iterdir()]) == 1
    process.terminate()
    assert process.wait(30) == 143 and not [*tmp_path.iterdir()]
    process.stdout.close()


def test_names_with_brackets_are_printed_as_they_are(cli, model_folder, tmp_path):
    folder = tmp_path / "photos[new]"
    folder.mkdir()
    Image.new("RGB", (40, 40)).save(folder / "img[b].png")
    code, out, _ = cli("classify", folder, "--model", model_folder)
    assert code == 0 and "photos[new]/img[b].png" in out.replace("\n", "")
    assert cli("info", model_folder)[0] == 0


def test_info_of_a_backbone(cli, model_folder, tmp_path):
    save(load(model_folder, task="backbone"), tmp_path / "backbone.pth", format="authors")
    description = json.loads(cli("info", tmp_path / "backbone.pth", "--json")[1])
    assert description["classes"] is None and description["layers"][-1]["name"] == "stage4"


def test_convert_between_formats(cli, tmp_path, model_folder):
    assert cli("convert", model_folder, tmp_path / "a.pth", "--to", "authors")[0] == 0
    torch.save({"model": torch.load(tmp_path / "a.pth")["model"]}, tmp_path / "foreign.pth")
    code, _, err = cli("convert", tmp_path / "foreign.pth", tmp_path / "b.safetensors", "--to", "timm")
    assert code == 2 and "pass form=" in err
    assert cli("convert", tmp_path / "foreign.pth", tmp_path / "b.safetensors", "--to", "timm", "--form", "l2")[0] == 0
    assert cli("convert", tmp_path / "a.pth", tmp_path / "d.safetensors", "--to", "timm")[0] == 0
    assert cli("convert", tmp_path / "b.safetensors", tmp_path / "c", "--half")[0] == 0
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "c")(x).logits, load(model_folder)(x).logits, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize(("name", "found"), [("recipe.json", "a training run"), ("config.json", "another config.json")])
@pytest.mark.parametrize("command", [["convert"], ["grow", "--variant", "s"]])
def test_a_model_takes_the_place_of_nothing_else(cli, tmp_path, model_folder, command, name, found):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    code, _, err = cli(command[0], model_folder, tmp_path / "out", *command[1:])
    assert code == 2 and f"out: expected a folder of its own for the model, found {found}" in err
    assert [file.name for file in (tmp_path / "out").iterdir()] == [name]


def test_info(cli, model_folder):
    code, out, _ = cli("info", "xs", "--json")
    xs = json.loads(out)
    assert code == 0 and xs["parameters"] == 3_475_360 and xs["size"] == [224, 224]
    assert round(xs["gmacs"], 1) == 0.6 and xs["layers"][-2]["shape"] == [220, 7, 7]
    assert "3,475,360" in cli("info", "xs", "--size", "192x256")[1]
    assert "75.7% ImageNet-1k top-1, 0.7 ms on an iPhone 14, 6034 images/s on an A100" in xs["published"]
    checkpoint = json.loads(cli("info", model_folder, "--json")[1])
    assert checkpoint["form"] == "l2" and checkpoint["classes"] == 10


def test_evaluate_json(cli, model_folder, tmp_path, image_folder):
    model = SwiftFormerForImageClassification(
        SwiftFormerConfig(**TINY, id2label={0: "blue", 1: "red"}, label2id={"blue": 0, "red": 1})
    )
    save(model, tmp_path / "two")
    code, out, err = cli("evaluate", "--data", image_folder, "--model", tmp_path / "two", "--json", "--workers", 0)
    metrics = json.loads(out)
    assert code == 0 and metrics["images"] == 16 and metrics["top5"] == 100.0 and metrics["images_per_second"] > 0
    assert all(isinstance(value, (int, float)) for value in metrics.values())
    assert "loaded" in err
    assert "top1" in cli("evaluate", "--data", image_folder, "--model", tmp_path / "two", "--workers", 0)[1]


def test_train_then_classify(cli, tmp_path, image_folder):
    settings = ["--set", "epochs=1", "--set", "warmup_epochs=0"]
    arguments = ["--data", image_folder, "--recipe", "smoke", "--output", tmp_path / "run", "--workers", 0]
    code, out, err = cli("train", *arguments, *settings, "--json")
    assert code == 0 and json.loads(out)["epoch"] == 1 and "epoch 1/1" in err
    code, out, _ = cli("classify", image_folder / "val", "--model", tmp_path / "run", "--json")
    assert code == 0 and {p["label"] for p in json.loads(out)[0]["predictions"]} == {"blue", "red"}
    assert cli("train", *arguments, *settings)[0] == 2


@pytest.mark.parametrize("command", ["import swiftformer", "import swiftformer.cli"])
def test_bare_import_brings_no_torch(command):
    code = f"import sys; {command}; assert not {{'torch', 'transformers', 'timm', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_help_is_quick_and_torch_free():
    code = (
        "import sys; sys.argv = ['swiftformer', '--help']\n"
        "from swiftformer.cli import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    times = []
    for _ in range(3):
        start = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        times.append(time.perf_counter() - start)
    assert result.returncode == 0, result.stderr
    for verb in ("classify", "train", "evaluate", "convert", "info"):
        assert verb in result.stdout
    assert min(times) < 1.0  # half a second on an idle machine


def test_version(cli):
    import swiftformer

    assert cli("--version")[1].strip() == f"swiftformer {swiftformer.__version__}"


def test_public_names_exist():
    import swiftformer

    for name in swiftformer.__all__:
        assert getattr(swiftformer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        swiftformer.nonsense  # noqa: B018


def test_slurm_prints_or_writes_the_script(cli, tmp_path):
    from swiftformer.train.slurm import slurm_script

    train = ["--data", "my images", "--recipe", "paper_xs", "--output", "runs/xs", "--set", "lr=1e-3"]
    expected = slurm_script(train, nodes=2, gpus=4, setup=["module load cuda"])
    options = ["slurm", "--nodes", 2, "--gpus", 4, "--setup", "module load cuda"]
    assert cli(*options, "--", *train)[:2] == (0, expected)
    assert cli(*options, "--write", tmp_path / "job.sh", "--", *train)[0] == 0
    assert (tmp_path / "job.sh").read_text() == expected
    assert cli("slurm", "--time", "soon", "--", *train)[0] == 2
