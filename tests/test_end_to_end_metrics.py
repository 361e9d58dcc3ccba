"""`aigc evaluate` and `selfcheck` as commands, beside torch-fidelity on the same two folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import inception_random
import numpy as np
import pytest
from PIL import Image

from aigc_jax.metrics import inception_weights


def aigc(*argv):
    """A process of its own, with XLA's optimisations on."""
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-m", "aigc_jax", *map(str, argv)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.npz"
    inception_weights.save(inception_random.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of 24 images: sizes, subfolders and endings as users have them."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.RandomState(0)
    for name in ("real", "fake"):
        (root / name / "more").mkdir(parents=True)
        for i in range(24):
            noise = rng.randint(0, 256 if name == "real" else 128, (6, 6, 3), np.uint8)
            image = Image.fromarray(noise).resize((48, (32, 40)[i % 2]), Image.Resampling.BICUBIC)
            image.save(
                root / name / ("more" if i % 3 else ".") / f"{i:03d}.{'PNG' if i % 2 else 'png'}"
            )
    return root


@pytest.fixture(scope="module")
def ours(weights, folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "scores.json"
    flags = [f"--weights={weights}", "--metrics=fid,is,kid,prdc", f"--json={out}"]
    done = aigc("evaluate", f"--real={folders / 'real'}", f"--fake={folders / 'fake'}", *flags)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done


THEIRS = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import inception_random
inception_random.allow_torchvision()
import torch, torch_fidelity
path, fake, real = sys.argv[2:]
torch.save({k: torch.from_numpy(x) for k, x in inception_random.state_dict().items()}, path)
print(json.dumps(torch_fidelity.calculate_metrics(
    input1=fake, input2=real, samples_find_deep=True, isc=True, fid=True, kid=True,
    kid_subset_size=24, batch_size=1, cuda=False, cache=False, verbose=False,
    feature_extractor_weights_path=path)))
"""


def test_equal_to_torch_fidelity(ours, folders, tmp_path):
    inception_random.allow_torchvision()
    pytest.importorskip("torch_fidelity")
    # In a process of its own, as its data loader forks.
    paths = [Path(__file__).parent, tmp_path / "random.pth", folders / "fake", folders / "real"]
    command = [sys.executable, "-c", THEIRS, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    found = ours[0]
    assert found["fid"]["value"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert found["is"]["value"] == pytest.approx(theirs["inception_score_mean"], rel=1e-3)
    assert found["is"]["std"] == pytest.approx(theirs["inception_score_std"], rel=1e-2)
    kid = theirs["kernel_inception_distance_mean"]
    assert found["kid"]["value"] == pytest.approx(kid, rel=1e-3, abs=1e-6)


def test_what_the_command_tells(ours, weights):
    found, done = ours
    assert list(found) == ["fid", "is", "kid", "prdc", "provenance"]
    assert all(next(iter(found[name])) == "value" for name in ("fid", "is", "kid"))
    made = found["provenance"]
    wanted = {"protocol": "tf1", "precision": "highest", "n_real": 24, "n_fake": 24, "seed": 0}
    assert wanted.items() <= made.items() and len(made["sha256"]) == 64
    assert "fid" in done.stdout and "Measured by inception-2015-12-05 tf1" in done.stdout
    assert "none of the published Inception files" in done.stderr
    assert "24 real and 24 generated images" in done.stderr


def test_selfcheck_names_weights_that_are_not_the_official_ones(weights):
    done = aigc("selfcheck", f"--weights={weights}")
    assert done.returncode == 0 and "NOT a published file" in done.stdout
