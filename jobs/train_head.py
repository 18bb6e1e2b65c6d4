"""Fit a head to your own ratings: spark-submit --properties-file conf/local.conf jobs/train_head.py --help.

The last line on stdout is one JSON object. Exit codes: 0 done; 1 failed; 2 the user must correct something, which one
line on stderr names.
"""

from spark_aesthetic.cli.curation import train_head

if __name__ == "__main__":
    train_head()
