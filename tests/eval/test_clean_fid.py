"""clean-fid called directly and through ours: the same folders, the same network, the same numbers."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.eval.files import file_sha256
from cascade.eval.frechet import frechet_distance
from cascade.eval.images import image_folder
from cascade.eval.inception import Inception
from cascade.eval.references import measure
from cascade.eval.statistics import FeatureStatistics

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of 40 crops, 64x64, from two photographs."""
    data = pytest.importorskip("skimage.data")
    rng = np.random.default_rng(0)
    made = []
    for photo in (data.chelsea(), data.coffee()):
        folder = tmp_path_factory.mktemp("photos")
        for i in range(40):
            y, x = rng.integers(0, photo.shape[0] - 64), rng.integers(0, photo.shape[1] - 64)
            Image.fromarray(photo[y : y + 64, x : x + 64, :3]).save(folder / f"{i:02d}.png")
        made.append(folder)
    return made


class Layers(nn.Module):
    """A random network that sees position, colour and texture; a stand-in for Inception's."""

    def __init__(self, dimension: int):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 16, 7, 8)
        self.second = nn.Conv2d(16, dimension, 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.second(torch.relu(self.first(x))), 1)


class InceptionLike(nn.Module):
    """Has the interface of NVIDIA's TorchScript file."""

    def __init__(self):
        super().__init__()
        self.layers = Layers(2048)

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        x = F.interpolate(x, size=(299, 299), mode="bilinear")
        return self.layers((x - 128) / 128).flatten(1)


@pytest.fixture(scope="module")
def torchscript(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "inception-2015-12-05.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(InceptionLike().eval()).save(str(path))
    return path


class SmallExtractor:
    """16 features by clean-fid's own resize; as ours and, by `network`, as clean-fid's custom extractor."""

    name, resize_mode, weights_hash = "small", "clean", "0" * 64

    def __init__(self):
        self.network = nn.Sequential(Layers(16), nn.Flatten()).eval()

    def __call__(self, images):
        from cleanfid.resize import build_resizer

        resized = np.stack([build_resizer("clean")(image) for image in images])
        with torch.no_grad():
            return self.network(torch.from_numpy(resized).permute(0, 3, 1, 2)).numpy()


def test_the_distance_of_two_photo_folders_equals_clean_fids(cleanfid_fid, folders):
    extractor = SmallExtractor()
    want = cleanfid_fid.compute_fid(
        *map(str, folders),
        mode="clean",
        custom_feat_extractor=extractor.network,
        device=torch.device("cpu"),
        num_workers=0,
        batch_size=7,
        verbose=False,
    )
    first, second = (measure(image_folder(folder), extractor, crop_rule=None) for folder in folders)
    got = frechet_distance(first.mean, first.cov, second.mean, second.cov)
    assert want > 1
    assert got == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("mode", ["clean", "legacy_tensorflow"])
def test_inception_features_equal_clean_fids(cleanfid_fid, folders, torchscript, mode):
    from cleanfid.inception_torchscript import InceptionV3W

    direct = InceptionV3W(str(torchscript.parent), download=False, resize_inside=mode == "legacy_tensorflow")
    settings = {"num_workers": 0, "device": torch.device("cpu"), "verbose": False}
    want = cleanfid_fid.get_folder_features(str(folders[0]), direct, mode=mode, **settings)
    ours = Inception(mode, weights=torchscript, sha256=file_sha256(torchscript))
    got = np.concatenate([ours(batch) for batch in image_folder(folders[0]).batches(16)])
    assert got.shape == (40, 2048)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_legacy_pytorch_features_equal_clean_fids(cleanfid_fid, folders, torchvision, tmp_path, monkeypatch):
    from cleanfid import inception_pytorch

    torch.manual_seed(0)
    monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: None)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, state: None)
    random_network = inception_pytorch.fid_inception_v3()
    monkeypatch.undo()
    weights = tmp_path / "random.pth"
    torch.save(random_network.state_dict(), weights)

    ours = Inception("legacy_pytorch", weights=weights, sha256=file_sha256(weights))
    monkeypatch.setattr(inception_pytorch, "load_state_dict_from_url", lambda *_, **__: random_network.state_dict())
    direct = cleanfid_fid.build_feature_extractor("legacy_pytorch", torch.device("cpu"), use_dataparallel=False)
    settings = {"num": 4, "num_workers": 0, "device": torch.device("cpu"), "verbose": False}
    want = cleanfid_fid.get_folder_features(str(folders[0]), direct, mode="legacy_pytorch", **settings)
    got = ours(next(image_folder(folders[0]).batches(4)))
    assert np.ptp(want) > 0
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_features_through_ours_give_clean_fids_distance_at_low_rank(cleanfid_fid):
    # 30 images, 64 features: both covariances are singular.
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(30, 64)), rng.normal(0.3, 2, size=(30, 64))
    statistics = [FeatureStatistics(64), FeatureStatistics(64)]
    for s, features in zip(statistics, (one, two), strict=True):
        s.update(features)
    got = frechet_distance(statistics[0].mean, statistics[0].cov, statistics[1].mean, statistics[1].cov)
    assert got == pytest.approx(cleanfid_fid.fid_from_feats(one, two), rel=1e-5)


def test_torchscript_of_another_hash_is_never_run(torchscript):
    with pytest.raises(ValueError, match="expected f58cb9b6"):
        Inception("legacy_tensorflow", weights=torchscript)


def test_unknown_modes_are_refused():
    with pytest.raises(ValueError, match="clean, legacy_tensorflow, legacy_pytorch"):
        Inception("legacy")
