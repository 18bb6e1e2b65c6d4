"""Score a Delta table: spark-submit --properties-file conf/local.conf jobs/score_table.py --help.

The last line on stdout is one JSON object. Exit codes: 0 done; 1 failed; 2 the user must correct something, which one
line on stderr names.
"""

from spark_aesthetic.cli.scoring import score_table

if __name__ == "__main__":
    score_table()
