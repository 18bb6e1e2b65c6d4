"""Write chosen rows as shards: spark-submit --properties-file conf/local.conf jobs/export_webdataset.py --help.

The last line on stdout is one JSON object. Exit codes: 0 success; 1 failure; 2 an error that the user can correct,
which one line on stderr explains.
"""

from spark_aesthetic.cli.curation import export_webdataset

if __name__ == "__main__":
    export_webdataset()
