"""Optional libraries that other people's implementations need; `import cascade` makes torchvision importable on any torch."""

import pytest


@pytest.fixture(scope="session")
def torchvision():
    """torchvision, or a skip where it is not installed."""
    return pytest.importorskip("torchvision")


@pytest.fixture(scope="session")
def cleanfid_fid(torchvision):
    """The module cleanfid.fid, or a skip where clean-fid is not installed."""
    return pytest.importorskip("cleanfid.fid")
