"""How arrays lie on disk. A format is a module; it knows nothing of models.

Every module has ``FORMAT`` (its name), ``recognise(path) -> bool`` (by content), ``open(path) -> Checkpoint`` and
``candidates(directory) -> list[Candidate]``; ``detect.FORMATS`` lists them. Those that write have ``write_…``.
"""
