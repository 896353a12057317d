"""``python -m clq``: the same as ``clq``."""

from clq.commands.main import main

if __name__ == "__main__":
    main()
