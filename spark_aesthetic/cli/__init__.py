"""The jobs: parse a command line, call a function, and end with an exit code."""
