"""Recordings at URLs, brought into the cache before they are computed with."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import Context, copy_context

from warmstart.data.ahead import in_order
from warmstart.data.speech.example import AudioSource
from warmstart.errors import DataError, Problem
from warmstart.sources.uri import is_remote

PARALLEL = 4


def fetched(recordings: Sequence[AudioSource]) -> list[AudioSource | Problem]:
    """Each of ``recordings`` on this machine, or why it cannot be had. What is in the cache and still the same at its
    URL is not fetched again; several are asked for at once. Raises ``SourceError`` where a server does not answer."""

    def bring(item: tuple[Context, AudioSource]) -> AudioSource | Problem:
        context, recording = item
        try:
            return context.run(recording.here)  # threads do not inherit whether the network may be used
        except DataError as error:
            return error.problem

    remote = [(copy_context(), recording) for recording in recordings if is_remote(recording.path)]
    brought = in_order(bring, remote, PARALLEL)
    return [next(brought) if is_remote(recording.path) else recording for recording in recordings]
