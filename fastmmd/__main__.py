"""`python -m fastmmd`: the same as the command `fastmmd`."""

from fastmmd.cli import main

if __name__ == "__main__":
    main()
