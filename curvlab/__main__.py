"""``python -m curvlab``: the command line."""

from curvlab.cli.app import main

if __name__ == "__main__":
    main()
