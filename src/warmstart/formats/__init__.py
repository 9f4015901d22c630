"""How arrays lie on disk. A format is a module; it knows nothing of models.

Every module has ``FORMAT`` (its name), ``recognise(path) -> bool`` (by the file's content),
``open(path) -> Checkpoint`` and ``candidates(directory) -> list[Path]`` (its files in a directory).
"""
