"""Weight files against the libraries that write them; hostile and damaged ones are refused."""

import collections
import copyreg
import importlib.util
import io
import os
import pickle
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from aigc_jax import torch_weights
from aigc_jax.errors import UserError


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(params=["zip", "legacy"])
def torch_save(torch, request):
    new = request.param == "zip"
    return lambda what, path: torch.save(what, path, _use_new_zipfile_serialization=new)


def refused(path, match):
    with pytest.raises(UserError, match=match) as error:
        torch_weights.load(path)
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 600
    return text


def assert_same(arrays, expected):
    assert list(arrays) == list(expected)
    for name, want in expected.items():
        assert arrays[name].dtype == want.dtype and arrays[name].shape == want.shape, name
        np.testing.assert_array_equal(arrays[name], want, err_msg=name)


# ---- torch


def tensors(torch):
    base, kernel = torch.arange(20.0), torch.randn(4, 3, 2)
    return {
        "kernel": kernel,
        "permuted": kernel.permute(2, 0, 1),
        "shared": base[3:7],
        "strided": base[1::3],
        "half": kernel.half(),
        "brain": kernel.bfloat16(),
        "double": kernel.double(),
        "parameter": torch.nn.Parameter(kernel),
        "long": torch.arange(-3, 3),
        "int": torch.arange(3, dtype=torch.int32),
        "short": torch.arange(3, dtype=torch.int16),
        "char": torch.arange(-3, 3, dtype=torch.int8),
        "byte": torch.arange(3, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "complex": torch.randn(3, dtype=torch.complex64),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "tied": kernel,
    }


def as_numpy(torch, values):
    halves = (torch.float16, torch.bfloat16)
    return {
        name: (value.float() if value.dtype in halves else value).detach().numpy()
        for name, value in values.items()
    }


def test_tensors_of_torch(torch, torch_save, tmp_path):
    values = tensors(torch)
    torch_save(values, tmp_path / "x.pth")
    arrays = torch_weights.load(tmp_path / "x.pth")
    assert_same(arrays, as_numpy(torch, values))
    assert all(a.flags.c_contiguous and a.flags.writeable for a in arrays.values())
    assert not np.shares_memory(arrays["kernel"], arrays["tied"])


def test_state_dict_with_metadata_in_a_training_checkpoint(torch, torch_save, tmp_path):
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    content = {"state_dict": module.state_dict(), "optimizer": optimizer.state_dict()}
    content |= {"epoch": 3, "name": "x", "best": np.float64(0.5), "none": None, "lists": [1, [2.0]]}
    assert module.state_dict()._metadata
    torch_save(content, tmp_path / "x.pth")
    arrays = torch_weights.load(tmp_path / "x.pth")
    inner = {n: a for n, a in arrays.items() if n.startswith("state_dict.")}
    expected = as_numpy(torch, module.state_dict())
    assert_same(torch_weights.strip_prefix(inner, "state_dict."), expected)
    assert "optimizer.state.0.exp_avg" in arrays
    assert all(name.startswith(("state_dict.", "optimizer.state.")) for name in arrays)


def test_big_endian_archive(torch, tmp_path):
    values = {"a": torch.randn(3), "b": torch.randn(4).bfloat16(), "i": torch.arange(5)}
    torch.save(values, tmp_path / "little.pth")
    with (
        zipfile.ZipFile(tmp_path / "little.pth") as old,
        zipfile.ZipFile(tmp_path / "big.pth", "w") as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("/byteorder"):
                data = b"big"
            if "/data/" in name:
                width = {12: 4, 8: 2, 40: 8}[len(data)]
                data = np.frombuffer(data, f"u{width}").byteswap().tobytes()
            new.writestr(name, data)
    assert_same(torch_weights.load(tmp_path / "big.pth"), as_numpy(torch, values))


def test_torchscript_is_refused(torch, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    text = refused(tmp_path / "x.pt", "TorchScript archive: it holds code")
    assert "pt_inception-2015-12-05-6726825d.pth" in text


def test_whole_module_is_refused_by_its_name(torch, torch_save, tmp_path):
    torch_save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "asks for 'torch.nn.modules.linear.Linear'")


def test_lone_tensor_has_no_name(torch, torch_save, tmp_path):
    torch_save(torch.ones(3), tmp_path / "x.pth")
    refused(tmp_path / "x.pth", "holds no named arrays")


def test_strip_prefix():
    arrays = {"module.a": np.ones(1), "module.b": np.ones(2)}
    assert list(torch_weights.strip_prefix(arrays, "module.")) == ["a", "b"]
    assert list(torch_weights.strip_prefix({"a": np.ones(1)}, "module.")) == ["a"]
    with pytest.raises(UserError, match=r"with and without 'module\.'"):
        torch_weights.strip_prefix(arrays | {"a": np.ones(3)}, "module.")


# The heads of LPIPS 0.1, as PyTorch of 2018 saved them on a GPU.
LPIPS = {
    "alex": "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
    "vgg": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    "squeeze": "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76",
}


@pytest.mark.parametrize("network", LPIPS)
def test_published_file_of_2018(network, torch):
    package = importlib.util.find_spec("lpips")
    if package is None:
        pytest.skip("lpips, whose wheel holds the file, is not installed")
    path = Path(package.origin).parent / "weights" / "v0.1" / f"{network}.pth"
    assert torch_weights.sha256(path) == LPIPS[network]
    expected = torch.load(path, map_location="cpu", weights_only=True)
    assert_same(torch_weights.load(path), as_numpy(torch, expected))


# ---- safetensors, npz, pickles of numpy


def test_safetensors_of_its_own_library(torch, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    values = {n: v.detach().clone().contiguous() for n, v in tensors(torch).items()}
    save_file(values, tmp_path / "x.safetensors", metadata={"format": "pt"})
    arrays = torch_weights.load(tmp_path / "x.safetensors")
    assert_same({name: arrays[name] for name in values}, as_numpy(torch, values))
    assert len(arrays) == len(values)


def test_safetensors_dtype_without_numpy(torch, tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"w": torch.ones(3).to(torch.float8_e4m3fn)}, tmp_path / "x.safetensors")
    refused(tmp_path / "x.safetensors", "holds 'w' in 'F8_E4M3', which is not read")


def safetensors(path, header, data=b""):
    header = header if isinstance(header, bytes) else repr(header).replace("'", '"').encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 12]}}, "cut short at 'a'"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 8]}}, "cut short at 'a'"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, -8]}}, "cut short at 'a'"),
        ({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 8]}}, "more arrays than"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, "no whole number"),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, "8 bytes for"),
        ({n: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} for n in "ab"}, "at 'b'"),
        ({"a": {"shape": [2]}}, "damaged or cut short"),
        (b'{"a": ' + b"[" * 100_000, "damaged or cut short"),
        (b'{"a": 3}', "damaged or cut short"),
        (b"{}", "no named arrays"),
    ],
)
def test_safetensors_of_false_headers(entries, match, tmp_path):
    refused(safetensors(tmp_path / "x.safetensors", entries, bytes(8)), match)


def nested():
    x = np.random.default_rng(0).standard_normal((3, 4, 5, 6)).astype(np.float32)
    inner = {
        "kernel": x,
        "fortran": np.asfortranarray(x),
        "transposed": x.transpose(2, 3, 1, 0),
        "big": x.astype(">f4"),
        "half": x.astype(np.float16),
        "long": np.arange(5),
        "zero": np.zeros((0, 3)),
        "scalar": np.array(3.0),
        "bool": np.array([True, False]),
    }
    return inner, {"Mixed": {"branch": inner, "words": np.array("text")}, "n": 3, "l": [{}, x]}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_pickles_of_numpy_arrays(protocol, core, tmp_path):
    inner, tree = nested()
    data = pickle.dumps(tree, protocol)
    if protocol < 4:  # names there have no length before them
        data = data.replace(b"numpy._core.", b"numpy.core.")
        data = data.replace(b"numpy.core.", core.encode() + b".")
    (tmp_path / "x.pickle").write_bytes(data)
    expected = {f"Mixed.branch.{name}": array for name, array in inner.items()}
    expected["Mixed.branch.half"] = inner["half"].astype(np.float32)
    expected["Mixed.branch.big"] = inner["kernel"]
    arrays = torch_weights.load(tmp_path / "x.pickle")
    assert_same(arrays, expected | {"l.1": inner["kernel"]})


def test_ordered_dict_of_python_2(tmp_path):
    array = pickle.dumps(np.arange(3), 2)[2:-1]
    program = b"\x80\x02ccollections\nOrderedDict\n](](U\x01a" + array + b"ee\x85R."
    (tmp_path / "x.pkl").write_bytes(program)
    assert list(pickle.loads(program)) == ["a"]
    assert_same(torch_weights.load(tmp_path / "x.pkl"), {"a": np.arange(3)})


def test_pickled_bfloat16(tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = np.linspace(-3, 3, 7).astype(ml_dtypes.bfloat16)
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"x": x}, 4))
    assert_same(torch_weights.load(tmp_path / "x.pkl"), {"x": x.astype(np.float32)})


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(save, tmp_path):
    inner, _ = nested()
    inner["a.b.c"] = np.ones(3)
    save(tmp_path / "x.npz", **inner, words=np.array(["left", "out"]))
    (tmp_path / "x.npz").rename(tmp_path / "x.anything")
    expected = inner | {"half": inner["half"].astype(np.float32), "big": inner["kernel"]}
    assert_same(torch_weights.load(tmp_path / "x.anything"), expected)


def test_npz_whose_header_lies(tmp_path):
    header = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    np.lib.format.write_array_header_1_0(header, fields)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(8))
    refused(tmp_path / "x.npz", "more arrays than a file of its size")


def test_zip_bomb(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(2**27))
    assert (tmp_path / "x.npz").stat().st_size < 2**18
    refused(tmp_path / "x.npz", "unpacks to far more than its size")


# ---- What is no weight file


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html><body>Not Found</body></html>", "is a web page"),
        (b"\n\n  <html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (b"hello, this is text", "is no torch, .safetensors, .npz or .pkl weight file"),
        (b"\x80", "is no torch"),
        (b"PK\x03\x04", "damaged or cut short"),
        (b"PK\x05\x06" + bytes(18), "holds no named arrays"),
        (struct.pack("<Q", 2**62) + b'{"a"', "is cut short: its header"),
        (b"\x80\x02", "damaged or cut short"),
        (b"\x80\x02.", "damaged or cut short"),
        (b"\x80\x02}.", "holds no named arrays"),
        (b"\x89HDF\r\n\x1a\n" + bytes(9), "is no torch"),
    ],
)
def test_what_is_no_weight_file(content, match, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    refused(tmp_path / "x.pth", match)


def test_what_cannot_be_opened(tmp_path):
    refused(tmp_path / "none.pth", "cannot be read: No such file")
    refused(tmp_path, "cannot be read: Is a directory")
    with pytest.raises(UserError, match=r"none\.pth cannot be read"):
        torch_weights.sha256(tmp_path / "none.pth")


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert torch_weights.sha256(tmp_path / "x") == expected


# ---- Hostile pickles


def wrap_plain(path, program):
    path.write_bytes(program)


def wrap_zip(path, program):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)


def wrap_legacy(path, program):
    magic = 0x1950A86A20F9469CFC6C
    head = [pickle.dumps(x, 2) for x in (magic, 1001, {"little_endian": True})]
    path.write_bytes(b"".join([*head, program, pickle.dumps([], 2)]))


WRAPS = pytest.mark.parametrize("wrap", [wrap_plain, wrap_zip, wrap_legacy])


class Call:
    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def executing(mark):
    """name -> program that leaves a mark on the disk if `pickle` runs it."""
    command = f"touch {mark}"
    line, argument = command.encode(), text(command)
    programs = {
        f"reduce {p}": pickle.dumps({"a": np.ones(3), "x": Call(os.system, command)}, p)
        for p in (2, 3, 4, 5)
    }
    return programs | {
        "eval": pickle.dumps(Call(eval, f"__import__('os').system({command!r})"), 4),
        "exec": pickle.dumps(Call(exec, f"import os; os.system({command!r})"), 2),
        "open": pickle.dumps(Call(open, str(mark), "w"), 4),
        "nested in an OrderedDict": pickle.dumps(
            collections.OrderedDict(a=[1, (Call(os.system, command),)]), 4
        ),
        "global": b"\x80\x02cposix\nsystem\n" + argument + b"\x85R.",
        "stack global": b"\x80\x04"
        + text("posix")
        + text("system")
        + b"\x93"
        + argument
        + b"\x85R.",
        "dotted": b"\x80\x04" + text("os") + text("sys.modules.__class__.__init__") + b"\x930"
        b"cposix\nsystem\n" + argument + b"\x85R.",
        "getattr": b"\x80\x02c__builtin__\ngetattr\nc__builtin__\n__import__\n"
        + text("os")
        + b"\x85R"
        + text("system")
        + b"\x86R"
        + argument
        + b"\x85R.",
        "inst": b"\x80\x02(" + argument + b"iposix\nsystem\n.",
        "obj": b"\x80\x02(cposix\nsystem\n" + argument + b"o.",
        "extension": b"\x80\x02\x82\xf0" + argument + b"\x85R.",
        "string": b"\x80\x02cposix\nsystem\n(S'" + line + b"'\ntR.",
        "second pickle": b"\x80\x02cposix\nsystem\n" + argument + b"\x85R0}.",
    }


@pytest.fixture
def extension():
    copyreg.add_extension("posix", "system", 0xF0)
    yield
    copyreg.remove_extension("posix", "system", 0xF0)


@WRAPS
@pytest.mark.parametrize("name", executing("x"))
def test_nothing_is_executed(name, wrap, extension, tmp_path):
    mark = tmp_path / "mark"
    program = executing(mark)[name]
    wrap(tmp_path / "x.pth", program)
    refused(tmp_path / "x.pth", "is refused|damaged")
    assert not mark.exists()
    made = pickle.loads(program)  # the program does what it is feared for
    getattr(made, "close", lambda: None)()
    assert mark.exists()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("reduce 2", "posix.system"),
        ("reduce 5", "posix.system"),
        ("eval", "eval"),
        ("inst", "INST"),
    ],
)
def test_what_is_refused_is_named(name, found, tmp_path):
    (tmp_path / "x.pkl").write_bytes(executing("x")[name])
    assert found in refused(tmp_path / "x.pkl", "x.pkl is refused")


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
STORAGE = text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")


def tensor(offset, size, stride, numel=b"K\x04"):
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    storage = b"(" + STORAGE + numel + b"tQ"
    return (
        b"\x80\x02}" + text("a") + rebuild + b"(" + storage + offset + size + stride + b"\x89}tRs."
    )


HOSTILE = {
    "object array": pickle.dumps({"a": np.array([{}, None], object)}, 4),
    "object array 5": pickle.dumps({"a": np.array([{}, None], object)}, 5),
    "record array": pickle.dumps({"a": np.zeros(2, [("x", "f4"), ("y", "i4")])}, 4),
    "dates": pickle.dumps({"a": np.zeros(2, "M8[s]")}, 4),
    "set": pickle.dumps({"a": {1, 2}}, 4),
    "attributes of a function": b"\x80\x02ccollections\nOrderedDict\n}" + text("x") + b"K\x01sb.",
    "attributes of an array": pickle.dumps(np.ones(2), 4)[:-1] + b"}" + text("x") + b"K\x01sb.",
    "items of a number": b"\x80\x02K\x01K\x02K\x03s.",
    "items of a list": b"\x80\x02]K\x02K\x03s.",
    "odd items": b"\x80\x02}(K\x02u.",
    "tuple as a key": b"\x80\x02})K\x03s.",
    "tuple nested as a key": b"\x80\x02})" + b"\x85" * 30_000 + b"K\x03s.",
    "call of a number": b"\x80\x02K\x01)R.",
    "call of a storage": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "call of a class": b"\x80\x02cnumpy\nndarray\n)R.",
    "no stack": b"\x80\x02R.",
    "no mark": b"\x80\x02t.",
    "no memo": b"\x80\x02h\x07.",
    "memo of 2**32": b"\x80\x02}r\xff\xff\xff\xff.",
    "2**40 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "2**40 bytes of an array": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "2**62 letters": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "2**40 in a frame": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"}.",
    "new object": b"\x80\x02csubprocess\nPopen\n)\x81.",
    "new object by name": b"\x80\x04csubprocess\nPopen\n)}\x92.",
    "out of band": b"\x80\x05\x97.",
    "itself": b"\x80\x02}q\x00" + text("a") + b"h\x00s.",
    "doubled 60 times": b"\x80\x02}q\x00"
    + b"".join(
        b"}q%c" % i + b"".join(text(k) + b"h%cs" % (i - 1) for k in "ab") for i in range(1, 60)
    )
    + b".",
    "nested lists": b"\x80\x02" + b"]" * 30_000 + b"a" * 29_999 + b".",
    "array never filled": b"\x80\x02}" + text("a") + RECONSTRUCT + b")Rs.",
    "path for a storage": b"\x80\x02" + text("/etc/passwd") + b"Q.",
    "path in a storage": tensor(b"K\x00", b"K\x01\x85", b"K\x01\x85").replace(
        text("0"), text("../../../../etc/passwd")
    ),
    "named persistent": b"\x80\x02P/etc/passwd\n.",
    "expanded to 2**40": tensor(b"K\x00", b"\x8a\x06" + bytes(5) + b"\x01\x85", b"K\x00\x85"),
    "beyond its storage": tensor(b"K\x02", b"K\x03\x85", b"K\x01\x85"),
    "before its storage": tensor(b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85"),
    "backwards": tensor(b"K\x03", b"K\x03\x85", b"J\xff\xff\xff\xff\x85"),
    "strides of another rank": tensor(b"K\x00", b"K\x03\x85", b"K\x01K\x01\x86"),
    "storage of 2**40": tensor(
        b"K\x00", b"K\x01\x85", b"K\x01\x85", b"\x8a\x06" + bytes(5) + b"\x01"
    ),
    "storage missing": tensor(b"K\x00", b"K\x01\x85", b"K\x01\x85"),
}


@WRAPS
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(name, wrap, tmp_path):
    wrap(tmp_path / "x.pth", HOSTILE[name])
    tracemalloc.start()
    try:
        refused(tmp_path / "x.pth", "x.pth (is|holds|declares|nests|has)")
        assert tracemalloc.get_traced_memory()[1] < 2**27
    finally:
        tracemalloc.stop()


def test_hostile_tensors_differ_from_good_ones_by_their_numbers_only(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("a/data.pkl", tensor(b"K\x01", b"K\x03\x85", b"K\x01\x85"))
        archive.writestr("a/data/0", np.arange(4, dtype=np.float32).tobytes())
    expected = {"a": np.array([1, 2, 3], np.float32)}
    assert_same(torch_weights.load(tmp_path / "x.pth"), expected)


def test_pickle_of_too_many_steps(tmp_path, monkeypatch):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": np.ones(2), "b": [None] * 5000}))
    assert list(torch_weights.load(tmp_path / "x.pkl")) == ["a"]
    monkeypatch.setattr("aigc_jax.torch_weights.unpickle.MAX_STEPS", 5000)
    refused(tmp_path / "x.pkl", "more steps than weights take")


def test_lzma_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", bytes(100))
    refused(tmp_path / "x.npz", "compresses in its way")


def test_arrays_repeated_without_end(tmp_path):
    data = {str(i): x for x in [np.ones(50_000)] for i in range(2_000)}
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(data, 4))
    refused(tmp_path / "x.pkl", "more arrays than a file of its size can hold")


def test_two_arrays_of_one_name(tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": {"b": np.ones(1)}, "a.b": np.ones(2)}))
    refused(tmp_path / "x.pkl", "two arrays called 'a.b'")


# ---- Damage


def specimens(torch, folder):
    values = {"a": torch.randn(3, 4), "b.c": torch.arange(5), "h": torch.randn(2).half()}
    arrays = {name: np.asarray(value) for name, value in values.items()}
    torch.save(values, folder / "zip")
    torch.save(values, folder / "legacy", _use_new_zipfile_serialization=False)
    pytest.importorskip("safetensors.torch").save_file(values, folder / "safetensors")
    np.savez(folder / "x.npz", **arrays)
    np.savez_compressed(folder / "compressed.npz", **arrays)
    (folder / "pickle2").write_bytes(pickle.dumps(arrays, 2))
    (folder / "pickle5").write_bytes(pickle.dumps(arrays, 5))
    return sorted(folder.iterdir())


def damaged(data, rng, count):
    for _ in range(count):
        yield data[: rng.integers(len(data))]
        flipped = bytearray(data)
        for place in rng.integers(len(data), size=rng.integers(1, 4)):
            flipped[place] = rng.integers(256)
        yield bytes(flipped)


def test_damage_is_told_and_never_crashes(torch, tmp_path):
    rng, outcomes = np.random.default_rng(0), collections.Counter()
    (tmp_path / "good").mkdir()
    path = tmp_path / "x"
    for specimen in specimens(torch, tmp_path / "good"):
        assert len(torch_weights.load(specimen)) == 3
        tracemalloc.start()
        for data in damaged(specimen.read_bytes(), rng, 100):
            path.write_bytes(data)
            try:
                arrays = torch_weights.load(path)
                assert all(isinstance(a, np.ndarray) and a.size < 2**10 for a in arrays.values())
                outcomes["read"] += 1
            except UserError as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)
                outcomes["refused"] += 1
        assert tracemalloc.get_traced_memory()[1] < 2**25, specimen.name
        tracemalloc.stop()
    assert min(outcomes["read"], outcomes["refused"]) > 100, outcomes
