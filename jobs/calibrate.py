"""Choose the cut of a scores table: spark-submit --properties-file conf/local.conf jobs/calibrate.py --help.

The last line on stdout is one JSON object. Exit codes: 0 done; 1 failed; 2 the user must correct something, which one
line on stderr names.
"""

from spark_aesthetic.cli.curation import calibrate

if __name__ == "__main__":
    calibrate()
