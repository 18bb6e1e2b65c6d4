"""Run a tool of the package: python -m spark_aesthetic doctor."""

from __future__ import annotations

import sys

from spark_aesthetic.cli import doctor

if __name__ == "__main__":
    if sys.argv[1:2] != ["doctor"]:
        sys.exit("usage: python -m spark_aesthetic doctor [--help]")
    del sys.argv[1]
    doctor.main()
