"""Variables of the environment, set for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# OpenVINO and NNCF take this for a CI job, and send no usage data: no person was asked, and the process that they fork
# for it can wait for ever.
NO_USAGE_DATA = {"CI": "true", "NNCF_CI": "1"}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """With these variables; behind it they are as they were."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def import_openvino() -> Any:
    """The package, which tells of each import unless it is kept from it."""
    with environment(NO_USAGE_DATA):
        import openvino

    return openvino
