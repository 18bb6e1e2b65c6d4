"""`make bench`: compare this package with its peers on the same rows, weights and cores.

    python benchmarks/run.py [--contests embeddings large small tiny vit-l-14] [--repeats 3] [--work FOLDER]

Each contestant runs in a long-lived process, and a small run loads its model first, so the times are of the steady
state. In each round all contestants run one after the other, so that a noisy neighbour slows all of them. Ratios are
taken within a round. The script prints a table for each contest and writes benchmarks/results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from inputs import read_scores, write_embeddings, write_model, write_photographs

from spark_aesthetic import resolve
from spark_aesthetic.images.prepare import prepare
from spark_aesthetic.predictors import weights
from spark_aesthetic.predictors.recipe import Predictor

HERE = Path(__file__).parent
ENVIRONMENTS = {"on_daft.py": ".venv", "on_ray.py": ".venv", "on_clip_retrieval.py": ".venv-clip-retrieval"}
CORES = 2
BATCH_ROWS = 16

# This model is so small that decoding is the bottleneck on a CPU, as it is with a large model on a GPU.
TINY = Predictor(
    name="untrained-tiny", backbone="ViT-tiny-32", backbone_weights="untrained:0", head_weights="untrained:0:64"
)
TINY_CONFIG: dict[str, object] = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@dataclass(frozen=True)
class Contest:
    """Rows, a model, and the contestants.

    Attributes:
        contestants: Names of the contestants, by the script that serves them.
        rows: Number of rows; `rows / copies` images are different.
        copies: Copies of each image in the table; more than one if a run would otherwise take only a second.
        limits: Contestants that only measure an upper limit. The remaining ones are this package and its peers.
    """

    unit: str
    rows: int
    predictor: Predictor
    contestants: dict[str, list[str]]
    size: tuple[int, int] = (0, 0)
    config: dict[str, object] | None = None
    copies: int = 1
    limits: list[str] = field(default_factory=list)


B32, L14 = resolve("untrained-vit-b-32"), resolve("untrained-vit-l-14")
OURS = ["spark-aesthetic", "spark-aesthetic fast"]
A_LOOP_A_CORE = "model only, ours, a loop a core"
BARE = ["decode only", "decode only, fast", "model only, ours", A_LOOP_A_CORE]
OPEN_CLIP = "model only, open_clip"
# On a CPU without bfloat16 instructions (x86: AVX-512 BF16 or AMX; Arm: BF16), it takes ten times as long as float32.
if {"avx512_bf16", "amx_bf16", "bf16"} & set(Path("/proc/cpuinfo").read_text().split()):
    OURS.append("spark-aesthetic fast bfloat16")
    BARE.append("model only, ours, bfloat16")
ON_SPARK = ["pandas UDF", "predict_batch_udf"]
IMAGES = {
    "bare.py": [*BARE, "plain loop"],
    "on_spark.py": [*OURS, *ON_SPARK],
    "on_daft.py": ["Daft"],
    "on_ray.py": ["Ray Data"],
    "on_clip_retrieval.py": ["clip-retrieval"],
}
LIMITS = [*BARE, OPEN_CLIP]
CONTESTS = {
    "embeddings": Contest(
        "k rows/s", 200_000, B32,
        {
            "bare.py": ["NumPy over pyarrow"],
            "on_spark.py": [
                "scan only", "spark-aesthetic, normalize=False", "spark-aesthetic, embeddings",
                "pandas UDF, embeddings", "predict_batch_udf, embeddings",
            ],
            "on_daft.py": ["Daft, embeddings"],
            "on_ray.py": ["Ray Data, embeddings"],
        },
        limits=["scan only"],
    ),
    "large": Contest(
        "images/s", 256, B32, IMAGES | {"bare.py": [*BARE, OPEN_CLIP, "plain loop"]}, size=(1600, 1068), limits=LIMITS
    ),
    "small": Contest("images/s", 256, B32, IMAGES, size=(640, 480), limits=LIMITS),
    "tiny": Contest(
        "images/s", 1536, TINY, IMAGES, size=(1600, 1068), config=TINY_CONFIG, copies=6, limits=LIMITS
    ),
    "vit-l-14": Contest(
        "images/s", 32, L14,
        {
            "bare.py": ["decode only", "model only, ours", A_LOOP_A_CORE, OPEN_CLIP, "plain loop"],
            "on_spark.py": ["spark-aesthetic"],
        },
        size=(1600, 1068), limits=LIMITS,
    ),
}  # fmt: skip


class Server:
    """A process that serves contestants and waits between their runs."""

    def __init__(self, script: str, model: Path, environment: dict[str, str], log: Path) -> None:
        python = HERE / ENVIRONMENTS[script] / "bin" / "python" if script in ENVIRONMENTS else Path(sys.executable)
        command = [str(python), str(HERE / script), str(model), str(BATCH_ROWS), str(CORES)]
        self.log = log
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"), env=environment, text=True
        )
        self._answer()

    def run(self, name: str, data: Path, out: Path) -> float:
        """Run a contestant and return its seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"run": name, "data": str(data), "out": str(out)}) + "\n")
        self.process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.log}: the process ended early. Its log:\n{self.log.read_text()[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """Close the input of the process, which then ends, and wait for it."""
        self.process.communicate()


def main() -> None:
    """Run the chosen contests, and merge their figures into results.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--contests", nargs="+", choices=CONTESTS, default=list(CONTESTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--work", type=Path, help="Folder for rows, weights and logs, which is kept. Default: a temporary one."
    )
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix="spark-aesthetic-bench-"))
    os.environ["SPARK_AESTHETIC_CACHE"] = str(work / "cache")
    file = HERE / "results.json"
    results = json.loads(file.read_text()) if file.exists() else {}
    for name in args.contests:
        results[name] = {"machine": machine()} | measure(name, CONTESTS[name], args.repeats, work)
        print(f"\n{name}\n{table(CONTESTS[name], results[name])}", flush=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
        if results[name]["wrong"]:
            raise SystemExit("\n".join(results[name]["wrong"]))
    if args.work is None:
        shutil.rmtree(work)


def measure(name: str, contest: Contest, repeats: int, work: Path) -> dict[str, Any]:
    """Measure the rates of all contestants and the distances of their scores from the plain loop's."""
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    if contest.size == (0, 0):
        write_embeddings(folder / "rows", contest.rows, 768)
    else:
        write_photographs(folder / "rows", contest.rows // contest.copies, *contest.size, copies=contest.copies)
        write_photographs(folder / "warm", 2 * BATCH_ROWS, 320, 240, files=2)
    model = folder / "model"
    write_model(model, contest.predictor, contest.config)
    pinned = weights.pin(contest.predictor)
    pinned.save(model / "predictor.json")
    for dtype in ("float32", "bfloat16"):
        prepare(pinned, dtype=dtype)
    default = weights.load_head(weights.pin(resolve("laion-aesthetics-v2")))
    np.savez(model / "default_head.npz", weight=default.weight, bias=default.bias)
    # Each process gets one thread, because further threads of a library would compete for the cores.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"}
    environment["SPARK_SUBMIT_OPTS"] = f"-Dderby.system.home={folder}"
    servers = {script: Server(script, model, environment, folder / f"{script}.log") for script in contest.contestants}
    for rows in ("rows", "warm"):
        if (folder / rows).exists():
            servers["on_spark.py"].run("convert to Delta", folder / rows, folder / "unused")
    order = [(servers[script], run) for script, runs in contest.contestants.items() for run in runs]
    seconds: dict[str, list[float]] = {run: [] for _, run in order}
    outs: dict[str, list[Path]] = {run: [] for run in seconds}
    if contest.size == (0, 0):
        # Spark warms up with eight runs over all rows: its rates rise until about the fifth, while the JVM compiles hot
        # code. Contestants without a JVM are as fast in their second run as later, so they warm up with two.
        for warm in range(8):
            for server, run in order:
                if warm < 2 or server is servers["on_spark.py"]:
                    server.run(run, folder / "rows", folder / f"warm-{warm}-{run}")
    for repeat in range(repeats):
        for number, (server, run) in enumerate(order):
            out = folder / f"out-{repeat}-{number}"
            outs[run].append(out)
            # This run loads the model: a Spark worker that is idle for a minute ends and loses it. Daft and Ray start
            # new actors for every query, so their clocks start only when the actors are ready.
            if run in (*OURS, *ON_SPARK):
                server.run(run, folder / "warm", folder / f"warm-{repeat}-{number}")
            seconds[run].append(server.run(run, folder / "rows", out))
            print(f"{name} {repeat + 1}/{repeats} {run}: {seconds[run][-1]:.2f} s", file=sys.stderr, flush=True)
    for server in servers.values():
        server.close()
    unit = 1000 if contest.unit.startswith("k ") else 1
    rates = {run: [contest.rows / unit / second for second in runs] for run, runs in seconds.items()}
    found, wrong = sums(outs) if contest.size == (0, 0) else deviations(contest, outs)
    return {"rows": contest.rows, "unit": contest.unit, "rates": rates, "deviations": found, "wrong": wrong}


def sums(outs: dict[str, list[Path]]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Find contestants over embeddings with a sum or sum of squares of all scores that differs from NumPy's."""
    # The tolerance allows for 200,000 float32 scores summed in different orders. The sum of squares detects scores
    # that ignore the embeddings: theirs is smaller by a hundredth. The embeddings have length 1, so normalize=False
    # gives the same scores.
    plain = np.array(json.loads(outs["NumPy over pyarrow"][0].read_text()))
    wrong = []
    for run, files in outs.items():
        for file in files if run != "scan only" else []:
            found = np.array(json.loads(file.read_text()))
            if not np.allclose(found, plain, rtol=1e-5):
                wrong.append(
                    f"{run}: the scores differ from NumPy's: found sum and sum of squares {found}, expected {plain}"
                )
    return {}, wrong


def deviations(contest: Contest, outs: dict[str, list[Path]]) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Return the mean and largest distance of the scores from the plain loop's, and contestants beyond the limit."""
    plain = read_scores(str(outs["plain loop"][0]))
    spread = float(np.std(list(plain.values())))
    # clip-retrieval keeps embeddings in float16, which rounds a vector of length 1 by up to half a unit in the last of
    # 11 bits. "fast" decoding may move a score by a tenth of the scores' standard deviation.
    half = 2**-11 * weights.load_head(weights.pin(contest.predictor)).norm
    most = {"clip-retrieval": half, **{run: 0.1 * spread for run in outs if "fast" in run}}
    found: dict[str, dict[str, float]] = {"plain loop": {"spread": spread}}
    wrong = []
    for run, files in outs.items():
        for file in files if run not in contest.limits else []:
            scores = read_scores(str(file))
            if scores.keys() != plain.keys():
                wrong.append(
                    f"{run}: wrong number of rows: found {len(scores)}, expected {len(plain)} as in the plain loop"
                )
                continue
            distance = np.abs([scores[name] - plain[name] for name in plain])
            found[run] = found.get(run, {}) | {"mean": float(distance.mean()), "max": float(distance.max())}
            if distance.max() > most.get(run, 1e-4):
                wrong.append(f"{run}: the scores differ from the plain loop's by up to {distance.max()}")
    return found, wrong


def table(contest: Contest, result: dict[str, Any]) -> str:
    """Make a Markdown table of rates and of their ratios to the limit and to the best peer (medians over rounds)."""
    rates: dict[str, list[float]] = result["rates"]
    peers = [run for run in rates if run not in contest.limits and "aesthetic" not in run]
    best = max(peers, key=lambda run: median(rates[run]))
    lines = [f"| | {contest.unit}: min, median, max | of the limit | of the best peer |", "|---|---|---|---|"]
    for run, values in rates.items():
        limit = _limit(run, rates)
        of_limit = _ratio(values, limit) if limit else ""
        of_best = "" if run in contest.limits else _ratio(values, rates[best])
        spread = ", ".join(f"{value:.3g}" for value in (min(values), median(values), max(values)))
        name = f"**{run}**" if "aesthetic" in run else run
        lines.append(f"| {name} | {spread} | {of_limit} | {of_best} |")
    for run, found in result["deviations"].items():
        if "fast" in run:
            spread = result["deviations"]["plain loop"]["spread"]
            lines.append(
                f"\n{run}: scores differ from exact ones by {found['mean']:.2g} on average and by "
                f"{found['max']:.2g} at most; their standard deviation is {spread:.2g} (untrained weights)."
            )
    return "\n".join(lines)


def _ratio(rates: list[float], others: list[float]) -> str:
    return f"{median(rate / other for rate, other in zip(rates, others, strict=True)):.2f}"


def _limit(run: str, rates: dict[str, list[float]]) -> list[float] | None:
    """Return the rates that the scan allows, or that decoding and then the model allow on all cores."""
    if "aesthetic" not in run:
        return None
    if "scan only" in rates:
        return rates["scan only"]
    decoding = rates["decode only, fast" if "fast" in run else "decode only"]
    one, each = rates["model only, ours"], rates[A_LOOP_A_CORE]
    inferring = rates["model only, ours, bfloat16"] if "bfloat16" in run else list(map(max, one, each))
    return [1 / (1 / decode + 1 / infer) for decode, infer in zip(decoding, inferring, strict=True)]


def machine() -> dict[str, str | int]:
    """Return the properties of the machine and the versions on which the figures depend."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    from importlib.metadata import version

    versions = {package: version(package) for package in ("pyspark", "torch", "open_clip_torch", "pillow")}
    return {"cpu": model, "cores": CORES, "python": platform.python_version(), **versions}


if __name__ == "__main__":
    main()
