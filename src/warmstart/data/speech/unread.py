"""What a file is that libsndfile does not read, and what to do with it."""

from __future__ import annotations

CONVERT = "convert it to wav or FLAC, for instance: ffmpeg -i FILE NEW.wav"
HEAD = 1024  # bytes of the file that tell
_KINDS = (
    (0, b"version https://git-lfs", "a git-lfs pointer, not the file itself", "run git lfs pull"),
    (0, b"<", "a web page or XML (a download that went wrong?)", "download the file itself"),
    (4, b"ftyp", "MPEG-4 (m4a, mp4)", CONVERT),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM", CONVERT),
    (0, b"#!AMR", "AMR", CONVERT),
    (0, b"\xff\xf1", "AAC", CONVERT),
    (0, b"\xff\xf9", "AAC", CONVERT),
    (0, b"\x30\x26\xb2\x75", "Windows Media", CONVERT),
)


def unread(start: bytes, reason: str) -> tuple[str, str]:
    """(what was found, what to do) for a file that begins with ``start``; ``reason`` is libsndfile's."""
    if not start:
        return "an empty file", "copy or download it again"
    if start.startswith(b"NIST_1A") and b"shorten" in start:
        return "NIST SPHERE, compressed by shorten", "unpack it: sph2pipe -f wav FILE NEW.wav"
    if start.startswith(b"OggS") and b"Speex" in start:
        return "Ogg Speex", CONVERT
    for at, magic, name, todo in _KINDS:
        if start[at:].startswith(magic):
            return name, todo
    return reason, CONVERT
