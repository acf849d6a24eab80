"""Optional libraries that other people's implementations need, made importable on a CPU-only torch."""

import pytest


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, or a skip where it is not installed."""
    from cascade.eval.inception import import_torchvision

    try:
        return import_torchvision()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cleanfid_fid(torchvision):
    """The module cleanfid.fid, or a skip where clean-fid is not installed."""
    return pytest.importorskip("cleanfid.fid")
