#!/usr/bin/env bash
# Prints the GPUs of this machine or container in Spark's format: {"name":"gpu","addresses":["0","1"]}.
# Each standalone worker runs it, or each executor on YARN and Kubernetes; its stderr is in their logs. Keep it executable.
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

# Keep only lines that are an index, because warnings are on the same stream.
addresses=$(grep -E '^[0-9]+$' <<<"$found" | sed 's/.*/"&"/' | paste -sd, -) ||
    fail "expected at least one GPU, found: $found"

echo "{\"name\":\"gpu\",\"addresses\":[$addresses]}"
