"""The command line: one short function a verb, in a module for each group of verbs."""

from __future__ import annotations

import gc
import os
import sys
import time

TYPE_CHECKING = False  # as typing has it, which is not imported yet
if TYPE_CHECKING:
    from collections.abc import Sequence

    from warmstart.errors import WarmstartError

SPINS_ALONE, SPINS = 30_000, 3_000
LIBRARIES = dict.fromkeys(("torch", "tensorboard", "matplotlib", "sacrebleu", "jiwer"), "train")  # → extra


def wait_briefly() -> None:
    """Let OpenMP's threads spin between two pieces of work, and then sleep: for about a tenth of a millisecond, or
    a whole one on a machine that does nothing else when the command begins (libgomp's own default is ten).

    Threads that sleep at once take as long to wake as a small model's products take, those that spin for long keep
    other processes, and each other, from a core that they need (docs/decisions/0011). Without effect once torch is
    imported, or if ``OMP_WAIT_POLICY`` or ``GOMP_SPINCOUNT`` says otherwise.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS_ALONE if _alone() else SPINS))


def _alone() -> bool:
    """Whether no other process wants a processor, in most of a few moments; no, where the system does not say."""
    running = []
    try:
        for _ in range(5):
            with open("/proc/loadavg") as file:
                running.append(file.read().split()[3].partition("/")[0])
            time.sleep(0.001)
    except (OSError, IndexError):
        return False
    return running.count("1") >= 3


def main() -> None:
    """Run a verb. Errors that warmstart raises on purpose are printed without a traceback; status 1."""
    gc.set_threshold(50_000)  # imports and vocabularies make many objects and no garbage
    _hash_ahead(sys.argv[1:])
    from warmstart.errors import Interrupted, MissingExtra, WarmstartError

    try:
        if not _converter(sys.argv[1:]):
            wait_briefly()
            from warmstart.cli.verbs import app

            app()
    except Interrupted as stop:
        if not stop.elsewhere:
            print(stop, file=sys.stderr)
        raise SystemExit(stop.status) from None
    except WarmstartError as error:
        print_error(error)
        raise SystemExit(1) from None
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in LIBRARIES:
            raise
        print_error(MissingExtra(library, LIBRARIES[library]))
        raise SystemExit(1) from None
    except BrokenPipeError:
        _drop_output()
        raise SystemExit(141) from None
    except OSError as error:
        if error.filename is not None:
            raise
        from pathlib import Path

        from warmstart.storage.atomic import DISK, storage_error

        if error.errno not in DISK:
            raise
        _drop_output()
        print_error(storage_error(error, Path("standard output")))  # files are named where they are written
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        if "warmstart.storage.hashing" in sys.modules:
            from warmstart.storage.hashing import Digests

            with Digests.begun_ahead():
                pass  # of a command that failed before it came to its source
        _name_plugins()
        gc.freeze()  # the process ends: nothing is to be looked through once more


def _hash_ahead(arguments: Sequence[str]) -> None:
    """Begin to hash the source of a conversion before everything else is imported, which takes about as long."""
    if not arguments or {"-h", "--help"} & set(arguments):
        return
    source = None
    if arguments[0] == "convert":
        source = next((word for word in arguments[1:] if not word.startswith("-")), None)
    elif arguments[0].startswith("ct2-"):
        flags = {"--model", "--model_dir", "--model_path"}
        source = next((arguments[k + 1] for k, word in enumerate(arguments[:-1]) if word in flags), None)
    if source is not None:
        from warmstart.storage.crew import claim
        from warmstart.storage.hashing import Digests

        claim()
        Digests.begin_ahead(source)


def _drop_output() -> None:
    """What standard output still has to write goes nowhere, or the interpreter would try once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _converter(arguments: Sequence[str]) -> bool:
    """Whether ``arguments`` are one of CTranslate2's commands, which was run then: these parse their flags themselves,
    and importing typer takes as long as reading a vocabulary."""
    if not arguments or not arguments[0].startswith("ct2-"):
        return False
    from warmstart.frontends.ct2 import CONVERTERS

    if arguments[0] not in CONVERTERS:
        return False
    run_converter(*arguments)
    return True


def run_converter(command: str, *arguments: str) -> None:
    """Do what CTranslate2's ``command`` does, and say what was written."""
    from warmstart.frontends.ct2 import run
    from warmstart.reports.conversion import conversion_text

    convert_lightly()
    print(conversion_text(run(command, arguments)), end="")


def convert_lightly() -> None:
    """Settings of a process that converts: numpy multiplies nothing, so that it needs no threads of its own, without
    which it can be forked; where it is not, the thread that hashes the source must not wait 5 ms each time it comes
    back to Python."""
    from warmstart.storage import crew

    crew.claim()
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    sys.setswitchinterval(0.0005)
    gc.set_threshold(500_000)


def print_error(error: WarmstartError) -> None:
    """On stderr, without what a terminal would act on, unless another process says it."""
    from warmstart.reports.text import printable

    if error.elsewhere:
        return
    of = "" if error.rank is None else f" on rank {error.rank}"
    print(f"error{of}: {printable(error, keep=chr(10))}", file=sys.stderr)


def _name_plugins() -> None:
    """Whose code was run besides warmstart's, on stderr. Most verbs that need no model load no families."""
    registry = sys.modules.get("warmstart.models.registry")
    for plugin in registry.FAMILIES.ran() if registry is not None else ():
        print(f"with the plug-in {plugin}", file=sys.stderr)
