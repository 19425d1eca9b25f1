#!/bin/sh
# Starts MLflow's server with its web page over the project's registry. Ctrl-C ends it.
#   mlflow/server.sh [HOST] [PORT]          default 127.0.0.1 5000; there is no authentication
# RECSYS_TRACKING_URI may name another database; artifacts are files beside an SQLite one, so that clients on this
# machine can use the server and the database alike.
set -eu
cd "$(dirname "$0")/.."
store=${RECSYS_TRACKING_URI:-sqlite:///mlruns/mlflow.db}
case $store in
  sqlite:///*) folder=$(dirname "${store#sqlite:///}") ;;
  *) folder=mlruns ;;
esac
mkdir -p "$folder"
export MLFLOW_DISABLE_TELEMETRY="${MLFLOW_DISABLE_TELEMETRY:-true}"
exec .venv/bin/mlflow server --workers 1 --host "${1:-127.0.0.1}" --port "${2:-5000}" \
  --backend-store-uri "$store" --default-artifact-root "$(cd "$folder" && pwd)/artifacts"
