"""What torch.save writes is read as torch reads it: every kind of tensor, module, optimizer and container."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from warmstart.errors import CorruptCheckpoint, FormatError, UnknownFormat, WarmstartError
from warmstart.formats import torch_file
from warmstart.formats.checkpoint import Array, Checkpoint, Entry
from warmstart.formats.detect import find_candidates, open_checkpoint
from warmstart.formats.torch_write import write_torch

LEGACY = pytest.mark.parametrize("legacy", [False, True])


def save(value: Any, path: Path, legacy: bool = False) -> Checkpoint:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return open_checkpoint(path)


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def equal(checkpoint: Checkpoint, truth: dict[str, torch.Tensor]) -> None:
    assert set(truth) <= set(checkpoint.entries)
    for name, tensor in truth.items():
        entry, array = checkpoint.entries[name], checkpoint.read(name)
        assert (entry.shape, f"torch.{entry.dtype}") == (tuple(tensor.shape), str(tensor.dtype)), name
        assert (array.shape, array.dtype.name) == (entry.shape, entry.dtype)
        assert np.ascontiguousarray(array).tobytes() == raw(tensor), name
        assert not array.flags.writeable
        checkpoint.verify(name)


@LEGACY
def test_views_and_kinds(tmp_path: Path, legacy: bool) -> None:
    base = torch.arange(24, dtype=torch.float32)
    truth = {
        "whole": base,
        "part": base[4:10],
        "columns": base.reshape(4, 6).t(),
        "steps": base[1::5],
        "plane": base.reshape(2, 3, 4)[:, 1, ::2],
        "expanded": base[3:4].expand(3, 4),
        "empty": base[24:],
        "empty too": torch.zeros(0, 3, dtype=torch.bfloat16),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "element": base[7],
        "parameter": nn.Parameter(base.reshape(6, 4)),
        "no parameter": nn.Parameter(torch.arange(3), requires_grad=False),
        "conjugate": torch.tensor([1 + 2j, 3 - 1j]).conj(),
        "negative": torch.tensor([1 + 2j, 3 - 1j]).conj().imag,
        "bool": torch.tensor([[True], [False]]),
        "brain": torch.arange(5, dtype=torch.bfloat16)[::2],
    }
    checkpoint = save(truth, tmp_path / "x.pt", legacy)
    equal(checkpoint, truth)
    assert checkpoint.metadata == {}
    assert checkpoint.read("part").base is not None


@LEGACY
def test_nesting_gives_dotted_names(tmp_path: Path, legacy: bool) -> None:
    one = torch.ones(2)
    value = {
        "model": {"encoder": [{"weight": one}, {"weight": one + 1}], "scale": 0.5},
        "list": [one + 2, "word", (one + 3, 7)],
        3: one + 4,
        "epoch": 4,
        "step": 12,
        "args": Namespace(lr=0.1, names=["a", "b"], nested=Namespace(x=None)),
        "dtype": torch.float16,
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda", 1),
        "vocab": {"a": 1, "б": 2},
        "array": np.arange(3, dtype=">f8"),
        "score": np.float64(0.25),
        "bytes": b"\x00\x01",
        "keys": {1: "x", "1": "y", (1, "a"): "z"},
        "path": Path("/data/train"),
    }
    checkpoint = save(value, tmp_path / "x.pt", legacy)
    arrays = {"model.encoder.0.weight": one, "model.encoder.1.weight": one + 1, "list.0": one + 2, "list.2.0": one + 3}
    equal(checkpoint, {**arrays, "3": one + 4, "array": torch.arange(3, dtype=torch.float64)})
    assert checkpoint.step == 12
    assert json.loads(json.dumps(checkpoint.metadata)) == {
        "model": {"scale": 0.5},
        "list": [{"array": "list.0"}, "word", [{"array": "list.2.0"}, 7]],
        "epoch": 4,
        "step": 12,
        "args": {"lr": 0.1, "names": ["a", "b"], "nested": {"x": None}},
        "dtype": "torch.float16",
        "size": [2, 3],
        "device": "cuda:1",
        "vocab": {"a": 1, "б": 2},
        "score": 0.25,
        "bytes": {"bytes": "AAE="},
        "keys": {"1": "x", "1'": "y", "(1, 'a')": "z"},
        "path": "/data/train",
    }


def test_bare_tensors_and_lists(tmp_path: Path) -> None:
    equal(save(torch.ones(3), tmp_path / "x.pt"), {"tensor": torch.ones(3)})
    equal(save([torch.ones(3), torch.zeros(1)], tmp_path / "x.pt"), {"0": torch.ones(3), "1": torch.zeros(1)})


def test_names_that_collide(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"array 'a\.b'"):
        save({"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}, tmp_path / "x.pt")
    with pytest.raises(FormatError, match="array '1'"):
        save({"1": torch.ones(1), 1: torch.zeros(1)}, tmp_path / "x.pt")


def test_what_numpy_has_no_number_for_is_described(tmp_path: Path) -> None:
    layer = nn.quantized.Linear(4, 3)  # type: ignore[attr-defined]
    half = torch.zeros(3, dtype=torch.complex32)
    meta = torch.ones(2, 3, device="meta")
    sparse = torch.eye(3).to_sparse()
    value = {"q": layer.weight(), "half": half, "meta": meta, "sparse": sparse, "csr": torch.eye(2).to_sparse_csr()}
    checkpoint = save(value, tmp_path / "x.pt")
    described = {name: (entry.dtype, entry.nbytes) for name, entry in checkpoint.entries.items() if not entry.readable}
    assert described == {"q": ("qint8", 12), "half": ("complex32", 12), "meta": ("float32", 0)}
    for name in described:
        with pytest.raises(FormatError, match=name):
            checkpoint.read(name)
        checkpoint.verify(name)
    assert checkpoint.metadata["q"]["quantizer"][0] == "torch.per_tensor_affine"
    equal(checkpoint, {"sparse.indices": sparse._indices(), "sparse.values": sparse._values()})
    assert checkpoint.metadata["sparse"]["size"] == [3, 3]
    assert {"csr.compressed_indices", "csr.plain_indices", "csr.values"} <= set(checkpoint.entries)


class Tagged(torch.Tensor):
    pass


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.out = nn.Linear(3, 5, bias=False)
        self.out.weight = self.embedding.weight
        self.norm = nn.BatchNorm1d(3)
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.GRU(2, 3)])
        self.register_buffer("passing", torch.arange(4), persistent=False)
        self.parent = [self]
        self.title = "x"


@LEGACY
def test_a_module_pickled_whole_has_the_names_of_its_state(tmp_path: Path, legacy: bool) -> None:
    network = Network()
    network.register_buffer("tag", torch.ones(2).as_subclass(Tagged))  # type: ignore[arg-type]
    checkpoint = save(network, tmp_path / "x.pt", legacy)
    state = network.state_dict()
    assert set(checkpoint.entries) == set(state)
    equal(checkpoint, {name: tensor.as_subclass(torch.Tensor) for name, tensor in state.items()})
    assert checkpoint.ties == {"out.weight": "embedding.weight"}
    assert checkpoint.metadata["class"].endswith(".Network")
    assert checkpoint.metadata["title"] == "x"
    assert checkpoint.metadata["_non_persistent_buffers_set"] == ["passing"]
    assert checkpoint.metadata["parent"] == [{"see": ""}]
    json.dumps(checkpoint.metadata)


def test_torchscript_is_named_and_its_parameters_listed(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    torch.jit.save(torch.jit.script(network), tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert checkpoint.metadata["torchscript"] is True
    equal(checkpoint, network.state_dict())


def test_big_endian_files(tmp_path: Path) -> None:
    """As a big-endian machine writes them: the same pickle, every storage swapped, and a word that says so."""
    kinds = ("int64", "float32", "float16", "bfloat16", "complex64", "uint8", "bool", "uint16")
    truth = {kind: torch.tensor([1, 0, 3]).to(getattr(torch, kind)) for kind in kinds}
    truth["part"] = truth["float32"][1:]
    torch.save(truth, tmp_path / "x.pt")
    sizes = (8, 4, 2, 2, 4, 1, 1, 2)  # of what is swapped: a complex number is two
    with zipfile.ZipFile(tmp_path / "x.pt") as old, zipfile.ZipFile(tmp_path / "big.pt", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("byteorder"):
                data = b"big"
            elif "/data/" in name:
                size = sizes[int(name.rpartition("/")[2])]
                data = np.frombuffer(data, f"u{size}").byteswap().tobytes()
            new.writestr(name, data)
    loaded = torch.load(tmp_path / "big.pt", weights_only=True)
    equal(open_checkpoint(tmp_path / "big.pt"), truth)
    del truth["uint16"]  # torch 2.13 forgets to swap storages without a dtype
    assert all(torch.equal(loaded[name], tensor) for name, tensor in truth.items())


# optimizers


def trained(optimizer: Callable[[Any], torch.optim.Optimizer], model: nn.Module | None = None) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = model or nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    used = optimizer(model)
    for _ in range(3):
        used.zero_grad()
        model(torch.randn(5, 3)).square().sum().backward()
        used.step()
    return model, used


@LEGACY
@pytest.mark.parametrize("where", ["top", "list", "named"])
def test_adam_by_parameter(tmp_path: Path, where: str, legacy: bool) -> None:
    named = where == "named"
    model, used = trained(lambda m: torch.optim.AdamW(m.named_parameters() if named else m.parameters(), lr=1e-3))
    state = used.state_dict()
    value = {"state_dict": model.state_dict(), "optimizer": [state] if where == "list" else state, "epoch": 1}
    checkpoint = save(value, tmp_path / "x.pt", legacy)
    assert set(checkpoint.entries) == {f"state_dict.{name}" for name in model.state_dict()}
    assert checkpoint.step == 3
    assert checkpoint.optimizer["step"] == 3
    assert checkpoint.optimizer["param_groups"][0]["lr"] == 1e-3
    names = [f"state_dict.{name}" for name, _ in model.named_parameters()]
    assert checkpoint.optimizer["param_groups"][0]["params"] == names
    assert set(checkpoint.slots) == {(name, slot) for name in names for slot in ("m", "v")}
    for number, name in enumerate(names):
        for slot, key in (("m", "exp_avg"), ("v", "exp_avg_sq")):
            np.testing.assert_array_equal(checkpoint.read_slot(name, slot), state["state"][number][key].numpy())
            assert checkpoint.slots[name, slot].shape == checkpoint.entries[name].shape
    with pytest.raises(KeyError):
        checkpoint.read_slot(names[0], "exp_avg")


def test_sgd_adafactor_and_groups(tmp_path: Path) -> None:
    model, used = trained(lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))
    checkpoint = save({"model": model.state_dict(), "optimizer": used.state_dict()}, tmp_path / "x.pt")
    assert {slot for _, slot in checkpoint.slots} == {"momentum_buffer"}
    assert checkpoint.step is None
    model, used = trained(lambda m: torch.optim.Adafactor(m.parameters()))
    state = used.state_dict()["state"]
    checkpoint = save({"model": model.state_dict(), "optimizer": used.state_dict()}, tmp_path / "x.pt")
    entry = checkpoint.slots["model.0.weight", "v_row"]
    assert (entry.shape, entry.axis) == ((4,), 1)
    np.testing.assert_array_equal(checkpoint.read_slot("model.0.weight", "v_row"), state[0]["row_var"][:, 0])
    np.testing.assert_array_equal(checkpoint.read_slot("model.0.weight", "v_col"), state[0]["col_var"][0])
    np.testing.assert_array_equal(checkpoint.read_slot("model.0.bias", "v"), state[1]["variance"])


def split(model: nn.Module, named: bool) -> list[dict[str, Any]]:
    chosen = [(n, p) if named else p for n, p in model.named_parameters()]
    return [{"params": chosen[::2], "weight_decay": 0.1}, {"params": chosen[1::2]}]


def test_names_are_given_only_where_they_are_certain(tmp_path: Path) -> None:
    model, used = trained(lambda m: torch.optim.Adam(split(m, named=True)))
    checkpoint = save({"model": model.state_dict(), "optimizer": used.state_dict()}, tmp_path / "x.pt")
    assert len(checkpoint.slots) == 12
    truth = used.state[model[2].weight]["exp_avg"]
    np.testing.assert_array_equal(checkpoint.read_slot("model.2.weight", "m"), truth)
    uncertain = {
        "two groups": trained(lambda m: torch.optim.Adam(split(m, named=False)))[1].state_dict(),
        "one too few": trained(lambda m: torch.optim.Adam(list(m.parameters())[1:]))[1].state_dict(),
        "another order": trained(lambda m: torch.optim.Adam(list(m.parameters())[::-1]))[1].state_dict(),
    }
    for what, state in uncertain.items():
        checkpoint = save({"model": model.state_dict(), "optimizer": state}, tmp_path / "x.pt")
        assert not checkpoint.slots, what
        assert "optimizer.state.0.exp_avg" in checkpoint.entries
        assert checkpoint.metadata["optimizer"]["param_groups"][0]["params"][0] == 0
        assert checkpoint.optimizer == {}
    one, other = model.state_dict(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = trained(lambda m: torch.optim.Adam(m.parameters()))[1].state_dict()
    assert not save({"student": one, "teacher": other, "optimizer": state}, tmp_path / "x.pt").slots
    assert save({"model": one, "ema": other, "optimizer": state}, tmp_path / "x.pt").slots
    alone = save(state, tmp_path / "x.pt")
    assert "state.0.exp_avg" in alone.entries


def test_tied_parameters_have_one_state(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.b(self.a(x))
            return out

    model, used = trained(lambda m: torch.optim.Adam(m.parameters()), Tied())
    checkpoint = save({"model": model.state_dict(), "optimizer": used.state_dict()}, tmp_path / "x.pt")
    assert checkpoint.ties == {"model.b.weight": "model.a.weight"}
    assert {name for name, _ in checkpoint.slots} == {"model.a.weight", "model.a.bias", "model.b.bias"}


# real files


class Stub:
    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {})


class Stubs:
    """A ``pickle_module`` for torch.load that knows no class of OpenNMT's or of torchtext."""

    __name__ = "stubs"
    load, loads = pickle.load, pickle.loads

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            known = module.startswith(("torch._", "torch.nn", "collections", "argparse")) or module in (
                "torch",
                "builtins",
            )
            return super().find_class(module, name) if known or module == "__builtin__" else Stub


OPENNMT = "fixtures/opennmt-py-2017-hbs-g2p"


@pytest.mark.parametrize(("name", "slots"), [("test_model2.pt", 0), ("test_model2-adam.pt", 28)])
def test_opennmt_of_2017(fixtures: Path, name: str, slots: int) -> None:
    path = fixtures / OPENNMT / name
    truth = torch.load(path, map_location="cpu", weights_only=False, pickle_module=Stubs)
    checkpoint = open_checkpoint(path)
    arrays = {f"{part}.{key}": t for part in ("model", "generator") for key, t in truth[part].items()}
    assert set(checkpoint.entries) == set(arrays)
    equal(checkpoint, arrays)
    assert checkpoint.metadata["epoch"] == truth["epoch"]
    assert checkpoint.metadata["opt"]["rnn_size"] == vars(truth["opt"])["rnn_size"]
    vocabulary = dict(checkpoint.metadata["vocab"])["src"]
    assert vocabulary["class"] == "torchtext.vocab.Vocab"
    assert vocabulary["itos"] == dict(truth["vocab"])["src"].itos
    assert len(checkpoint.slots) == slots
    assert checkpoint.metadata["optim"]["class"] == "onmt.Optim.Optim"
    if slots:
        assert (checkpoint.step, checkpoint.optimizer["class"]) == (1410, "torch.optim.adam.Adam")
        state = truth["optim"].optimizer.state
        for parameter, moments in state.items():
            name = next(n for n, t in arrays.items() if t.data_ptr() == parameter.data_ptr())
            assert checkpoint.read_slot(name, "m").tobytes() == raw(moments["exp_avg"])
            assert checkpoint.read_slot(name, "v").tobytes() == raw(moments["exp_avg_sq"])


def test_zip_files_of_others(fixtures: Path) -> None:
    folder = fixtures / "fixtures/torch-misc"
    for path in (folder / "tiny_fair_checkpoint.pt", folder / "sockeye-deepspeed/converted/params.00000"):
        equal(open_checkpoint(path), torch.load(path, weights_only=True))
    bare = torch.load(folder / "fairseq2-fbank.pt", weights_only=True)
    equal(open_checkpoint(folder / "fairseq2-fbank.pt"), {"tensor": bare})


def test_deepspeed_is_opened_as_what_it_is(fixtures: Path) -> None:
    folder = fixtures / "fixtures/torch-misc/sockeye-deepspeed/model/params.00000"
    checkpoint = open_checkpoint(folder)
    path = folder / "global_step4000/mp_rank_00_model_states.pt"
    assert checkpoint.path == path
    truth = torch.load(path, map_location="cpu", weights_only=False)
    equal(checkpoint, {f"module.{name}": tensor for name, tensor in truth["module"].items()})
    assert checkpoint.step == 4000
    assert checkpoint.ties["module.model.output_layer.weight"] == "module.model.embedding_source.embedding.weight"
    assert [str(c) for c in find_candidates(folder)] == ["global_step4000 (last)"]
    assert [c.name for c in find_candidates(path.parent)] == [path.name]
    part = open_checkpoint(path.with_name("zero_pp_rank_0_mp_rank_00_optim_states.pt"))
    assert part.entries["optimizer_state_dict.single_partition_of_fp32_groups.0"].shape == (1138,)


# what is none, and what else lies beside a model


def test_what_lies_beside_a_model_is_no_candidate(tmp_path: Path) -> None:
    weights = {"a": torch.ones(2)}
    beside = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_3.pth", "scaler.pt")
    for name in (*beside, "checkpoint_best.pt", "checkpoint_last.pt", "model.bin"):
        torch.save(weights, tmp_path / name)
    (tmp_path / "vocab.txt").write_text("a\n")
    found = {candidate.name: candidate.roles for candidate in torch_file.candidates(tmp_path)}
    assert found == {"checkpoint_best.pt": ("best",), "checkpoint_last.pt": ("last",), "model.bin": ()}
    assert open_checkpoint(f"{tmp_path}@best").path.name == "checkpoint_best.pt"


def index(directory: Path, weight_map: dict[str, str]) -> Path:
    path = directory / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 8}, "weight_map": weight_map}))
    return path


def test_shards(tmp_path: Path) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    torch.save({"a": torch.ones(2), "c": torch.ones(1)}, directory / "m-1.bin")
    torch.save({"b": torch.zeros(3)}, directory / "m-2.bin")
    path = index(directory, {"a": "m-1.bin", "b": "m-2.bin", "c": "m-1.bin"})
    checkpoint = open_checkpoint(directory)
    equal(checkpoint, {"a": torch.ones(2), "b": torch.zeros(3), "c": torch.ones(1)})
    assert list(checkpoint.entries) == ["a", "b", "c"]
    assert [str(file) for file in checkpoint.files] == [path.name, "m-1.bin", "m-2.bin"]
    assert checkpoint.metadata == {"index": {"total_size": 8}}
    for weight_map in (
        {"a": "m-1.bin", "b": "m-2.bin"},
        {"a": "m-1.bin", "b": "m-2.bin", "c": "m-2.bin"},
        {"a": "m-1.bin", "b": "m-2.bin", "c": "m-1.bin", "d": "m-1.bin"},
    ):
        with pytest.raises(CorruptCheckpoint, match="do not agree"):
            open_checkpoint(index(directory, weight_map))
    torch.save({"x": torch.ones(1)}, tmp_path / "outside.bin")
    (directory / "link.bin").symlink_to(tmp_path / "outside.bin")
    for elsewhere in ("../outside.bin", str(tmp_path / "outside.bin"), "link.bin", "", ".", "a\0b", "x" * 300):
        with pytest.raises(FormatError, match="outside its directory"):
            open_checkpoint(index(directory, {"a": "m-1.bin", "c": "m-1.bin", "x": elsewhere}))
    with pytest.raises(CorruptCheckpoint, match=r"m-9\.bin"):
        open_checkpoint(index(directory, {"a": "m-1.bin", "c": "m-1.bin", "x": "m-9.bin"}))
    path.write_text('{"weight_map": {"a": "m-1.bin", "a": "m-1.bin"}}')
    with pytest.raises(CorruptCheckpoint, match="twice"):
        open_checkpoint(path)


def test_the_cache_of_the_hub_has_links(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    torch.save({"a": torch.ones(2)}, blobs / "0")
    index(blobs, {"a": "m.bin"}).rename(blobs / "1")
    (snapshot / "m.bin").symlink_to(blobs / "0")
    (snapshot / "pytorch_model.bin.index.json").symlink_to(blobs / "1")
    equal(open_checkpoint(snapshot), {"a": torch.ones(2)})


class Model:
    def __init__(self) -> None:
        self.coefficients = np.arange(3.0)


def test_other_pickles_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(Model()))
    with pytest.raises(UnknownFormat, match=r"object of class .*\.Model") as caught:
        open_checkpoint(path)
    assert "runs what is in it" in str(caught.value.todo)
    path.write_bytes(pickle.dumps({"a": np.ones(2)}))
    with pytest.raises(UnknownFormat, match="a pickle of numpy arrays"):
        open_checkpoint(path)
    path.write_bytes(pickle.dumps({"a": torch.ones(2)}))
    with pytest.raises(UnknownFormat, match=r"made without torch\.save"):
        open_checkpoint(path)
    path.write_bytes(b"\x80\x04\x8c\x0fsklearn.linear_\x8c\x05Ridge\x93)\x81\xff\xff")
    with pytest.raises(UnknownFormat, match="objects of sklearn"):
        open_checkpoint(path)
    with pytest.raises(FormatError, match=r"without arrays(.|\n)*class .*\.Stub"):
        save(Stub(), path)
    with pytest.raises(FormatError, match="without arrays"):
        save("text", path)
    assert save({"last_epoch": 3}, path).metadata == {"last_epoch": 3}


def test_a_tar_file_of_the_first_torch(tmp_path: Path) -> None:
    directory = tmp_path / "unpacked"
    directory.mkdir()
    for name in ("sys_info", "pickle", "storages", "tensors"):
        (directory / name).write_bytes(b"x")
    with pytest.raises(FormatError, match=r"before version 0\.1\.10"):
        open_checkpoint(directory)


# archives that do not tell the truth


def parts() -> dict[str, bytes]:
    stream = io.BytesIO()
    torch.save({"a": torch.arange(4.0), "b": torch.ones(2)}, stream)
    with zipfile.ZipFile(stream) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_tricks_with_archives(tmp_path: Path) -> None:
    path, members = tmp_path / "x.pt", parts()
    equal(open_checkpoint(rewritten(path, members)), {"a": torch.arange(4.0), "b": torch.ones(2)})
    equal(open_checkpoint(rewritten(path, members, zipfile.ZIP_DEFLATED)), {"a": torch.arange(4.0)})
    for changed in (
        {**members, "archive/data/0": members["archive/data/0"][:-1]},
        {**members, "archive/data/0": members["archive/data/0"] + b"\0"},
        {name: data for name, data in members.items() if name != "archive/data/1"},
        {**members, "other/data.pkl": b"N."},
        {**members, "archive/byteorder": b"middle"},
        {**members, "archive/version": b"x"},
    ):
        with pytest.raises(CorruptCheckpoint):
            open_checkpoint(rewritten(path, changed))
    with pytest.raises(FormatError, match="newer"):
        open_checkpoint(rewritten(path, {**members, "archive/version": b"99"}))
    with pytest.raises(FormatError, match="encrypted or compressed"):
        open_checkpoint(rewritten(path, members, zipfile.ZIP_LZMA))
    with zipfile.ZipFile(rewritten(path, members), "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("archive/data/0", b"x" * 16)
    with pytest.raises(CorruptCheckpoint, match="several"):
        open_checkpoint(path)


def test_directories_of_archives_that_lie(tmp_path: Path) -> None:
    data = bytearray(rewritten(tmp_path / "x.pt", parts()).read_bytes())
    entry = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    fields = {"flags": (8, 2), "method": (10, 2), "size": (20, 4), "whole": (24, 4), "offset": (42, 4)}
    for name, (place, width) in fields.items():
        for value in (1, 2, 3, 100, 2**16 - 1, 2**31, 2**32 - 1):
            changed = bytearray(data)
            changed[entry + place : entry + place + width] = struct.pack("<Q", value)[:width]
            (tmp_path / "y.pt").write_bytes(changed)
            try:
                checkpoint = open_checkpoint(tmp_path / "y.pt")
                for array in checkpoint.entries:
                    checkpoint.verify(array)
            except WarmstartError:
                continue
            assert changed == data or name == "flags", (name, value)


def test_checksums_are_checked_when_asked(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "x.pt", parts())
    data = path.read_bytes()
    place = data.index(np.arange(4, dtype="f4").tobytes())
    path.write_bytes(data[:place] + b"\x01" + data[place + 1 :])
    checkpoint = open_checkpoint(path)
    checkpoint.read("a")
    checkpoint.verify("b")
    with pytest.raises(CorruptCheckpoint, match="checksum"):
        checkpoint.verify("a")


def test_files_without_checksums(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        checkpoint = save({"a": torch.arange(3)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    equal(checkpoint, {"a": torch.arange(3)})


# writing


def test_torch_reads_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    arrays: dict[str, Array] = {
        "a": np.arange(6, dtype="f4").reshape(2, 3),
        "big": np.arange(3, dtype=">i8"),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "empty": np.zeros((0, 2), "f2"),
        "scalar": np.array(7, "u2"),
        "tied": np.arange(6, dtype="f4").reshape(2, 3),
    }
    entries = [Entry(name, array.shape, array.dtype.name) for name, array in arrays.items()]
    metadata = {"epoch": 3, "huge": -(2**70), "args": {"lr": 0.5, "on": True, "no": None, "names": ["имя", 300, -1]}}
    write_torch(path, entries, arrays.values(), metadata, {"tied": "a"})
    for mapped in (False, True):
        loaded = torch.load(path, weights_only=True, mmap=mapped)
        assert {name: value for name, value in loaded.items() if name not in arrays} == metadata
        for name, array in arrays.items():
            assert loaded[name].shape == array.shape
            assert raw(loaded[name]) == np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"))).tobytes()
            assert loaded[name].is_contiguous()
        assert loaded["tied"].data_ptr() == loaded["a"].data_ptr()
        assert loaded["a"].data_ptr() % 64 == 0
    checkpoint = open_checkpoint(path)
    assert (checkpoint.metadata, checkpoint.ties) == (metadata, {"tied": "a"})
    before = path.read_bytes()
    write_torch(tmp_path / "y.pt", entries, arrays.values(), metadata, {"tied": "a"})
    assert (tmp_path / "y.pt").read_bytes() == before


def test_writer_checks_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    one = np.ones(2, "f4")
    entry = Entry("a", (2,), "float32")
    wrong: list[tuple[list[Entry], list[Array], dict[str, Any], dict[str, str]]] = [
        ([Entry("a", (3,), "float32")], [one], {}, {}),
        ([entry], [], {}, {}),
        ([entry], [one, one], {}, {}),
        ([entry, entry], [one, one], {}, {}),
        ([Entry("a", (2,), "intgemm8", 2)], [one], {}, {}),
        ([entry], [one], {"a": 1}, {}),
        ([entry], [one], {"b": {1: 2}}, {}),
        ([entry], [one], {"b": object()}, {}),
        ([entry, Entry("b", (2,), "float32")], [one, one + 1], {}, {"b": "a"}),
        ([entry, Entry("b", (1,), "float32")], [one, one[:1]], {}, {"b": "a"}),
        ([entry], [one], {}, {"a": "b"}),
        ([entry], [one], {}, {"c": "a"}),
    ]
    for entries, arrays, metadata, ties in wrong:
        with pytest.raises(FormatError):
            write_torch(path, entries, arrays, metadata, ties)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
