#!/usr/bin/env bash
# The whole road on a generated sample, into the folder given: rows -> dataset -> plan -> teacher -> scores -> table.
set -euo pipefail
folder=${1:-demo}
rm -rf "$folder"
mkdir -p "$folder"
cd "$folder"
kd-cache sample --out rows
kd-cache ingest rows --out data/sample
kd-cache plan --data data/sample
kd-teacher tune unisrec --data data/sample
kd-cache build --teacher unisrec
kd-cache show
kd-student fit --cache cache/sample --compare
