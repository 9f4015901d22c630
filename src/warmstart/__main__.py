"""``python -m warmstart``: the command line."""

from warmstart.cli import main

if __name__ == "__main__":
    main()
