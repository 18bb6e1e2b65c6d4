"""Look at scored images and label: spark-submit --properties-file conf/local.conf jobs/review.py --help.

The last line on stdout is one JSON object. Exit codes: 0 done; 1 failed; 2 the user must correct something, which one
line on stderr names.
"""

from spark_aesthetic.cli.curation import review

if __name__ == "__main__":
    review()
