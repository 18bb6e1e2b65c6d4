"""Write chosen rows as shards: spark-submit --properties-file conf/local.conf jobs/export_webdataset.py --help.

The last line on stdout is one JSON object. Exit codes: 0 done; 1 failed; 2 the user must correct something, which one
line on stderr names.
"""

from spark_aesthetic.cli.curation import export_webdataset

if __name__ == "__main__":
    export_webdataset()
