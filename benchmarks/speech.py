"""How fast speech is worked on, each part beside its peers.

python benchmarks/speech.py decode --scorer FILE.scorer --alphabet alphabet.txt [--coqui PYTHON]
python benchmarks/speech.py train LIST.csv --audio FOLDER
python benchmarks/speech.py transcribe LIST.csv --audio FOLDER --model DIR@best [--coqui PYTHON [--tflite FILE]]
"""

from __future__ import annotations

import argparse

import speech_decode
import speech_train
import speech_transcribe

PARTS = {"decode": speech_decode, "train": speech_train, "transcribe": speech_transcribe}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name, part in PARTS.items():
        part.arguments(parts.add_parser(name, help=part.__doc__.splitlines()[0]))
    given = parser.parse_args()
    PARTS[given.part].run(given)


if __name__ == "__main__":
    main()
