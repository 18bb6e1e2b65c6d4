"""Check a machine and its Spark session: spark-submit --properties-file conf/local.conf jobs/doctor.py --help.

Prints one line for each check. Exit codes: 0 all is well; 1 a check has failed, and its line says what to do; 2 an
option is wrong.
"""

from spark_aesthetic.cli.doctor import main

if __name__ == "__main__":
    main()
