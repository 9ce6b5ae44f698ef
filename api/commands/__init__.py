"""One file per command of the `monograph` command line; `cli.py` puts them together."""
