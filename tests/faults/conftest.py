"""Runs in processes of their own, that can be killed."""

import sys

import pytest


@pytest.fixture(scope="session")
def forks():
    if sys.platform != "linux":
        pytest.skip("looks into /proc")
    from forks import Forks

    made = Forks()
    yield made
    made.close()
