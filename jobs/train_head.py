"""Fit a head to your own ratings: spark-submit --properties-file conf/local.conf jobs/train_head.py --help.

The last line on stdout is one JSON object. Exit codes: 0 done; 1 failed; 2 something must be put right first,
said in one line on stderr.
"""

from spark_aesthetic.cli.curation import train_head

if __name__ == "__main__":
    train_head()
