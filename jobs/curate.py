"""Write the rows at or above a cut: spark-submit --properties-file conf/local.conf jobs/curate.py --help.

The last line on stdout is one JSON object. Exit codes: 0 success; 1 failure; 2 an error that the user can correct,
which one line on stderr explains.
"""

from spark_aesthetic.cli.curation import curate

if __name__ == "__main__":
    curate()
