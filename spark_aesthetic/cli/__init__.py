"""The jobs: arguments to a call to an exit code."""
