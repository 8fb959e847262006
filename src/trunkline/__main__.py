"""``python -m trunkline``: the command line, where the program ``trunkline`` is not on the path."""

from trunkline.cli import main

if __name__ == "__main__":
    main()
