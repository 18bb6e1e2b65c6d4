"""A Thrift Server, as docs/sql.md starts it, and a client that knows only SQL."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyspark
import pytest
from conftest import REPOSITORY, free_port
from processes import kill

import spark_aesthetic as sa
from spark_aesthetic.testing import PUBLISHED_SCORES, published_embeddings

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """Start a server by the page's command, in a new folder for the metastore, and return its address."""
    text = (REPOSITORY / "docs" / "sql.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^```bash\n(spark-submit [^`]*HiveThriftServer2[^`]*)```", text, flags=re.MULTILINE)
    port = str(free_port())
    text = command.replace("conf/", f"{REPOSITORY}/conf/").replace("10000", port)
    environment = os.environ | {"PATH": f"{sys.prefix}/bin{os.pathsep}{os.environ['PATH']}"}
    log = tmp_path / "server.log"
    with log.open("w") as said:
        process = subprocess.Popen(["bash", "-c", text], cwd=tmp_path, env=environment, stdout=said, stderr=said)
    try:
        ends = time.monotonic() + 240
        while True:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < ends, log.read_text()[-3000:]
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", int(port))) == 0:
                    break
            time.sleep(0.5)
        yield f"jdbc:hive2://127.0.0.1:{port}"
    finally:
        kill(process)


def asked(address: str, tmp_path: Path, *statements: str) -> list[str]:
    """Return the lines that Beeline, a client by JDBC, prints for some statements."""
    script = tmp_path / "statements.sql"
    script.write_text(";\n".join(statements) + ";\n", encoding="utf-8")
    beeline = Path(pyspark.__file__).parent / "bin" / "beeline"
    options = ["--silent=true", "--showHeader=false", "--outputformat=tsv2", "-u", address, "-f", str(script)]
    done = subprocess.run([beeline, *options], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [line for line in done.stdout.splitlines() if line.strip()]


def test_a_client_by_jdbc_reads_scores_through_a_view_over_the_catalog_function(server: str, tmp_path: Path) -> None:
    rows = ", ".join(
        f"({at}, array({', '.join(f'CAST({value!r} AS FLOAT)' for value in row.tolist())}))"
        for at, row in enumerate(published_embeddings().astype(float))
    )
    asked(
        server, tmp_path,
        f"CREATE TABLE embeddings USING delta AS SELECT * FROM VALUES {rows} AS t(name, embedding)",
        sa.create_function_ddl("aesthetic_v1", predictor="laion-aesthetics-v2"),
        "CREATE VIEW scored AS SELECT name, aesthetic_v1(embedding) AS aesthetic_score FROM embeddings",
    )  # fmt: skip
    # A second client, which created nothing, reads the view.
    found = asked(server, tmp_path, "SELECT name, round(aesthetic_score, 3) FROM scored ORDER BY name")
    assert [float(line.split("\t")[1]) for line in found] == [round(score, 3) for score in PUBLISHED_SCORES]
