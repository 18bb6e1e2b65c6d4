"""Score what comes to a Delta table: spark-submit --properties-file conf/local.conf jobs/score_stream.py --help.

SIGTERM ends it after the chunk at work, with exit code 0 and a summary as score_table's on stdout. Started again, it
goes on.
"""

from __future__ import annotations

import sys

from spark_aesthetic import Summary, score_table
from spark_aesthetic.submit import parser, run, session, shared, stop_on_sigterm

NAME = "score_stream"


def job() -> Summary:
    arguments = parser(NAME, "Score new rows of a Delta table as they come.", scores_required=True)
    arguments.add_argument(
        "--every", default="1 minute", metavar="INTERVAL", help="how often to look for new rows (default: %(default)s)"
    )
    args = arguments.parse_args()
    spark = session(NAME)
    return score_table(spark, every=args.every, stopping=stop_on_sigterm(spark), **shared(args))


if __name__ == "__main__":
    code = run(NAME, job)
    # Runners that execute a job inside a process of their own can take SystemExit(0) for a failure.
    if code:
        sys.exit(code)
