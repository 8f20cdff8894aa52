"""`python -m certfan` is the same program as `certfan`."""

from certfan.cli import main

if __name__ == "__main__":
    main()
