"""Score a Delta table: spark-submit --properties-file conf/local.conf jobs/score_table.py --help.

The last line on stdout is one JSON object. Exit codes: 0 done; 1 failed; 2 something must be put right first,
said in one line on stderr.
"""

from spark_aesthetic.cli.scoring import score_table

if __name__ == "__main__":
    score_table()
