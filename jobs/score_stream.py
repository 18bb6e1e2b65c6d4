"""Score new rows of a Delta table: spark-submit --properties-file conf/local.conf jobs/score_stream.py --help.

After SIGTERM it finishes the current chunk, prints the same summary as score_table on stdout, and exits with code 0. A
new start continues after that chunk.
"""

from spark_aesthetic.cli.scoring import score_stream

if __name__ == "__main__":
    score_stream()
