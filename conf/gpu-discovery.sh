#!/usr/bin/env bash
# Prints the GPUs of this machine or container as Spark asks for them: {"name":"gpu","addresses":["0","1"]}.
# Run by each standalone worker, or by each executor on YARN and Kubernetes. It must stay executable. What it
# says on stderr is in the log of whoever ran it.
set -euo pipefail

fail() {
    echo "gpu-discovery.sh on ${HOSTNAME:-this machine}: $1" >&2
    exit 1
}

command -v nvidia-smi >/dev/null ||
    fail "expected nvidia-smi on the PATH, found none on $PATH; install the NVIDIA driver (in a container: its \
runtime), or remove the spark.*.resource.gpu.* settings to score on CPUs"

found=$(nvidia-smi --query-gpu=index --format=csv,noheader 2>&1) ||
    fail "expected nvidia-smi to list the GPUs, found: $found; run nvidia-smi there and mend the driver"

# Only the lines that are an index: warnings come on the same stream.
addresses=$(grep -E '^[0-9]+$' <<<"$found" | sed 's/.*/"&"/' | paste -sd, -) ||
    fail "expected at least one GPU, found: $found"

echo "{\"name\":\"gpu\",\"addresses\":[$addresses]}"
