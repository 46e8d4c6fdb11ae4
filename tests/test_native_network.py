"""The compiled network by itself: every number of classes and threads, exactness on whole variants, and bad input."""

import ctypes
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import randomize, relative
from swiftformer import SwiftFormerForImageClassification, fuse
from swiftformer.engines.native import build
from swiftformer.export.native import network_of

native = pytest.importorskip("swiftformer_native")

random = np.random.default_rng(0)


def weight(*shape):
    return (0.3 * random.standard_normal(shape)).astype(np.float32)


def tiny_network(classes=10, encoder=False, **options):
    generator = np.random.default_rng(1)
    weights = lambda *shape: (0.3 * generator.standard_normal(shape)).astype(np.float32)  # noqa: E731
    network = native.Network(**options)
    network.stem(weights(8, 3, 3, 3), weights(8), weights(18, 8, 3, 3), weights(18), [0.5] * 3, [0.25] * 3)
    network.branch(weights(18, 1, 3, 3), weights(18), weights(36, 18), weights(36), weights(18, 36), weights(18))
    if encoder:
        branch = weights(18, 1, 3, 3), weights(18), weights(18, 18), weights(18), weights(18, 18), weights(18)
        attention = weights(36, 18), weights(36), weights(18), weights(18, 36), weights(18), True, 0.3
        network.encoder(*branch, *attention, weights(72, 18), weights(72), weights(18, 72), weights(18))
    network.head(weights(classes, 18), weights(classes))
    return network


def works(isa, precision):
    try:
        return native.Network(isa, precision) is not None
    except ValueError:
        return False


MODES = [
    (isa, precision) for isa in native.supported() for precision in ("fp32", "bf16", "int8") if works(isa, precision)
]


@pytest.mark.parametrize(("isa", "precision"), MODES)
@pytest.mark.parametrize("classes", [1, 49, 64, 100, 160, 200])
def test_threads_change_nothing(isa, precision, classes):
    """The head's columns are shared among the threads, wherever its panels end."""
    images = weight(3, 3, 32, 32)
    alone = tiny_network(classes, isa=isa, precision=precision, threads=1)(images)[0]
    assert alone.shape == (3, classes)
    for threads in (2, 3, 4, 5):
        assert (tiny_network(classes, isa=isa, precision=precision, threads=threads)(images)[0] == alone).all()


@pytest.mark.parametrize(("isa", "precision"), [mode for mode in MODES if mode[0] != "plain"])
@pytest.mark.parametrize("variant", ["xs", "l3"])
def test_whole_variants(isa, precision, variant):
    model = randomize(SwiftFormerForImageClassification.from_variant(variant)).eval()
    network = build(*network_of(fuse(model)), isa, precision, 2)
    images = torch.from_numpy(weight(2, 3, 96, 130))
    with torch.no_grad():
        expected = model.double()(images.double()).logits
    bound = {"fp32": 1e-5, "bf16": 1e-2, "int8": 5e-2 if isa == "avx2" else 3e-2}[precision]
    assert relative(torch.from_numpy(network(images.numpy())[0]), expected) < bound


@pytest.mark.parametrize("isa", [isa for isa, precision in MODES if precision == "int8"])
@pytest.mark.parametrize("sign", [1, -1])
def test_no_sum_of_int8_overflows(isa, sign):
    """Weights of one sign: whatever is summed up in 16 bits is as large as it can be."""
    generator = np.random.default_rng(2)
    sizes = [(20, 3, 3, 3), (20, 20, 3, 3), (20, 1, 3, 3), (20,), (80, 20), (80,), (20, 80)]
    drawn = {shape: (sign * generator.uniform(0.04, 0.05, shape)).astype(np.float32) for shape in sizes}
    same = lambda *shape: drawn[shape]  # noqa: E731

    def logits(isa, precision):
        network = native.Network(isa=isa, precision=precision, threads=1)
        network.stem(same(20, 3, 3, 3), weight(20) * 0 + 1, same(20, 20, 3, 3), weight(20) * 0 + 3)
        network.branch(same(20, 1, 3, 3), same(20), same(80, 20), same(80), same(20, 80), same(20))
        network.downsampling(same(20, 20, 3, 3), same(20))
        network.head(np.eye(20, dtype=np.float32), 0 * same(20))
        return network(np.full((1, 3, 33, 47), 0.7, np.float32))[0]

    expected = logits("plain", "fp32")
    assert np.abs(logits(isa, "int8") - expected).max() < 0.02 * np.abs(expected).max()


@pytest.mark.parametrize(("isa", "precision"), MODES)
def test_what_is_not_a_number_shows(isa, precision):
    images = weight(1, 3, 32, 32)
    images[0, :, 5, 5] = np.nan
    network = tiny_network(isa=isa, precision=precision, threads=1)
    clean = network(weight(1, 3, 32, 32) * 0 + 0.5)[0]
    logits = network(images)[0]
    assert np.isnan(logits).all() if precision != "int8" else logits.shape == (1, 10)  # levels cannot say it
    assert np.array_equal(network(weight(1, 3, 32, 32) * 0 + 0.5)[0], clean)


def test_weights_that_are_not_finite_are_no_levels():
    """They would be finite numbers."""
    for value in (np.nan, np.inf):
        network = native.Network(isa="plain", precision="int8", threads=1)
        weights = [weight(16, 3, 3, 3), weight(16), weight(32, 16, 3, 3), weight(32)]
        weights[2][3, 2, 1, 1] = value
        with pytest.raises(ValueError, match="expected finite weights in int8, found others"):
            network.stem(*weights)
        weights[2][3, 2, 1, 1] = 0
        network.stem(*weights)  # nothing is left of the first try
        network.output(np.ones(32, np.float32), np.zeros(32, np.float32))
        assert network(weight(1, 3, 32, 32))[0].shape == (1, 32, 8, 8)


def test_a_very_long_picture():
    """The product of its width and a number of parts is no int any more."""
    network = native.Network(isa="auto", precision="fp32", threads=2)
    network.stem(weight(8, 1, 3, 3), weight(8), weight(8, 8, 3, 3), weight(8))
    network.output(np.ones(8, np.float32), np.zeros(8, np.float32))
    pixels = np.zeros((1, 1, 1, 650_000), np.float32)
    pixels[..., -40:] = weight(1, 1, 1, 40)
    (found,), (short,) = network(pixels), network(np.ascontiguousarray(pixels[..., -80:]))
    np.testing.assert_allclose(found[..., -10:], short[..., -10:], atol=1e-6)
    with pytest.raises(ValueError, match=r"^expected sides of at most 2\^20, found 1x1048577$"):
        network(np.zeros((1, 1, 1, (1 << 20) + 1), np.float32))


@pytest.mark.parametrize("batch", [1, 2, 9])
def test_seconds_of_layers(batch):
    """Those of the last call, the stem's two, and no more than it took."""
    network = tiny_network(threads=2, encoder=True)
    assert not any(network.layer_seconds)
    for _ in range(3):
        began = time.perf_counter()
        network(weight(batch, 3, 64, 64))
        took = time.perf_counter() - began
        assert len(network.layer_seconds) == 5 and min(network.layer_seconds) > 0
        assert 0.1 * took < sum(network.layer_seconds) <= took


def test_limits_of_products():
    assert 1e6 < native.product_limit("auto", "bf16") < 1e14


def test_what_a_fresh_wheel_must_do():
    script = Path(__file__).parent.parent / "native" / "tests" / "first_steps.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "plain fp32" in done.stdout, done.stderr


@pytest.mark.parametrize(("isa", "precision"), [mode for mode in MODES if mode[1] == "fp32"])
def test_huge_values_are_not_lost(isa, precision):
    logits = tiny_network(isa=isa, precision=precision, threads=1)(np.full((1, 3, 32, 32), 1e20, np.float32))[0]
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 3, 32, 32)),
        np.zeros((3, 32, 32), np.float32),
        np.zeros((1, 32, 32, 3), np.uint8)[:, ::2],
        np.zeros((1, 32, 32, 3), np.uint8).transpose(0, 3, 1, 2),
        None,
        "picture",
    ],
)
def test_only_arrays_as_they_should_be(pixels):
    with pytest.raises(
        TypeError, match=r"^expected a contiguous array \(N, C, H, W\) of float32 or .* of uint8, found "
    ):
        tiny_network()(pixels)


def test_pictures_of_other_channels():
    with pytest.raises(ValueError, match="^expected pictures of 3 channels, found 4"):
        tiny_network()(np.zeros((1, 4, 32, 32), np.float32))
    with pytest.raises(ValueError, match="expected pictures, found none"):
        tiny_network()(np.zeros((0, 3, 32, 32), np.float32))


def test_layers_that_do_not_fit():
    network = native.Network()
    with pytest.raises(ValueError, match="expected the stem as the first layer"):
        network.downsampling(weight(8, 8, 3, 3), weight(8))
    with pytest.raises(ValueError, match=re.escape("weight1: expected sides of at least 1, found (0, 3, 3, 3)")):
        network.stem(weight(0, 3, 3, 3), weight(0), weight(4, 0, 3, 3), weight(4))
    network.stem(weight(8, 3, 3, 3), weight(8), weight(16, 8, 3, 3), weight(16))
    with pytest.raises(ValueError, match=re.escape("head weight: expected shape (10, 16), found (10, 17)")):
        network.head(weight(10, 17), weight(10))
    with pytest.raises(ValueError, match="expected the stem as the first layer"):
        network.stem(weight(8, 3, 3, 3), weight(8), weight(16, 8, 3, 3), weight(16))


def test_pyramids_that_do_not_fit():
    network = native.Network()
    with pytest.raises(ValueError, match="expected the stem as the first layer"):
        network.lateral(weight(8, 16), weight(8))
    network.stem(weight(8, 3, 3, 3), weight(8), weight(16, 8, 3, 3), weight(16))
    with pytest.raises(ValueError, match="expected one of 0 levels, found 0"):
        network.enlarging(0)
    with pytest.raises(ValueError, match="expected scores in front of their output"):
        network.scores_output()
    network.lateral(weight(8, 16), weight(8))
    with pytest.raises(ValueError, match=re.escape("lateral weight: expected shape (8, 16), found (9, 16)")):
        network.lateral(weight(9, 16), weight(9))
    network.lateral(weight(8, 16), weight(8))
    for index in (-1, 0, 2):
        with pytest.raises(ValueError, match=f"expected each lateral's level once, .* first, found level {index}"):
            network.pyramid_level(index)
    network.pyramid_level(1)
    with pytest.raises(ValueError, match="expected at most 8 laterals, in front of all levels"):
        network.lateral(weight(8, 8), weight(8))
    network.scores(weight(5, 8), weight(5))
    with pytest.raises(ValueError, match=re.escape("scores weight: expected shape (5, 8), found (4, 8)")):
        network.scores(weight(4, 8), weight(4))
    network.pyramid_level(0)
    with pytest.raises(ValueError, match="expected each lateral's level once"):
        network.pyramid_level(0)
    with pytest.raises(ValueError, match="expected one of 2 levels, found 2"):
        network.enlarging(2)


def test_what_the_processor_cannot():
    with pytest.raises(ValueError, match=r"precision: expected fp32, bf16 or int8, found fp64"):
        native.Network(precision="fp64")
    with pytest.raises(
        ValueError, match=r"fp32: expected an instruction set of this processor that has it .* found 6502"
    ):
        native.Network(isa="6502")
    for precision in ("bf16", "int8"):
        with pytest.raises(ValueError, match="processor that has it") as error:
            native.Network(isa="6502", precision=precision)
        names = re.search(r"\((.*)\)", str(error.value))[1].split(", ")
        assert len(set(names)) == len(names) and set(names) <= set(native.supported())


@pytest.mark.parametrize("kind", ["floats", "bytes"])
def test_sides_that_are_too_large(kind, tmp_path):
    """As a number of 32 bits, 2^32 + 1 would be 1."""
    network, many = tiny_network(), 2**32 + 1
    shape = (many, 3, 1, 1) if kind == "floats" else (many, 1, 1, 3)
    size = 12 * many if kind == "floats" else 3 * many
    with (tmp_path / "sparse").open("wb") as file:
        try:
            file.truncate(size)
        except OSError:
            pytest.skip("no sparse files of this size here")
    pixels = np.memmap(tmp_path / "sparse", np.float32 if kind == "floats" else np.uint8, "r", shape=shape)
    with pytest.raises(ValueError, match=f"^expected sides below 2\\^31, found {many}$"):
        network(pixels)
    with pytest.raises(ValueError, match=r"^expected pictures of less than 2\^31 pixels, found 65536x65536$"):
        network(np.memmap(tmp_path / "sparse", np.uint8, "r", shape=(1, 2**16, 2**16, 3)))


def test_a_refused_call_is_none():
    network = native.Network()
    network.stem(weight(8, 3, 3, 3), weight(8), weight(18, 8, 3, 3), weight(18))
    with pytest.raises(ValueError, match="expected pictures of 3 channels, found 4"):
        network(weight(1, 4, 32, 32))
    with pytest.raises(ValueError, match="expected a stem with mean and std for uint8 pictures"):
        network(np.zeros((1, 32, 32, 3), np.uint8))
    network.head(weight(10, 18), weight(10))
    assert network(weight(1, 3, 32, 32))[0].shape == (1, 10)


def test_layers_are_all_there_before_the_first_call():
    network = tiny_network()
    network(weight(1, 3, 32, 32))
    for add in (network.output, lambda: network.head(weight(10, 18), weight(10))):
        with pytest.raises(ValueError, match=r"^expected all layers before the first call, found one behind it$"):
            add()
    assert len(network(weight(1, 3, 32, 32))) == 1


def beats_within(task):
    """How often another thread of Python ran while `task` did."""
    beats, ended = [], threading.Event()

    def beat():
        while not ended.wait(0.001):
            beats.append(time.perf_counter())

    with ThreadPoolExecutor() as pool:
        beating = pool.submit(beat)
        start = time.perf_counter()
        task()
        end = time.perf_counter()
        ended.set()
        beating.result()
    margin = (end - start) / 10
    return sum(start + margin < at < end - margin for at in beats)


def test_others_run_during_a_call():
    network, images = tiny_network(isa="plain", threads=1), weight(4, 3, 512, 512)
    assert beats_within(lambda: network(images)) > 5


def test_others_run_while_a_layer_is_added():
    network = native.Network(isa="plain", precision="int8", threads=1)
    network.stem(weight(8, 3, 3, 3), weight(8), weight(64, 8, 3, 3), weight(64))
    large = np.ones((8192, 64, 3, 3), np.float32), np.ones(8192, np.float32)
    assert beats_within(lambda: network.downsampling(*large)) > 5


@pytest.mark.parametrize(("isa", "precision"), MODES)
def test_calls_at_once_change_nothing(isa, precision):
    """They share the processors, so that each has fewer threads than alone."""
    images = [weight(batch, 3, 65, 97) for batch in (1, 2, 3, 5)]
    networks = [tiny_network(encoder=True, isa=isa, precision=precision, threads=threads) for threads in (0, 2, 3, 4)]
    expected = [network(some)[0] for network, some in zip(networks, images, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = pool.map(lambda network, some: network(some)[0], networks, images)
            assert all((a == b).all() for a, b in zip(found, expected, strict=True))


def right_in_a_forked_process(task):
    """Whether `task` gives true there, and in time."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if task() else 1)
        finally:
            os._exit(2)
    ended = 0
    try:
        for _ in range(3000):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            time.sleep(0.02)
        return ended and os.waitstatus_to_exitcode(status) == 0
    finally:
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_forked_process(recwarn):
    """The threads are not there any more: it starts its own, and leaves alone what the others slept on."""
    network = tiny_network(threads=3)
    images = weight(2, 3, 32, 32)
    expected = network(images)[0]
    time.sleep(0.05)  # the threads sleep by now
    assert sys.getrefcount(network) == 2

    def task():
        nonlocal network
        right = (network(images)[0] == expected).all()
        del network
        return right

    assert right_in_a_forked_process(task)


def test_a_process_forked_during_a_call(recwarn):
    """One thread has the network, and all of its threads are at work: in the child none of them ever ends."""
    network, images, many = tiny_network(isa="plain", threads=3), weight(2, 3, 32, 32), weight(8, 3, 512, 512)
    expected = network(images)[0]

    def task():
        with ThreadPoolExecutor(2) as pool:  # both find that there was a fork
            return all((found[0] == expected).all() for found in pool.map(network, [images] * 4))

    for _ in range(5):
        calling = threading.Thread(target=network, args=(many,))
        calling.start()
        time.sleep(0.02)
        right = right_in_a_forked_process(task)
        calling.join()
        assert right


X86 = platform.system() == "Linux" and platform.machine() == "x86_64"
AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
FLAGS = {
    "plain": set(),
    "avx2": {"avx2", "fma"},
    "avx_vnni": {"avx2", "fma", "avx_vnni"},
    "avx512": AVX512,
    "avx512_bf16": {*AVX512, "avx512_bf16"},
    "avx512_vnni": {*AVX512, "avx512_vnni"},
    "avx512_vbmi": {*AVX512, "avx512_vnni", "avx512vbmi"},
    "amx": {*AVX512, "avx512_bf16", "avx512_vnni", "avx512vbmi", "amx_tile", "amx_bf16", "amx_int8"},
}


def system_saves_tiles():
    request, tile_data, arch_prctl = 0x1023, 18, 158
    return ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0


@pytest.mark.skipif(not X86, reason="tells the instruction sets on Linux and x86-64 alone")
def test_the_best_instruction_set_is_chosen():
    """By what the system says, whatever the engine finds out by itself; `built` is what the compiler knew."""
    line = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    flags = set(line[1].split())
    assert set(native.built()) <= set(FLAGS) and {"plain", "avx2", "avx512"} <= set(native.built())
    expected = [isa for isa in FLAGS if isa in native.built() and FLAGS[isa] <= flags]
    if "amx" in expected and not system_saves_tiles():
        expected.remove("amx")
    assert native.supported() == expected

    def best(*names):
        return next((name for name in names if name in expected), None)

    fp32 = best("amx", "avx512", "avx2", "plain")
    bf16 = best("amx", "avx512_bf16")
    int8 = best("amx", "avx512_vnni", "avx2")  # the second is a part of avx512
    assert tiny_network(precision="fp32").isa == fp32
    network = tiny_network(precision="bf16")
    assert (network.isa, network.precision) == ((bf16.removesuffix("_bf16"), "bf16") if bf16 else (fp32, "fp32"))
    if int8:
        assert tiny_network(precision="int8").isa == int8.removesuffix("_vnni")
    else:
        with pytest.raises(ValueError, match="expected an instruction set of this processor"):
            tiny_network(precision="int8")
