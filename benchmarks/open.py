"""How fast a checkpoint opens, and how fast all of it is read: warmstart beside the library that wrote the file.

Every format gets the same arrays, written by the library that users have for it. Opening means names and shapes of
everything in a process of its own, measured over the whole process, and once more in it, when everything is imported;
resident memory is the process's and its children's after that. Reading means every array in memory. Medians of rounds
in turn; the file system's own rate is that of reading the same files into one buffer.

"npz-names" is npz with what ``numpy.load`` lists by itself: names, without shapes. Modules are compiled beforehand, as
installed ones are.

    python benchmarks/open.py DIRECTORY [--gigabytes 5] [--rounds 3] [--only NAME ...]
    pip install torch safetensors tensorflow-cpu orbax-checkpoint h5py  # those that are missing are left out
"""

from __future__ import annotations

import argparse
import compileall
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PIECE = 64 * 2**20  # bytes of an array
Shapes = dict[str, tuple[int, ...]]


def arrays(count: int) -> dict[str, Any]:
    """Different numbers in each, cheap to make."""
    import numpy as np

    base = np.random.default_rng(0).standard_normal(PIECE // 4, dtype="f4").reshape(4096, -1)
    return {f"decoder.layers.{k}.weight": base + np.float32(k) for k in range(count)}


class Opener(ABC):
    """What opens and reads checkpoints."""

    @abstractmethod
    def open(self, path: Path) -> tuple[int, Callable[[], Iterator[Any]]]:
        """The number of arrays, and how to read them one after another."""


class Peer(Opener):
    """A library, what it is called, and what it writes."""

    def __init__(self, library: str, file: str) -> None:
        self.library, self.file = library, file

    @abstractmethod
    def write(self, path: Path, values: dict[str, Any]) -> None: ...


class NpzNames(Peer):
    """What ``numpy.load`` knows without reading an array: its name."""

    def write(self, path: Path, values: dict[str, Any]) -> None:
        import numpy as np

        np.savez(path, **values)

    def open(self, path: Path) -> tuple[int, Callable[[], Iterator[Any]]]:
        import numpy as np

        file = np.load(path)
        return len(file.files), lambda: (file[name] for name in file.files)


class Npz(NpzNames):
    """Shapes and dtypes too, as a user of numpy gets them: from each member's header."""

    def open(self, path: Path) -> tuple[int, Callable[[], Iterator[Any]]]:
        import numpy as np

        file = np.load(path)
        headers = {}
        for name in file.files:
            with file.zip.open(f"{name}.npy") as member:
                np.lib.format.read_magic(member)
                headers[name] = np.lib.format.read_array_header_1_0(member)
        return len(headers), lambda: (file[name] for name in headers)


class Safetensors(Peer):
    def write(self, path: Path, values: dict[str, Any]) -> None:
        from safetensors.numpy import save_file

        save_file(values, path)

    def open(self, path: Path) -> tuple[int, Callable[[], Iterator[Any]]]:
        from safetensors import safe_open

        file = safe_open(path, "numpy")
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        return len(shapes), lambda: (file.get_tensor(name) for name in shapes)


class Torch(Peer):
    def write(self, path: Path, values: dict[str, Any]) -> None:
        import torch

        torch.save({name: torch.from_numpy(array) for name, array in values.items()}, path)

    def open(self, path: Path) -> tuple[int, Callable[[], Iterator[Any]]]:
        import torch

        loaded = torch.load(path, mmap=True, weights_only=True)
        return len(loaded), lambda: (tensor.clone() for tensor in loaded.values())


class TensorFlow(Peer):
    def write(self, path: Path, values: dict[str, Any]) -> None:
        import tensorflow as tf

        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            feeds, variables = {}, []
            for name, array in values.items():
                place = tf.compat.v1.placeholder(tf.float32, array.shape)
                variables.append(tf.compat.v1.Variable(place, name=name.replace(".", "/")))
                feeds[place] = array
            for variable, (place, array) in zip(variables, feeds.items(), strict=True):
                session.run(variable.initializer, {place: array})
            tf.compat.v1.train.Saver().save(session, str(path), write_meta_graph=False)

    def open(self, path: Path) -> tuple[int, Callable[[], Iterator[Any]]]:
        import tensorflow as tf

        reader = tf.train.load_checkpoint(str(path))
        shapes = reader.get_variable_to_shape_map()
        return len(shapes), lambda: (reader.get_tensor(name) for name in shapes)


class Orbax(Peer):
    def write(self, path: Path, values: dict[str, Any]) -> None:
        import orbax.checkpoint as ocp

        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), {name.replace(".", "_"): array for name, array in values.items()})

    def open(self, path: Path) -> tuple[int, Callable[[], Iterator[Any]]]:
        import orbax.checkpoint as ocp

        checkpointer = ocp.PyTreeCheckpointer()
        tree = checkpointer.metadata(path.absolute()).item_metadata.tree
        return len(tree), lambda: iter(checkpointer.restore(path.absolute()).values())


class Hdf5(Peer):
    def write(self, path: Path, values: dict[str, Any]) -> None:
        import h5py

        with h5py.File(path, "w") as file:
            for name, array in values.items():
                file[name.replace(".", "/")] = array

    def open(self, path: Path) -> tuple[int, Callable[[], Iterator[Any]]]:
        import h5py

        file, found = h5py.File(path, "r"), []
        file.visititems(lambda _, item: found.append(item) if isinstance(item, h5py.Dataset) else None)
        return len(found), lambda: (item[()] for item in found)


PEERS: dict[str, Peer] = {
    "npz": Npz("numpy", "model.npz"),
    "npz-names": NpzNames("numpy", "model.npz"),
    "safetensors": Safetensors("safetensors", "model.safetensors"),
    "torch": Torch("torch", "model.pt"),
    "tensorflow": TensorFlow("tensorflow", "model.ckpt"),
    "orbax": Orbax("orbax", "orbax"),
    "hdf5": Hdf5("h5py", "model.h5"),
}


class Ours(Opener):
    def open(self, path: Path) -> tuple[int, Callable[[], Iterator[Any]]]:
        from warmstart.formats.detect import open_checkpoint

        checkpoint = open_checkpoint(path)
        shapes = {name: (entry.shape, entry.dtype) for name, entry in checkpoint.entries.items()}
        return len(shapes), lambda: (in_memory(checkpoint.read(name)) for name in shapes)


def in_memory(array: Any) -> Any:
    """``array``, copied if it is a view into a file; what a child process brought lies in memory already."""
    import numpy as np

    owner = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    if isinstance(owner, np.ndarray) or not array.size or "/memfd:" in mapping(array.ctypes.data):
        return array
    return np.array(array)


def mapping(address: int) -> str:
    """The line of /proc/self/maps for ``address``."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(number, 16) for number in line.split(maxsplit=1)[0].split("-"))
        if low <= address < high:
            return line
    return ""


def child(job: str, name: str, path: Path, count: int) -> dict[str, float]:
    """One measurement in this process."""
    peer = PEERS[name]
    if job == "write":
        peer.write(path, arrays(count))
        return {}
    tool = Ours() if job == "warmstart" else peer
    found, read = tool.open(path)
    whole, memory = since_start(), most_memory()
    began = time.perf_counter()
    found, read = tool.open(path)
    opened = time.perf_counter() - began
    import numpy  # noqa: F401  # which ours does not need before it reads, and the peers had

    began, nbytes = time.perf_counter(), 0
    for array in read():
        nbytes += array.nbytes
    seconds = time.perf_counter() - began
    return {"arrays": found, "whole": whole, "open": opened, "memory": memory, "rate": nbytes / seconds / 1e9}


def since_start() -> float:
    """Seconds since this process began, to a hundredth."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def most_memory() -> float:
    """MB that this process and its children had at most."""
    tasks = [Path("/proc/self"), *(Path(f"/proc/{pid}") for pid in _children())]
    texts = [(task / "status").read_text().splitlines() for task in tasks]
    return sum(int(next(line.split()[1] for line in text if line.startswith("VmHWM"))) for text in texts) / 1000


def _children() -> list[str]:
    return [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]


def system_rate(path: Path) -> float:
    """GB/s of reading every file of a checkpoint into one buffer."""
    files = [f for f in (path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")) if f.is_file()]
    buffer, nbytes = bytearray(PIECE), 0
    began = time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while count := stream.readinto(buffer):
                nbytes += count
    return nbytes / (time.perf_counter() - began) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    count = max(1, round(given.gigabytes * 1e9 / PIECE))
    if given.child:
        print(f"\nRESULT {json.dumps(child(given.child, given.only[0], given.directory, count))}")
        return

    import warmstart

    compileall.compile_dir(Path(warmstart.__file__).parent, quiet=2)

    def run(job: str, name: str, path: Path) -> dict[str, float]:
        command = [sys.executable, __file__, str(path), "--child", job, "--only", name]
        command += ["--gigabytes", str(given.gigabytes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if "RESULT" not in done.stdout:
            raise SystemExit(f"{job} {name}:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")
        found: dict[str, float] = json.loads(done.stdout.rsplit("RESULT ", 1)[1])
        return found

    heads = ("process s", "peer", "ratio", "open s", "peer", "RSS MB", "peer", "GB/s", "peer", "ratio", "of disk")
    print(f"{'':12}" + "".join(f"{head:>{12 if k == 0 else 8}}" for k, head in enumerate(heads)))
    for name in given.only:
        peer = PEERS[name]
        if importlib.util.find_spec(peer.library) is None:
            print(f"{name:12} {peer.library} is not installed, and left out")
            continue
        folder = given.directory / f"open-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        path = folder / peer.file
        run("write", name, path)
        system = statistics.median(system_rate(path) for _ in range(given.rounds + 1))
        rounds = [(run("warmstart", name, path), run("peer", name, path)) for _ in range(given.rounds)]
        shutil.rmtree(folder)
        ours, theirs = ({k: statistics.median(r[side][k] for r in rounds) for k in rounds[0][side]} for side in (0, 1))
        if ours["arrays"] != theirs["arrays"]:
            print(f"{name}: {ours['arrays']} arrays, but {theirs['arrays']} of {peer.library}")
        print(
            f"{name:12}{ours['whole']:12.3f}{theirs['whole']:8.3f}{theirs['whole'] / ours['whole']:8.1f}"
            f"{ours['open']:8.4f}{theirs['open']:8.4f}{ours['memory']:8.0f}{theirs['memory']:8.0f}"
            f"{ours['rate']:8.2f}{theirs['rate']:8.2f}{ours['rate'] / theirs['rate']:8.2f}{ours['rate'] / system:8.0%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
