"""Write the rows at or above a cut: spark-submit --properties-file conf/local.conf jobs/curate.py --help.

The last line on stdout is one JSON object. Exit codes: 0 done; 1 failed; 2 the user must correct something, which one
line on stderr names.
"""

from spark_aesthetic.cli.curation import curate

if __name__ == "__main__":
    curate()
