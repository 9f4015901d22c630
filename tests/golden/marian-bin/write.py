"""Makes the goldens beside this file with Marian's own converter.

    pip install pymarian==1.12.42 numpy        # on a processor with AVX-512, for the types that need it
    python write.py DIRECTORY

``model.npz`` holds three arrays and options, and ``TYPE.bin`` is what ``marian-conv --gemm-type TYPE`` makes of it.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np

TYPES = ("float32", "packed8avx2", "intgemm8", "intgemm8avx2", "intgemm8avx512", "intgemm16")


def main(directory: Path) -> None:
    chance = np.random.RandomState(0)
    arrays = {
        "encoder_Wemb": chance.standard_normal((3, 64)).astype("f4"),
        "encoder_l1_ffn_W1": chance.standard_normal((64, 16)).astype("f4"),
        "encoder_l1_ffn_b1": chance.standard_normal((1, 16)).astype("f4"),
        "special:model.yml": np.frombuffer(b"type: transformer\ndim-emb: 64\n\0", "i1"),
    }
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(directory / "model.npz", **arrays)
    for kind in TYPES:
        command = ["pymarian", "convert", "-f", "model.npz", "-t", f"{kind}.bin", "-g", kind]
        subprocess.run(command, cwd=directory, check=True, capture_output=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
