"""Add images to a Delta table: spark-submit --properties-file conf/local.conf jobs/ingest_images.py --help.

The last line on stdout is one JSON object. Exit codes: 0 done; 1 failed; 2 the user must correct something, which one
line on stderr names.
"""

from spark_aesthetic.cli.curation import ingest_images

if __name__ == "__main__":
    ingest_images()
