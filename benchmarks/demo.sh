#!/usr/bin/env bash
# The whole road on a generated sample, into the folder given: rows -> dataset -> plan -> teacher -> scores -> table.
set -euo pipefail
folder=${1:-demo}
rm -rf "$folder"
mkdir -p "$folder"
cd "$folder"

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

run kd-cache sample --out rows
run kd-cache ingest rows --out data/sample
run kd-cache plan --data data/sample
run kd-teacher tune unisrec --data data/sample
run kd-cache build --teacher unisrec
run kd-cache show
# enough for a clear answer; left alone, the student goes on improving for twice as long
run kd-student fit --cache cache/sample --compare --epochs 30
