import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from swiftformer.train.memory import keep_freed_memory
assert {keep} is False or keep_freed_memory()
x = torch.ones(12_000_000)  # more than glibc ever keeps by itself
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        y = x * 2
        del y
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc alone")
def test_freed_memory_is_mostly_used_again():
    found = [
        int(subprocess.run([sys.executable, "-c", FAULTS.format(keep=keep)], capture_output=True, check=True).stdout)
        for keep in (True, False)
    ]
    assert found[0] < 0.8 * found[1], found
