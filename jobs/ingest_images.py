"""Add images to a Delta table: spark-submit --properties-file conf/local.conf jobs/ingest_images.py --help.

The last line on stdout is one JSON object. Exit codes: 0 success; 1 failure; 2 an error that the user can correct,
which one line on stderr explains.
"""

from spark_aesthetic.cli.curation import ingest_images

if __name__ == "__main__":
    ingest_images()
