"""Runs trainings of several ranks in forked children, without paying for each start of Python.

Reads a JSON line ``[overrides of each rank, port, more of the environment]`` from standard input, answers with the
children's process numbers, and with their exit statuses when all have ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from kill_server import child, poison, preload


def serve() -> None:
    preload()
    if every := int(os.environ.get("POISON", "0")):
        poison(every)
    for line in sys.stdin:
        ranks, port, more = json.loads(line)
        pids = []
        for rank, overrides in enumerate(ranks):
            pid = os.fork()
            if pid == 0:
                address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(len(ranks)), **address, **more}
                signal.alarm(120)  # nobody waits for a rank that hangs
                try:
                    status = child("c.yaml", overrides, 0)
                except BaseException as error:
                    print(f"{type(error).__name__}: {error}", file=sys.stderr)
                    status = 99
                os._exit(status)
            pids.append(pid)
        print(json.dumps(pids), flush=True)
        ended = [os.waitpid(pid, 0)[1] for pid in pids]
        print(json.dumps([os.waitstatus_to_exitcode(status) for status in ended]), flush=True)


if __name__ == "__main__":
    serve()
