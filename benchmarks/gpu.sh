#!/bin/sh
# Fill a table of what this machine's GPU makes of the presets, in 12 minutes: see gpu.py, or --help.
cd "$(dirname "$0")/.." || exit 2
python=.venv/bin/python
[ -x "$python" ] || python=python3
exec env PYTHONPATH="benchmarks${PYTHONPATH:+:$PYTHONPATH}" "$python" benchmarks/gpu.py "$@"
