"""Inception's weights: every published form gives the same arrays, anything else is refused."""

import functools
import hashlib
import http.server
import logging
import pickle
import threading

import inception_random
import numpy as np
import pytest

from aigc_jax.errors import UserError
from aigc_jax.metrics import inception_weights
from aigc_jax.metrics.inception_weights import CONVS, SHAPES


@functools.cache
def official():
    rng = np.random.default_rng(0)
    return {name: rng.random(shape, np.float32) for name, shape in SHAPES.items()}


def assert_official(arrays):
    assert list(arrays) == list(SHAPES)
    for name, array in official().items():
        assert arrays[name].dtype == np.float32, name
        np.testing.assert_array_equal(arrays[name], array, err_msg=name)


def as_jax_fid(arrays):
    """Nested dicts with flax's names and layouts."""
    renamed = {"running_mean": "mean", "running_var": "var", "bias": "bias", "weight": "scale"}
    tree = {"fc": {"kernel": arrays["fc.weight"].T, "bias": arrays["fc.bias"]}}
    for name in CONVS:
        *scope, last = name.split(".")
        node = functools.reduce(lambda d, key: d.setdefault(key, {}), scope, tree)
        norm = {new: arrays[f"{name}.bn.{old}"] for old, new in renamed.items()}
        kernel = arrays[f"{name}.conv.weight"].transpose(2, 3, 1, 0)
        node[last] = {"conv": {"kernel": kernel}, "bn": norm}
    return tree


# ---- The table


def test_table_has_the_official_size():
    assert len(CONVS) == 94 and len(SHAPES) == 472
    assert sum(np.prod(shape) for shape in SHAPES.values()) == 23_885_392


@pytest.fixture(scope="module")
def torch_fidelity():
    """torch-fidelity's network, of a checkpoint."""
    inception_random.allow_torchvision()
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return lambda path: FeatureExtractorInceptionV3(
        "", ["2048"], feature_extractor_weights_path=str(path)
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The arrays as torch.save writes them."""
    torch = pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({name: torch.from_numpy(array) for name, array in official().items()}, path)
    return path


@pytest.fixture(scope="module")
def module_checkpoint(checkpoint, torch_fidelity):
    """The state dict of torch-fidelity's module, which read `checkpoint`: 566 entries."""
    import torch

    states = torch_fidelity(checkpoint).state_dict()
    path = checkpoint.with_name("module.pth")
    torch.save({"model": {f"module.{n}": v for n, v in states.items()}, "epoch": 1}, path)
    return states, path


def test_table_is_torch_fidelitys_state_dict(module_checkpoint):
    states, _ = module_checkpoint
    shapes = {name: tuple(value.shape) for name, value in states.items()}
    batches = [name for name in shapes if name.endswith("num_batches_tracked")]
    assert len(batches) == 94
    assert [(n, s) for n, s in shapes.items() if n not in batches] == list(SHAPES.items())


# ---- Every form gives the same arrays


def test_checkpoint(checkpoint, caplog):
    weights = inception_weights.load(checkpoint)
    assert_official(weights.arrays)
    assert weights.path == str(checkpoint) and not weights.official
    assert weights.sha256 == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and weights.sha256[:8] in record.getMessage()


def test_known_file_is_official_and_passes_in_silence(checkpoint, caplog, monkeypatch):
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    monkeypatch.setattr(inception_weights, "SHA256", digest)
    assert inception_weights.load(checkpoint).official
    assert not caplog.records


def test_checkpoint_of_566_entries_under_prefixes(module_checkpoint):
    assert_official(inception_weights.load(module_checkpoint[1]).arrays)


def test_own_npz(tmp_path):
    path = tmp_path / "x.npz"
    inception_weights.save(official(), path)
    assert_official(inception_weights.load(path).arrays)
    with np.load(path) as file:
        assert file.files == list(SHAPES)


def test_safetensors(tmp_path):
    pytest.importorskip("safetensors.numpy").save_file(official(), tmp_path / "x.safetensors")
    assert_official(inception_weights.load(tmp_path / "x.safetensors").arrays)


@pytest.mark.parametrize("protocol", [4, 5])
def test_jax_fids_pickle(protocol, tmp_path):
    (tmp_path / "x.pickle").write_bytes(pickle.dumps(as_jax_fid(official()), protocol))
    assert_official(inception_weights.load(tmp_path / "x.pickle").arrays)


# ---- TensorFlow's GraphDef

# By Szegedy's numbering of the towers, as published conversions have it.
SCOPES = {
    "conv": "Conv2d_1a_3x3",
    "conv_4": "Conv2d_4a_3x3",
    "mixed/conv": "Mixed_5b.branch1x1",
    "mixed/tower/conv_1": "Mixed_5b.branch5x5_2",
    "mixed_1/tower_1/conv_2": "Mixed_5c.branch3x3dbl_3",
    "mixed_2/tower_2/conv": "Mixed_5d.branch_pool",
    "mixed_3/conv": "Mixed_6a.branch3x3",
    "mixed_3/tower/conv_2": "Mixed_6a.branch3x3dbl_3",
    "mixed_4/tower/conv_1": "Mixed_6b.branch7x7_2",
    "mixed_5/tower_1/conv_3": "Mixed_6c.branch7x7dbl_4",
    "mixed_6/conv": "Mixed_6d.branch1x1",
    "mixed_7/tower_2/conv": "Mixed_6e.branch_pool",
    "mixed_8/tower/conv": "Mixed_7a.branch3x3_1",
    "mixed_8/tower_1/conv_3": "Mixed_7a.branch7x7x3_4",
    "mixed_9/tower/conv": "Mixed_7b.branch3x3_1",
    "mixed_9/tower/mixed/conv": "Mixed_7b.branch3x3_2a",
    "mixed_9/tower/mixed/conv_1": "Mixed_7b.branch3x3_2b",
    "mixed_10/tower_1/conv_1": "Mixed_7c.branch3x3dbl_2",
    "mixed_10/tower_1/mixed/conv": "Mixed_7c.branch3x3dbl_3a",
    "mixed_10/tower_1/mixed/conv_1": "Mixed_7c.branch3x3dbl_3b",
    "mixed_10/tower_2/conv": "Mixed_7c.branch_pool",
}


def test_scopes():
    scopes = dict(inception_weights._scopes())
    assert {scope: scopes[scope] for scope in SCOPES} == SCOPES
    assert sorted(scopes.values()) == sorted(CONVS)


def graph(arrays):
    """A GraphDef that protobuf and TensorBoard's copy of TensorFlow's code write."""
    pb = pytest.importorskip("tensorboard.compat.proto.graph_pb2")  # generated from TensorFlow's
    make_tensor_proto = pytest.importorskip("tensorboard.util.tensor_util").make_tensor_proto
    tree, made = as_jax_fid(arrays), pb.GraphDef()
    made.node.add(name="DecodeJpeg/contents", op="Placeholder").attr["shape"].shape.dim.add(size=-1)
    made.node.add(name="sizes", op="Const").attr["value"].tensor.CopyFrom(make_tensor_proto([1, 2]))

    def add(name, array):
        node = made.node.add(name=name, op="Const")
        node.attr["dtype"].type = 1
        node.attr["value"].tensor.CopyFrom(make_tensor_proto(array))

    for scope, name in inception_weights._scopes():
        unit = functools.reduce(dict.__getitem__, name.split("."), tree)
        add(f"{scope}/conv2d_params", unit["conv"]["kernel"])
        for theirs, ours in zip(
            ("gamma", "beta", "moving_mean", "moving_variance"),
            ("scale", "bias", "mean", "var"),
            strict=True,
        ):
            add(f"{scope}/batchnorm/{theirs}", unit["bn"][ours])
        made.node.add(name=scope, op="Relu", input=[f"{scope}/CheckNumerics"])
    add("softmax/weights", tree["fc"]["kernel"])
    add("softmax/biases", tree["fc"]["bias"])
    return made


def test_tensorflows_graph_whole_and_damaged(tmp_path):
    data = graph(official()).SerializeToString()
    path = tmp_path / "classify_image_graph_def.pb"
    path.write_bytes(data)
    assert_official(inception_weights.load(path).arrays)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="is a damaged GraphDef"):
        inception_weights.load(path)


def test_damage_of_a_graph_is_told(tmp_path):
    made = graph(zeros())
    del made.node[8:]
    data, rng, path = made.SerializeToString(), np.random.default_rng(0), tmp_path / "x.pb"
    for place in rng.integers(len(data), size=300):
        near = np.frombuffer(data, np.uint8).copy()
        near[[place, rng.integers(200)]] = rng.integers(256)
        path.write_bytes(near.tobytes())
        with pytest.raises(UserError, match=r"x\.pb (lacks|is a damaged|is no|is a web page)"):
            inception_weights.load(path)


def test_small_graph_is_another_network(tmp_path):
    path = tmp_path / "x.pb"
    path.write_bytes(b"\n\x07\n\x01x\x12\x02No")
    with pytest.raises(UserError, match=r"lacks: Conv2d_1a_3x3\.conv\.weight.*and 469 more"):
        inception_weights.load(path)


@pytest.mark.parametrize(
    "data",
    [
        b"\n\x02\n\x05",  # a name beyond its node
        b"\n\x0b\n" + b"\xff" * 10,  # a length without end
        b"\n\x02\n\x00\x0b",  # a group
        b"\n\x0a\n\x01x*\x05\x12\x03B\x01\x00",  # a tensor that is cut
    ],
)
def test_graphs_that_are_none(data, tmp_path):
    (tmp_path / "x.pb").write_bytes(data)
    with pytest.raises(UserError, match=r"is a damaged GraphDef|lacks"):
        inception_weights.load(tmp_path / "x.pb")


# ---- Refusals


def zeros():
    """The right arrays, taking no memory and next to no time."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in SHAPES.items()}


def checked(arrays):
    return inception_weights._checked(arrays, "w.pth")


def test_zeros_pass():
    assert list(checked(zeros())) == list(SHAPES)


def infinite():
    return {"fc.bias": np.full(1008, np.inf, np.float32)}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"fc.bias": None}, r"w\.pth lacks: fc\.bias\. Take pt_inception"),
        ({n: None for n in list(SHAPES)[:5]}, r"lacks: Conv2d_1a.*bn.bias, and 2 more"),
        ({"extra": np.zeros(1)}, "holds what the network has not: extra"),
        (
            {"fc.bias": np.zeros(7, np.float32)},
            r"fc\.bias float32\(7,\), not float32\(1008,\)",
        ),
        ({"fc.bias": np.zeros(1008, np.int64)}, r"fc\.bias int64\(1008,\), not float32"),
        ({"fc.bias": np.zeros(1008, np.complex64)}, r"fc\.bias complex64"),
        ({"fc.bias": np.full(1008, np.nan, np.float32)}, r"values that are not finite: fc\.bias"),
        ({"fc.bias": np.full(1008, 1e300)}, r"values that are not finite: fc\.bias"),
        (
            {"AuxLogits.conv0.conv.weight": np.zeros((128, 768, 1, 1))},
            "torchvision's inception_v3, a different network: FID with it is another metric",
        ),
        (
            {"fc.weight": np.zeros((1000, 2048)), "fc.bias": np.zeros(1000)},
            "a head of 1000 classes, where FID's Inception has 1008",
        ),
        ({"fc.weight": np.float32(1)}, r"fc\.weight float32\(\), not"),
    ],
)
def test_other_arrays_are_refused_by_name(change, match):
    arrays = {n: a for n, a in (zeros() | change).items() if a is not None}
    with pytest.raises(UserError, match=match) as error:
        checked(arrays)
    assert "\n" not in str(error.value)


def test_torchvisions_own_network_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    inception_random.allow_torchvision()
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        network = torchvision.models.inception_v3(weights=None, init_weights=False)
    small = {n: torch.zeros(v.shape) for n, v in network.state_dict().items()}
    torch.save(
        {n: v for n, v in small.items() if "Mixed" not in n and n != "fc.weight"},
        tmp_path / "x.pth",
    )
    with pytest.raises(UserError, match="torchvision's inception_v3, a different network"):
        inception_weights.load(tmp_path / "x.pth")


def test_jax_fids_pickle_of_1000_classes(tmp_path):
    tree = {"Conv2d_1a_3x3": {"conv": {"kernel": np.zeros((3, 3, 3, 32), np.float32)}}}
    tree["fc"] = {"kernel": np.zeros((2048, 1000), np.float32), "bias": np.zeros(1000, np.float32)}
    (tmp_path / "x.pickle").write_bytes(pickle.dumps(tree))
    with pytest.raises(UserError, match="a head of 1000 classes"):
        inception_weights.load(tmp_path / "x.pickle")


def test_two_copies_in_one_file_are_refused(tmp_path):
    first = np.zeros(SHAPES["Conv2d_1a_3x3.conv.weight"], np.float32)
    arrays = {f"{p}Conv2d_1a_3x3.conv.weight": first for p in ("model.", "ema.")}
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=r"more than once: under \['model\.', 'ema\.'\]"):
        inception_weights.load(tmp_path / "x.npz")


def test_file_that_is_not_there():
    with pytest.raises(UserError, match=r"none\.pth cannot be read"):
        inception_weights.load("none.pth")


# ---- The official file: environment, cache, download


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(inception_weights.ENVIRONMENT, raising=False)
    return tmp_path / "cache" / "aigc_jax"


@pytest.fixture
def server(monkeypatch, cache):
    """A web server on this machine; `serve(data, ...)` sets what the official address gives."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests += 1
            data, status, length = self.server.content
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    address = f"http://127.0.0.1:{server.server_port}/weights.pth"
    monkeypatch.setattr(inception_weights, "ADDRESS", address)
    server.requests = 0

    def serve(data, status=200, length=None, digest=None):
        digest = digest or hashlib.sha256(data).hexdigest()
        monkeypatch.setattr(inception_weights, "SHA256", digest)
        server.content = data, status, len(data) if length is None else length
        return server

    yield serve
    server.shutdown()
    thread.join()
    server.server_close()


def refused_download(cache, match):
    with pytest.raises(UserError, match=match) as error:
        inception_weights.load()
    text = str(error.value)
    assert inception_weights.ADDRESS in text and "--weights FILE" in text and "\n" not in text
    assert f"put it at {cache / inception_weights.FILE}" in text
    assert list(cache.iterdir()) == []


def test_official_file_is_downloaded_once(server, cache, checkpoint, capfd):
    served = server(checkpoint.read_bytes())
    weights = inception_weights.load()
    assert_official(weights.arrays)
    assert weights.official and weights.path == str(cache / inception_weights.FILE)
    assert [path.name for path in cache.iterdir()] == [inception_weights.FILE]
    assert "100%" in capfd.readouterr().err
    inception_weights.load()
    assert served.requests == 1


def test_download_of_another_file_is_refused(server, cache):
    server(b"something else", digest="0" * 64)
    refused_download(cache, "got 14 bytes, sha256 f41f3fa6..., not 00000000...")


def test_download_that_is_cut_short_is_refused(server, cache):
    server(b"something", length=100, digest="0" * 64)
    refused_download(cache, "could not be downloaded .*(got 9 bytes of 100|IncompleteRead)")


def test_download_that_is_not_found(server, cache):
    server(b"", status=404)
    refused_download(cache, r"could not be downloaded \(HTTP Error 404")


def test_download_without_a_network(cache, monkeypatch):
    with http.server.HTTPServer(("127.0.0.1", 0), None) as closed:
        address = f"http://127.0.0.1:{closed.server_port}/x"
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(inception_weights, "ADDRESS", address)
    refused_download(cache, "could not be downloaded .*refused")


def test_download_that_hangs(cache, monkeypatch, server):
    import socket

    monkeypatch.setattr(inception_weights, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        monkeypatch.setattr(inception_weights, "ADDRESS", address)
        refused_download(cache, "could not be downloaded .*timed out")


def test_cache_that_cannot_be_made(tmp_path, monkeypatch, cache):
    cache.parent.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="could not be downloaded"):
        inception_weights.load()


def test_spoilt_file_in_the_cache_is_told(cache):
    cache.mkdir(parents=True)
    (cache / inception_weights.FILE).write_bytes(b"spoilt")
    with pytest.raises(UserError, match="not the official file any more: delete it"):
        inception_weights.load()


def test_environment_names_the_file(cache, checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv(inception_weights.ENVIRONMENT, str(tmp_path / "mine.pth"))
    with pytest.raises(UserError, match=r"mine\.pth cannot be read"):
        inception_weights.load()
    monkeypatch.setenv(inception_weights.ENVIRONMENT, str(checkpoint))
    assert inception_weights.load().path == str(checkpoint)


def test_cache_is_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(inception_weights.ENVIRONMENT, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / ".cache" / "aigc_jax" / "pt_inception-2015-12-05-6726825d.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"spoilt")
    with pytest.raises(UserError, match=str(path)):
        inception_weights.load()
