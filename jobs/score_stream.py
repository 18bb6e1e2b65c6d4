"""Score what comes to a Delta table: spark-submit --properties-file conf/local.conf jobs/score_stream.py --help.

SIGTERM ends it after the chunk at work, with exit code 0 and a summary as score_table's on stdout. Started again, it
goes on.
"""

from spark_aesthetic.cli.scoring import score_stream

if __name__ == "__main__":
    score_stream()
