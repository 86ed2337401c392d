"""The command line. `main` is the entry point; one file per command, what they share is in `output` and `options`."""
