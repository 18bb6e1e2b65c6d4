"""Fit a head to your own ratings: spark-submit --properties-file conf/local.conf jobs/train_head.py --help.

The last line on stdout is one JSON object. Exit codes: 0 success; 1 failure; 2 an error that the user can correct,
which one line on stderr explains.
"""

from spark_aesthetic.cli.curation import train_head

if __name__ == "__main__":
    train_head()
