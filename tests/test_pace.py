import pytest

from swiftformer.train import pace
from swiftformer.train.pace import Pace


@pytest.mark.parametrize(
    ("seconds", "accumulation", "expected"),
    [
        (0.01, 1, [0, 1, 21, 41]),  # quick batches: every twentieth
        (1.0, 1, [0, 1, 6, 11]),  # slow ones: every five seconds
        (60.0, 1, [0, 1, 2, 3]),  # each, if it takes that long
        (1.0, 8, [0, 8, 16, 24]),  # between updates alone
        (0.01, 8, [0, 8, 24, 40]),
    ],
)
def test_when_the_loss_is_looked_at(seconds, accumulation, expected):
    found, place = [], Pace(0, accumulation)
    for batch in range(expected[-1] + 1):
        if batch == place.next:
            place.looked(batch, seconds * (batch - (found[-1] if found else 0)))
            found.append(batch)
    assert found == expected


def test_the_first_batch_may_take_long(monkeypatch):
    """A compilation in it does not slow down the rest of the epoch."""
    place = Pace(0, 1)
    place.looked(0, 0.0)
    place.looked(1, 90.0)
    assert place.next == 2
    place.looked(2, 0.05)
    assert place.next == 2 + pace.LOG_EVERY
